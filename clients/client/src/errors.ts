// Every error that the client reports: a code to compare, the server's own text, and what to do.

/** What went wrong. More may be added. */
export type ErrorCode =
  /** `token()` failed; it is asked again later. */
  | "token_unavailable"
  /** `token()` gave none: nobody is signed in. */
  | "signed_out"
  /** The gateway refused the token. */
  | "token_refused"
  /** The gateway could not verify the token. */
  | "token_unverified"
  /** The token ended and no other one came in time. */
  | "token_expired"
  /** The token was revoked. */
  | "revoked"
  /** An administrator closed the connection. */
  | "disconnected"
  /** The two sides do not agree on encryption, or a message does not open. */
  | "encryption"
  /** The gateway could not be reached, or the connection was lost. */
  | "connection_lost"
  /** The gateway ended the connection in order: a restart, a drain, rebalancing. */
  | "server_closed"
  /** A limit of the gateway was passed. */
  | "limit"
  /** One side does not keep to the protocol. */
  | "protocol"
  /** The gateway answered an event with `error`. */
  | "server"
  /** An argument cannot be used. */
  | "invalid"
  /** REST answered with a problem; `problem` has its code. */
  | "rest"
  /** An answer did not come in time. */
  | "timeout"
  /** The client was closed. */
  | "closed"
  /** The browser's storage failed; the client goes on without it. */
  | "storage";

const ADVICE: Record<ErrorCode, string> = {
  token_unavailable: "See why token() fails. It is asked again.",
  signed_out: "Sign in and call connect().",
  token_refused: "Let token() return another token. It is asked again.",
  token_unverified: "Wait: the gateway cannot fetch the issuer's keys. The client tries again.",
  token_expired: "Let token() return a token that lives longer. It is asked again.",
  revoked: "Sign in again. A token that was issued later is used at once.",
  disconnected: "Ask who closed it, then call connect().",
  encryption: "Set `encryption` to what the gateway's settings say.",
  connection_lost: "Nothing: the client connects again.",
  server_closed: "Nothing: the client connects again.",
  limit: "Send less, or open fewer connections.",
  protocol: "Update the client or the gateway, then call connect().",
  server: "Read the server's text.",
  invalid: "Correct the call.",
  rest: "Read the problem's code.",
  timeout: "Try again.",
  closed: "Call connect() first.",
  storage: "Nothing: the page is loaded from the gateway.",
};

/** More about an error. */
export interface ErrorDetails {
  /** The server's own text. */
  readonly serverText?: string;
  /** The close code of the connection. */
  readonly closeCode?: number;
  /** The HTTP status of an answer of REST. */
  readonly status?: number;
  /** The code of a problem of REST, such as `not_found`. */
  readonly problem?: string;
  /** How long the server asked to wait. */
  readonly retryAfterMs?: number;
  readonly cause?: unknown;
}

/** Every error of the client. */
export class SignalError extends Error implements ErrorDetails {
  override readonly name = "SignalError";
  readonly code: ErrorCode;
  /** What to do. */
  readonly advice: string;
  readonly serverText?: string;
  readonly closeCode?: number;
  readonly status?: number;
  readonly problem?: string;
  readonly retryAfterMs?: number;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message);
    Object.assign(this, details);
    this.code = code;
    this.advice = ADVICE[code];
  }
}

/** Makes a `SignalError` of whatever was thrown. */
export function asSignalError(error: unknown, code: ErrorCode): SignalError {
  if (error instanceof SignalError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new SignalError(code, message, { cause: error });
}
