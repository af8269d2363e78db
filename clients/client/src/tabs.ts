// One connection for all pages of a browser. The page that holds a Web Lock leads: it has the connection, and tells the others by a
// BroadcastChannel what to show. When it closes, or its process dies, the browser gives the lock to another one, which connects.
//
// Where a browser lacks one of the two, or the leading page does not answer (a frozen page keeps its lock), each page connects by itself.

import type { SharedState } from "./client.js";
import type { Calls } from "./engine.js";
import { type ErrorDetails, type ErrorCode, SignalError } from "./errors.js";
import type { Envelope } from "./session.js";

/** What the client does for the pages. */
export interface TabHost {
  /** Connect here. Repeating it changes nothing. */
  lead(): void;
  /** Another page has the connection: end the one here. */
  follow(): void;
  /** Of the connection here; undefined where there is none. */
  calls(owner: string): Calls | undefined;
  /** A page is gone. */
  forget(owner: string): void;
  state(): SharedState;
  show(state: SharedState): void;
  event(envelope: Envelope): void;
  /** Another page leads from here on: it knows nothing of this one. */
  led(): void;
  signedOut(): void;
}

/** What the pages do for the client. */
export interface TabLink {
  /** Asks the page that leads. */
  readonly calls: Calls;
  changed(): void;
  event(envelope: Envelope): void;
  signOut(): void;
  close(): void;
}

export type Tabs = (key: string, host: TabHost) => TabLink;

export interface TabsOptions {
  /** How long the leading page may take to answer before this one connects by itself. Default 3,000. */
  readonly answerMs?: number;
}

type Message =
  | { readonly kind: "hello" | "bye"; readonly from: string }
  | { readonly kind: "leads"; readonly from: string }
  | { readonly kind: "signed_out" }
  | { readonly kind: "taken"; readonly to: string }
  | { readonly kind: "state"; readonly state: SharedState }
  | { readonly kind: "event"; readonly envelope: Envelope }
  | { readonly kind: "call"; readonly from: string; readonly id: number; readonly name: keyof Calls; readonly args: readonly unknown[] }
  | { readonly kind: "answer"; readonly to: string; readonly id: number; readonly value?: unknown; readonly error?: PackedError };

interface PackedError {
  readonly code: ErrorCode;
  readonly message: string;
  readonly details: ErrorDetails;
}

interface Asked {
  readonly name: keyof Calls;
  readonly args: readonly unknown[];
  readonly resolve: (value: any) => void;
  readonly reject: (error: unknown) => void;
}

export function sharedTabs({ answerMs = 3_000 }: TabsOptions = {}): Tabs {
  return (key, host) => {
    const locks = globalThis.navigator?.locks;
    if (!locks || typeof BroadcastChannel === "undefined") return alone(host);
    return new Group(`signal:${key}`, host, locks, answerMs);
  };
}

function alone(host: TabHost): TabLink {
  host.lead();
  const calls = host.calls("self") as Calls;
  return { calls, changed() {}, event() {}, signOut() {}, close() {} };
}

class Group implements TabLink {
  readonly calls: Calls;
  readonly #host: TabHost;
  readonly #channel: BroadcastChannel;
  readonly #self = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
  readonly #release = new AbortController();
  readonly #asked = new Map<number, Asked>();
  readonly #answerMs: number;
  #lastId = 0;
  #leads = false;
  #isTelling = false;
  #silence: ReturnType<typeof setTimeout> | undefined;

  constructor(name: string, host: TabHost, locks: LockManager, answerMs: number) {
    this.#host = host;
    this.#answerMs = answerMs;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }: MessageEvent<Message>) => this.#take(data);
    this.calls = new Proxy({} as Calls, {
      get: (_, call: keyof Calls) => (...args: unknown[]) => this.#ask(call, args),
    });
    // The first page has the lock at once, and nobody to greet.
    void locks.request(name, { ifAvailable: true }, async (lock) => lock && this.#lead()).then(() => {
      if (this.#release.signal.aborted || this.#leads) return undefined;
      this.#greet();
      return locks.request(name, { signal: this.#release.signal }, () => this.#lead());
    }).catch(() => {});
  }

  changed(): void {
    if (!this.#leads || this.#isTelling) return;
    this.#isTelling = true;
    queueMicrotask(() => {
      this.#isTelling = false;
      this.#tell();
    });
  }

  event(envelope: Envelope): void {
    if (this.#leads) this.#post({ kind: "event", envelope });
  }

  signOut(): void {
    this.#post({ kind: "signed_out" });
  }

  close(): void {
    this.#post({ kind: "bye", from: this.#self });
    clearTimeout(this.#silence);
    this.#release.abort();
    this.#channel.close();
    for (const { reject } of this.#asked.values()) reject(new SignalError("closed", "the client was closed"));
    this.#asked.clear();
  }

  /** Leads until it closes: the lock is held as long as this is not settled. */
  async #lead(): Promise<void> {
    if (this.#release.signal.aborted) return;
    clearTimeout(this.#silence);
    this.#leads = true;
    this.#host.lead();
    this.#post({ kind: "leads", from: this.#self });
    this.#tell();
    // What the last one did not answer.
    for (const [id, { name, args }] of this.#asked) void this.#run(this.#self, id, name, args);
    await new Promise<void>((resolve) => this.#release.signal.addEventListener("abort", () => resolve()));
  }

  /** Asks the leading page what to show. */
  #greet(): void {
    this.#post({ kind: "hello", from: this.#self });
    this.#expect();
  }

  #expect(): void {
    if (this.#leads) return;
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => {
      this.#host.lead();
      for (const [id, { name, args }] of this.#asked) void this.#run(this.#self, id, name, args);
    }, this.#answerMs);
  }

  #ask(name: keyof Calls, args: readonly unknown[]): Promise<unknown> {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#asked.set(id, { name, args, resolve, reject });
      this.#post({ kind: "call", from: this.#self, id, name, args });
      // The answer may come late; that the page is there it says at once.
      this.#expect();
    });
  }

  async #run(from: string, id: number, name: keyof Calls, args: readonly unknown[]): Promise<void> {
    const calls = this.#host.calls(from === this.#self ? "self" : from);
    if (!calls) return;
    try {
      const value: unknown = await (calls[name] as (...args: readonly unknown[]) => unknown)(...args);
      this.#answer(from, { kind: "answer", to: from, id, value });
    } catch (error) {
      this.#answer(from, { kind: "answer", to: from, id, error: pack(error) as PackedError });
    }
  }

  #answer(from: string, message: Message): void {
    if (from === this.#self) this.#take(message);
    else this.#post(message);
  }

  #take(message: Message): void {
    switch (message.kind) {
      case "hello":
        if (this.#leads) this.#tell();
        break;
      case "bye":
        if (this.#leads) this.#host.forget(message.from);
        break;
      case "leads":
        if (this.#leads) break;
        this.#host.follow();
        this.#host.led();
        for (const [id, { name, args }] of this.#asked) this.#post({ kind: "call", from: this.#self, id, name, args });
        break;
      case "signed_out":
        this.#host.signedOut();
        break;
      case "state":
        if (this.#leads) break;
        clearTimeout(this.#silence);
        this.#host.follow();
        this.#host.show({
          connection: { ...message.state.connection, error: unpack(message.state.connection.error) },
          inbox: { ...message.state.inbox, error: unpack(message.state.inbox.error) },
        });
        break;
      case "event":
        if (!this.#leads) this.#host.event(message.envelope);
        break;
      case "call":
        if (!this.#leads) break;
        this.#post({ kind: "taken", to: message.from });
        void this.#run(message.from, message.id, message.name, message.args);
        break;
      case "taken":
        if (message.to === this.#self) clearTimeout(this.#silence);
        break;
      case "answer": {
        const asked = message.to === this.#self ? this.#asked.get(message.id) : undefined;
        this.#asked.delete(message.to === this.#self ? message.id : -1);
        if (message.error) asked?.reject(unpack(message.error));
        else asked?.resolve(message.value);
        break;
      }
    }
  }

  #tell(): void {
    const { connection, inbox } = this.#host.state();
    const packed = { connection: { ...connection, error: pack(connection.error) }, inbox: { ...inbox, error: pack(inbox.error) } };
    this.#post({ kind: "state", state: packed as unknown as SharedState });
  }

  #post(message: Message): void {
    if (!this.#release.signal.aborted) this.#channel.postMessage(message);
  }
}

/** An error's members do not survive the way between pages. */
function pack(error: unknown): PackedError | null {
  if (error === null) return null;
  if (!(error instanceof SignalError)) return { code: "invalid", message: String(error), details: {} };
  const { code, message, serverText, closeCode, status, problem, retryAfterMs } = error;
  const details = Object.fromEntries(Object.entries({ serverText, closeCode, status, problem, retryAfterMs }).filter(([, value]) => value !== undefined));
  return { code, message, details };
}

function unpack(packed: unknown): SignalError | null {
  if (packed === null || packed === undefined) return null;
  const { code, message, details } = packed as PackedError;
  return new SignalError(code, message, details);
}
