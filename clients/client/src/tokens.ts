// Tokens: asked for before every connect and at `expiring`, and never used again once they were refused.

import { type Clock, Timer } from "./clock.js";
import { SignalError, asSignalError } from "./errors.js";

/** Gives a token of the person who is signed in, or null where nobody is. It is called before every connect: it may answer from a cache, but not with a token that ends soon. */
export type TokenSource = () => Promise<string | null> | string | null;

/** How long `token()` may take. */
const TIMEOUT_MS = 30_000;
/** Refused tokens that are remembered. */
const MOST_REFUSED = 16;

export class Tokens {
  #refused = new Set<string>();
  #current: string | undefined;

  constructor(
    readonly source: TokenSource,
    readonly clock: Clock,
  ) {}

  /** The token of the connection, for REST. */
  async current(): Promise<string> {
    return this.#current !== undefined && !this.#refused.has(this.#current) ? this.#current : this.next();
  }

  /**
   * Asks for a token.
   *
   * @throws SignalError `token_unavailable`, `signed_out`, or `token_refused` where it is one that was refused.
   */
  async next(): Promise<string> {
    const token = await this.#ask();
    if (token === null) throw new SignalError("signed_out", "nobody is signed in");
    if (typeof token !== "string" || !token) throw new SignalError("token_unavailable", "token() gave no text");
    if (this.#refused.has(token)) throw new SignalError("token_refused", "token() gave a token that was refused before");
    this.#current = token;
    return token;
  }

  /** The gateway refused this token, or it ended. */
  refuse(token: string): void {
    this.#refused.add(token);
    if (this.#refused.size > MOST_REFUSED) this.#refused.delete(this.#refused.values().next().value as string);
  }

  async #ask(): Promise<string | null> {
    const timer = new Timer(this.clock);
    try {
      return await Promise.race([
        new Promise<string | null>((resolve) => resolve(this.source())),
        new Promise<never>((_, reject) =>
          timer.set(TIMEOUT_MS, () => reject(new SignalError("token_unavailable", "token() did not answer in time"))),
        ),
      ]);
    } catch (error) {
      throw asSignalError(error, "token_unavailable");
    } finally {
      timer.clear();
    }
  }
}
