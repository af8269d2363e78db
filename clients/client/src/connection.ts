// The connection as the application sees it: one session after the other, until it is told to stop.
//
//   idle -- connect() --> connecting -- `connected` --> online -- close --> waiting --> connecting ...
//
// From every state `close()`, or an end after which the next one would be the same, leads to `closed`.

import { Backoff, type BackoffBounds } from "./backoff.js";
import { type Clock, Timer } from "./clock.js";
import { type Ended, type Then, afterClose } from "./close.js";
import { SignalError, asSignalError } from "./errors.js";
import type { Connected, Expiring } from "./generated/events.js";
import type { Page } from "./page.js";
import { type Encryption, type Envelope, Session, type TracedFrame, type WebSocketLike } from "./session.js";
import type { Tokens } from "./tokens.js";

export type ConnectionStatus = "idle" | "connecting" | "online" | "waiting" | "closed";

/** What a page shows of the connection. */
export interface ConnectionState {
  readonly status: ConnectionStatus;
  /** The id of this connection, while online. */
  readonly clientId: string | null;
  /** Who is connected; kept while the connection is lost. */
  readonly userId: string | null;
  /** Whether messages are sealed, while online. */
  readonly encrypted: boolean;
  /** When the next attempt is, in milliseconds since 1970, while waiting. */
  readonly retryAt: number | null;
  /** Why it is not online, or null. */
  readonly error: SignalError | null;
}

export const idle: ConnectionState = {
  status: "idle",
  clientId: null,
  userId: null,
  encrypted: false,
  retryAt: null,
  error: null,
};

export interface ConnectionOptions {
  readonly url: string;
  readonly encryption: Encryption;
  readonly socket: (url: string) => WebSocketLike;
  readonly clock: Clock;
  readonly page: Page;
  readonly backoff: BackoffBounds;
  readonly connectTimeoutMs: number;
  readonly probeMs: number;
  readonly parse: (text: string) => unknown;
  readonly trace?: ((frame: TracedFrame) => void) | undefined;
}

export interface ConnectionHooks {
  /** The state changed. */
  changed(state: ConnectionState): void;
  /** Authenticated: everything that holds for one connection begins. */
  connected(data: Connected): void;
  /** An event that is not the connection's own. */
  event(envelope: Envelope): void;
  /** The connection is gone. */
  lost(): void;
  error(error: SignalError): void;
}

/** The answer to a probe must come within this time. */
const PROBE_ANSWER_MS = 10_000;
/** A page that comes back causes no attempt when the last one was so short a time ago. */
const BACK_MS = 5_000;
/** After a server has chosen the moment, or the page came back. */
const AT_ONCE_MS = 1_000;
/** Failures that `slow` counts as. */
const SLOW = 2;

export class Connection {
  readonly #options: ConnectionOptions;
  readonly #hooks: ConnectionHooks;
  readonly #tokens: Tokens;
  readonly #backoff: Backoff;
  readonly #retry: Timer;
  readonly #probe: Timer;
  readonly #refresh: Timer;
  #state: ConnectionState = idle;
  #session: Session | undefined;
  #token = "";
  /** The next token, while the gateway looks at it. */
  #offered: string | undefined;
  #expiresAt = 0;
  #onlineAt = 0;
  #attemptAt = Number.NEGATIVE_INFINITY;
  /** How many messages had come when the open probe was sent. */
  #probed: number | null = null;
  #unwatch: (() => void) | undefined;
  /** Grows with each session, so that late answers of an earlier one are dropped. */
  #generation = 0;

  constructor(options: ConnectionOptions, tokens: Tokens, hooks: ConnectionHooks) {
    this.#options = options;
    this.#hooks = hooks;
    this.#tokens = tokens;
    this.#backoff = new Backoff(options.backoff);
    this.#retry = new Timer(options.clock);
    this.#probe = new Timer(options.clock);
    this.#refresh = new Timer(options.clock);
  }

  get state(): ConnectionState {
    return this.#state;
  }

  get isOnline(): boolean {
    return this.#state.status === "online";
  }

  connect(): void {
    if (this.#state.status !== "idle" && this.#state.status !== "closed") return;
    this.#unwatch ??= this.#options.page.watch(() => this.back());
    this.#backoff.reset();
    void this.#attempt();
  }

  close(error: SignalError | null = null): void {
    this.#end();
    this.#unwatch?.();
    this.#unwatch = undefined;
    this.#session?.close();
    this.#session = undefined;
    this.#set({ ...idle, status: "closed", userId: this.#state.userId, error });
  }

  send(envelope: Envelope): boolean {
    if (!this.isOnline) return false;
    this.#session?.send(envelope);
    return true;
  }

  /** The page is visible, online or resumed again. A closed connection stays closed. */
  back(): void {
    const { clock } = this.#options;
    if (this.isOnline) {
      this.probe();
    } else if (this.#state.status === "waiting" && clock.now() - this.#attemptAt >= BACK_MS) {
      const soon = clock.now() + clock.random() * AT_ONCE_MS;
      if (soon < (this.#state.retryAt ?? 0)) this.#wait(soon, this.#state.error);
    }
  }

  /** Finds out whether the gateway is still there; if it is not, connects again. */
  probe(): void {
    if (!this.isOnline || this.#probed !== null) return;
    this.#probed = this.#session?.received ?? 0;
    // Nothing is answered more cheaply: 2.6, without a database or an issuer.
    this.#session?.send({ event: "authenticate" });
    this.#watch(PROBE_ANSWER_MS);
  }

  /** Ends a connection that does not answer. */
  drop(error: SignalError): void {
    this.#session?.end(error);
  }

  async #attempt(): Promise<void> {
    const { clock, url, encryption, socket, connectTimeoutMs, parse, trace } = this.#options;
    const generation = ++this.#generation;
    this.#attemptAt = clock.now();
    this.#set({ ...this.#state, status: "connecting", clientId: null, encrypted: false, retryAt: null });
    try {
      this.#token = await this.#tokens.next();
    } catch (error) {
      if (generation !== this.#generation) return;
      const why = asSignalError(error, "token_unavailable");
      if (why.code === "signed_out") this.close(why);
      else this.#again("grow", why);
      return;
    }
    if (generation !== this.#generation) return;
    const session = new Session(
      { url, token: this.#token, encryption, socket, clock, connectTimeoutMs, parse, trace },
      {
        connected: (data, encrypted) => {
          this.#connected(data, encrypted);
          this.#hooks.connected(data);
        },
        event: (envelope) => this.#event(envelope),
        problem: (error) => this.#hooks.error(error),
        ended: (ended) => this.#ended(ended),
      },
    );
    this.#session = session;
    await session.open();
  }

  #connected({ id, userId }: Connected, encrypted: boolean): void {
    this.#onlineAt = this.#options.clock.now();
    this.#set({ status: "online", clientId: id, userId, encrypted, retryAt: null, error: null });
    this.#watch(this.#options.probeMs);
  }

  #ended(ended: Ended): void {
    const { then, error } = afterClose(ended);
    const { clock, backoff } = this.#options;
    const wasOnline = this.isOnline;
    this.#end();
    this.#session = undefined;
    if (wasOnline && clock.now() - this.#onlineAt >= backoff.stableMs) this.#backoff.reset();
    if (then === "other_token") this.#tokens.refuse(this.#token);
    if (wasOnline) this.#hooks.lost();
    if (then === "stop") {
      this.close(error);
      this.#hooks.error(error);
    } else {
      this.#again(then, error);
    }
  }

  #again(then: Then, error: SignalError): void {
    const { clock, page, backoff } = this.#options;
    const now = clock.now();
    let at: number;
    if (error.retryAfterMs !== undefined) {
      // The seconds are chosen so that everybody who was refused fits (1.3).
      at = now + error.retryAfterMs;
    } else if (then === "at_once" && this.#backoff.failures === 0) {
      at = now + clock.random() * Math.min(AT_ONCE_MS, backoff.firstMs);
    } else {
      // Nobody looks at a hidden page: it waits as long as any.
      const least = page.isHidden() ? 30 : then === "slow" ? SLOW : 0;
      at = this.#backoff.next(now, clock.random(), least);
    }
    this.#hooks.error(error);
    this.#wait(at, error);
  }

  #wait(at: number, error: SignalError | null): void {
    this.#retry.set(Math.max(0, at - this.#options.clock.now()), () => void this.#attempt());
    this.#set({ ...this.#state, status: "waiting", clientId: null, encrypted: false, retryAt: at, error });
  }

  /** Nothing of this session is waited for. */
  #end(): void {
    this.#generation++;
    this.#retry.clear();
    this.#probe.clear();
    this.#refresh.clear();
    this.#probed = null;
    this.#offered = undefined;
  }

  #event(envelope: Envelope): void {
    const { event, data } = envelope;
    const text = event === "error" ? String((data as { message?: unknown })?.message) : "";
    if (text === "Already authenticated" && this.#probed !== null) return;
    switch (event) {
      case "expiring":
        this.#expiring(data as Expiring);
        return;
      case "refreshed":
        if (this.#offered !== undefined) this.#token = this.#offered;
        this.#offered = undefined;
        this.#refresh.clear();
        return;
      case "error":
        if (this.#offered !== undefined && (text === "Refresh refused" || text === "Authentication error")) {
          if (text === "Refresh refused") this.#tokens.refuse(this.#offered);
          this.#offered = undefined;
          this.#refreshLater();
        }
        break;
    }
    this.#hooks.event(envelope);
  }

  /** 4.9, 4.11. Where trust in a key is withdrawn, everybody gets this at one moment: a random part of the time keeps the issuer from a storm. */
  #expiring({ seconds }: Expiring): void {
    const { clock } = this.#options;
    this.#expiresAt = clock.now() + seconds * 1000;
    const spread = Math.min(seconds * 1000 * 0.3, 20_000);
    this.#refresh.set(clock.random() * Math.max(0, spread), () => void this.#offer());
  }

  async #offer(): Promise<void> {
    const generation = this.#generation;
    try {
      const token = await this.#tokens.next();
      if (generation !== this.#generation) return;
      // A cache that still gives the token that ends.
      if (token === this.#token) throw new SignalError("token_expired", "token() gave the token that is about to end");
      this.#offered = token;
      this.send({ event: "refresh", data: { token, type: "Bearer" } });
      this.#refreshLater();
    } catch (error) {
      if (generation !== this.#generation) return;
      const why = asSignalError(error, "token_unavailable");
      if (why.code === "signed_out") {
        this.close(why);
      } else {
        this.#hooks.error(why);
        this.#refreshLater();
      }
    }
  }

  /** Offers once more, until the gateway closes with 4005. */
  #refreshLater(): void {
    const { clock } = this.#options;
    if (clock.now() > this.#expiresAt + 30_000) return;
    // An offer that is not answered yet gets more time.
    const least = this.#offered === undefined ? 5_000 : 20_000;
    this.#refresh.set(least + clock.random() * 5_000, () => void this.#offer());
  }

  /** One timer looks after the connection: a probe where nothing came, and its answer. */
  #watch(ms: number): void {
    const { clock, probeMs } = this.#options;
    if (!Number.isFinite(ms)) return;
    this.#probe.set(ms, () => {
      const { lastMessageAt = 0, received = 0 } = this.#session ?? {};
      if (this.#probed !== null) {
        if (received === this.#probed) {
          this.drop(new SignalError("connection_lost", "the gateway does not answer"));
          return;
        }
        this.#probed = null;
      }
      const silence = clock.now() - lastMessageAt;
      if (silence >= probeMs) this.probe();
      else this.#watch(probeMs - silence);
    });
  }

  #set(state: ConnectionState): void {
    this.#state = state;
    this.#hooks.changed(state);
  }
}
