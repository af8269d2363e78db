// One connection, from its opening to its end: authenticates, agrees on a key, opens sealed messages in their order, seals what is sent.
// Numbers in comments are clauses of docs/protocol.md.

import { type Clock, Timer } from "./clock.js";
import type { Ended } from "./close.js";
import { SignalError } from "./errors.js";
import type { Connected } from "./generated/events.js";
import { type Cipher, KeyPair, type Sealed } from "./seal.js";
import { guard } from "./store.js";

/** What the client needs of a WebSocket: a browser's, or that of the package `ws`. */
export interface WebSocketLike {
  readonly readyState: number;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(data: string): void;
  close(code?: number, reason?: string): void;
}

export type Encryption = "off" | "optional" | "required";

/** 1.4: the gateway closes with 1009 at a longer one. */
const LONGEST = 131_072;

export interface Envelope {
  readonly event: string;
  readonly data?: unknown;
  readonly id?: string;
}

/** One message, as it travels and as it reads. `authenticate` and `refresh` hold a token. */
export interface TracedFrame {
  readonly direction: "in" | "out";
  /** The text on the wire. */
  readonly wire: string;
  /** The envelope; the same text where the message is not sealed. */
  readonly clear: string;
}

export interface SessionOptions {
  readonly url: string;
  readonly token: string;
  readonly encryption: Encryption;
  readonly socket: (url: string) => WebSocketLike;
  readonly clock: Clock;
  readonly connectTimeoutMs: number;
  readonly parse: (text: string) => unknown;
  readonly trace?: ((frame: TracedFrame) => void) | undefined;
}

/** Called in the order of the messages; `ended` once, last. */
export interface SessionHooks {
  connected(data: Connected, encrypted: boolean): void;
  event(envelope: Envelope): void;
  /** A message was dropped. */
  problem(error: SignalError): void;
  ended(ended: Ended): void;
}

export class Session {
  readonly #options: SessionOptions;
  readonly #hooks: SessionHooks;
  readonly #deadline: Timer;
  #socket: WebSocketLike | undefined;
  #keys: KeyPair | undefined;
  #cipher: Promise<Cipher> | undefined;
  /** The end of what is being opened; undefined while nothing is. */
  #opening: Promise<void> | undefined;
  #sealing: Promise<void> = Promise.resolve();
  #serverText: string | undefined;
  #retryAfterMs: number | undefined;
  #isConnected = false;
  #isOver = false;
  /** When the last message came, and how many. */
  lastMessageAt: number;
  received = 0;

  constructor(options: SessionOptions, hooks: SessionHooks) {
    this.#options = options;
    this.#hooks = hooks;
    this.#deadline = new Timer(options.clock);
    this.lastMessageAt = options.clock.now();
  }

  async open(): Promise<void> {
    const { encryption, clock, connectTimeoutMs } = this.#options;
    this.#deadline.set(connectTimeoutMs, () => this.end(new SignalError("timeout", "the gateway did not answer in time")));
    try {
      if (encryption !== "off") this.#keys = await this.#generate(encryption);
      if (this.#isOver) return;
      const socket = this.#options.socket(this.#options.url);
      this.#socket = socket;
      socket.onopen = () => {
        const key = this.#keys && { clientPublicKey: this.#keys.publicKey };
        this.#write({ event: "authenticate", data: { type: "Bearer", token: this.#options.token, ...key } });
      };
      socket.onmessage = ({ data }) => {
        this.lastMessageAt = clock.now();
        this.received++;
        this.#read(String(data));
      };
      socket.onerror = (event) => {
        // Where the opening was answered with 503, whoever made the socket may say for how long (1.3).
        const hint = (event as { retryAfterMs?: number } | undefined)?.retryAfterMs;
        if (typeof hint === "number") this.#retryAfterMs = hint;
      };
      socket.onclose = ({ code, reason }) => this.#afterOpening(() => this.#finish(code || 1006, String(reason ?? "")));
    } catch (error) {
      const cause = error instanceof SignalError ? error : new SignalError("connection_lost", String(error), { cause: error });
      // A missing WebCrypto will be missing next time as well.
      this.#finish(cause.code === "encryption" ? 1000 : 1006, "", cause);
    }
  }

  /** Sends an event, sealed where the connection is encrypted (6.6). */
  send(envelope: Envelope): void {
    if (this.#cipher) {
      const text = JSON.stringify(envelope);
      const cipher = this.#cipher;
      const sealed = cipher.then((key) => key.seal(text));
      this.#sealing = this.#sealing
        .then(() => sealed)
        .then((data) => this.#write({ event: "encrypted", data }, text))
        .catch((error: unknown) => this.#hooks.problem(asProblem(error)));
    } else {
      this.#write(envelope);
    }
  }

  /** Closes in order. `ended` is not called. */
  close(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#deadline.clear();
    // What was sent before is sealed first.
    void this.#sealing.then(() => this.#detach());
  }

  /** Ends at once, without waiting for a server that may be gone. */
  end(error: SignalError): void {
    this.#finish(error.code === "encryption" ? 1000 : 1006, "", error);
  }

  async #generate(encryption: Encryption): Promise<KeyPair | undefined> {
    try {
      return await KeyPair.generate();
    } catch (error) {
      if (encryption === "required") throw error;
      return undefined;
    }
  }

  #write(envelope: Envelope, clear?: string): void {
    if (this.#socket?.readyState !== 1) return;
    const wire = JSON.stringify(envelope);
    this.#socket.send(wire);
    this.#trace("out", wire, clear);
  }

  #trace(direction: TracedFrame["direction"], wire: string, clear = wire): void {
    const { trace } = this.#options;
    if (trace) guard(() => trace({ direction, wire, clear }));
  }

  #read(text: string): void {
    if (this.#isOver) return;
    let envelope: Envelope;
    try {
      envelope = this.#parse(text);
    } catch (error) {
      this.#hooks.problem(asProblem(error));
      return;
    }
    const isSealed = this.#cipher && envelope.event === "encrypted";
    if (!isSealed) this.#trace("in", text);
    if (!this.#isConnected && envelope.event === "connected") {
      this.#connect(envelope.data as Connected);
    } else if (!this.#cipher) {
      this.#deliver(envelope);
    } else if (isSealed) {
      // Opened side by side, and delivered in the order in which they came.
      const opened = this.#cipher.then((cipher) => cipher.open(envelope.data as Sealed));
      opened.catch(() => {});
      this.#afterOpening(() =>
        opened.then((inner) => {
          this.#trace("in", text, inner);
          this.#deliver(this.#parse(inner));
        }),
      );
    } else {
      // 6.5: everything from the server is sealed. Whoever sends this is not the gateway.
      this.#hooks.problem(new SignalError("encryption", `an event that is not sealed was dropped: ${envelope.event}`));
    }
  }

  #parse(text: string): Envelope {
    const envelope = this.#options.parse(text) as Envelope | null;
    if (typeof envelope?.event !== "string") throw new SignalError("protocol", "a message without an event was dropped");
    return envelope;
  }

  #connect(data: Connected): void {
    this.#isConnected = true;
    this.#deadline.clear();
    const { serverPublicKey, salt } = data;
    if (this.#keys && serverPublicKey && salt) {
      this.#cipher = this.#keys.agree(serverPublicKey, salt);
      const cipher = this.#cipher;
      this.#afterOpening(() => cipher.then(() => this.#hooks.connected(data, true)));
    } else if (this.#options.encryption === "required") {
      this.end(new SignalError("encryption", "the gateway did not agree to encrypt"));
    } else {
      this.#hooks.connected(data, false);
    }
  }

  #deliver(envelope: Envelope): void {
    if (this.#isOver) return;
    if (envelope.event === "error") this.#serverText = String((envelope.data as { message?: unknown })?.message ?? "");
    this.#hooks.event(envelope);
  }

  /** Runs what comes after everything that is being opened. A message that does not open ends the connection: what it was, a sync brings. */
  #afterOpening(run: () => void | Promise<void>): void {
    if (!this.#cipher && !this.#opening) {
      void run();
      return;
    }
    const opening = (this.#opening ?? Promise.resolve())
      .then(run)
      .catch((error: unknown) =>
        this.#finish(1006, "", new SignalError("encryption", "a message does not open", { cause: error })),
      )
      .then(() => {
        if (this.#opening === opening) this.#opening = undefined;
      });
    this.#opening = opening;
  }

  #finish(code: number, reason: string, error?: SignalError): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#deadline.clear();
    this.#detach();
    this.#hooks.ended({ code, reason, serverText: this.#serverText, retryAfterMs: this.#retryAfterMs, error });
  }

  #detach(): void {
    const socket = this.#socket;
    if (!socket) return;
    // `onerror` stays: the package `ws` throws what nobody listens to.
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.onerror = () => {};
    if (socket.readyState < 2) socket.close(1000);
  }
}

/** Refuses what the gateway would close the connection for (1.4). */
export function checkLength(envelope: Envelope): void {
  const bytes = new TextEncoder().encode(JSON.stringify(envelope)).length;
  // Sealing adds a third, and the envelope around it.
  if ((bytes + 16) * (4 / 3) + 100 > LONGEST) {
    throw new SignalError("invalid", `a message of ${bytes} bytes is too long for the gateway`);
  }
}

function asProblem(error: unknown): SignalError {
  return error instanceof SignalError ? error : new SignalError("protocol", String(error), { cause: error });
}
