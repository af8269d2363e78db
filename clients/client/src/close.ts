// What a client does after a close: the table of section 7 of docs/protocol.md, and ranges for codes that it does not list.

import { type ErrorCode, SignalError } from "./errors.js";
import { CLOSE_REASONS } from "./generated/events.js";

/** How a connection ended. */
export interface Ended {
  readonly code: number;
  readonly reason: string;
  /** The text of the last `error` event. */
  readonly serverText?: string | undefined;
  /** How long the server asked to wait. */
  readonly retryAfterMs?: number | undefined;
  /** Set where the client itself ended it. */
  readonly error?: SignalError | undefined;
}

export type Then =
  /** Within a second: the server chose the moment. */
  | "at_once"
  /** Within the first window. */
  | "soon"
  /** In windows that grow with each failure. */
  | "grow"
  /** As `grow`, from a longer window on: the server asks for fewer attempts. */
  | "slow"
  /** The same, and never with the token of the connection that ended. */
  | "other_token"
  /** Not before somebody calls `connect()`: the next connection would end in the same way. */
  | "stop";

const TABLE: Record<number, readonly [Then, ErrorCode]> = {
  // Nobody asked for it: a proxy between the two.
  1000: ["grow", "server_closed"],
  1001: ["soon", "server_closed"],
  1002: ["stop", "protocol"],
  1007: ["stop", "protocol"],
  1009: ["stop", "protocol"],
  1011: ["grow", "server_closed"],
  // RFC 6455's registry: service restart, try again later.
  1012: ["soon", "server_closed"],
  1013: ["slow", "server_closed"],
  4001: ["soon", "timeout"],
  4002: ["soon", "connection_lost"],
  4003: ["grow", "token_unverified"],
  4004: ["stop", "encryption"],
  4005: ["other_token", "token_expired"],
  4006: ["other_token", "revoked"],
  4007: ["stop", "disconnected"],
  4008: ["soon", "connection_lost"],
  4009: ["at_once", "server_closed"],
  4010: ["slow", "limit"],
};

/** What follows, and what to tell the application. */
export function afterClose(ended: Ended): { then: Then; error: SignalError } {
  const { code, reason, serverText, retryAfterMs } = ended;
  let [then, error] = TABLE[code] ?? ["grow", code >= 3000 ? "server_closed" : "connection_lost"];
  if (code === 4003 && serverText === "Authentication failed") [then, error] = ["other_token", "token_refused"];
  if (ended.error) return { then: ended.error.code === "encryption" && code !== 1006 ? "stop" : then, error: ended.error };
  const known = (CLOSE_REASONS as Record<number, string>)[code];
  const details = {
    closeCode: code,
    ...(serverText !== undefined && { serverText }),
    ...(retryAfterMs !== undefined && { retryAfterMs }),
  };
  const text = reason || known || "the connection was lost";
  return { then, error: new SignalError(error, serverText && serverText !== text ? `${text}: ${serverText}` : text, details) };
}
