// The client that applications hold: the same whether the connection is in this page or in another one.

import { type BackoffBounds, defaultBackoff } from "./backoff.js";
import { type Clock, systemClock } from "./clock.js";
import { type ConnectionState, idle } from "./connection.js";
import { type Calls, Engine, type EngineOptions } from "./engine.js";
import { SignalError } from "./errors.js";
import type { ServerEvents } from "./generated/events.js";
import { type InboxState, emptyInbox } from "./inbox/inbox.js";
import { type Page, browserPage } from "./page.js";
import type { Fetch } from "./rest.js";
import { type JoinAnswer, checkRooms } from "./rooms.js";
import type { Encryption, Envelope, TracedFrame, WebSocketLike } from "./session.js";
import type { InboxStorage } from "./storage.js";
import { type Store, Value, guard } from "./store.js";
import type { TabLink, Tabs } from "./tabs.js";
import type { TokenSource } from "./tokens.js";

export interface ClientOptions {
  /** The gateway: `wss://example.com/stream`, or `https://example.com`, to which `/stream` is added. In a page it may be relative. */
  readonly url: string;
  /** Called before every connect and before a token ends. */
  readonly token: TokenSource;
  /** Whether messages are sealed between the client and the gateway. Default `optional`: where the gateway agrees. */
  readonly encryption?: Encryption;
  /** Connects at once. Default true. */
  readonly connect?: boolean;
  /** Where REST is. Default the origin of `url`. */
  readonly restUrl?: string;
  /** A name of the person, such as the user id. Needed for `storage` and `tabs`: it keeps people apart who use one browser. */
  readonly user?: string;
  /** Keeps the newest page across reloads, such as `indexedDbStorage()`. */
  readonly storage?: InboxStorage;
  /** One connection for all pages of a browser: `sharedTabs()`. */
  readonly tabs?: Tabs;
  /** Notifications of a page, 1 to 100. Default 50. */
  readonly pageSize?: number;
  /** Most notifications that are held. Default 1,000. */
  readonly maxItems?: number;
  readonly backoff?: Partial<BackoffBounds>;
  /** From the opening to `connected`. Default 20,000. */
  readonly connectTimeoutMs?: number;
  /** After so long without a message the client asks whether the gateway is there. `Infinity`: never. Default 60,000. */
  readonly probeMs?: number;
  /** How long a read or a deletion that cannot be sent is tried. Default 30,000. */
  readonly changeTimeoutMs?: number;
  /** Reads JSON. Default `JSON.parse`, which rounds integers beyond 2^53 in `data`. */
  readonly parse?: (text: string) => unknown;
  /** Makes a socket; for Node before 22: `fromWs(WebSocket)` with the package `ws`. */
  readonly socket?: (url: string) => WebSocketLike;
  /** Called with each message of the connection, for a page that shows them. With `tabs` in the page that holds the connection. */
  readonly trace?: (frame: TracedFrame) => void;
  readonly fetch?: Fetch;
  readonly clock?: Clock;
  readonly page?: Page;
}

/** The inbox of the person who is connected. */
export interface InboxStore extends Store<InboxState> {
  /** Marks these as read. It is shown at once, and taken back where the promise rejects. */
  read(ids: readonly string[]): Promise<void>;
  /** Marks all that are known as read. */
  readAll(): Promise<void>;
  /** Marks all up to this `seq` as read. */
  readUpTo(seq: number): Promise<void>;
  /** Deletes one. It is hidden at once, and shown again where the promise rejects. */
  remove(id: string): Promise<void>;
  /** Loads older ones. */
  loadMore(): Promise<void>;
}

/** Events of the gateway that a page may watch. They come as they are: a notification may come twice, or in another order. */
export type WatchedEvents = Pick<ServerEvents, "resync" | Extract<keyof ServerEvents, `notification:${string}`>>;

/** `Events` names the application's own events and their data. */
export interface Client<Events extends object = Record<string, unknown>> {
  readonly connection: Store<ConnectionState>;
  readonly inbox: InboxStore;
  /** Connects; does nothing where it is connected or about to be. */
  connect(): void;
  /** Closes the connection, until `connect()`. */
  close(): void;
  /** Closes, and deletes what is stored of this person in the browser, in every page. */
  signOut(): Promise<void>;
  /** Calls `handler` with the data of each event of this name. Returns what ends that. */
  on<Name extends keyof (Events & WatchedEvents) & string>(event: Name, handler: (data: (Events & WatchedEvents)[Name]) => void): () => void;
  /** Calls `handler` with each error, also those after which the client goes on. */
  onError(handler: (error: SignalError) => void): () => void;
  /** Joins rooms, on this connection and every later one. */
  join(...rooms: string[]): Promise<JoinAnswer>;
  leave(...rooms: string[]): Promise<void>;
  /** Sends an event of the application. The gateway takes it, answers nothing, and passes it to nobody unless it is told to. */
  send<Name extends keyof Events & string>(event: Name, data: Events[Name]): Promise<void>;
}

/** What pages of one browser share. */
export interface SharedState {
  readonly connection: ConnectionState;
  readonly inbox: InboxState;
}

const SELF = "self";

export function createClient<Events extends object = Record<string, unknown>>(options: ClientOptions): Client<Events> {
  const client = new SignalClient(options);
  if (options.connect !== false) client.connect();
  return client as unknown as Client<Events>;
}

class SignalClient {
  readonly connection = new Value<ConnectionState>(idle);
  readonly inbox: InboxStore;
  readonly #inbox = new Value<InboxState>(emptyInbox);
  readonly #options: EngineOptions;
  readonly #tabs: Tabs | undefined;
  readonly #handlers = new Map<string, Set<(data: any) => void>>();
  readonly #rooms = new Set<string>();
  #engine: Engine | undefined;
  #link: TabLink | undefined;
  #isStarted = false;
  #unwatch: (() => void) | undefined;
  #userId: string | null = null;

  constructor(options: ClientOptions) {
    this.#options = resolve(options);
    this.#tabs = options.tabs;
    const ask = this.#ask.bind(this);
    this.inbox = {
      subscribe: this.#inbox.subscribe,
      getSnapshot: this.#inbox.getSnapshot,
      read: (ids) => ask((calls) => calls.read(ids)),
      readAll: () => ask((calls) => calls.readUpTo()),
      readUpTo: (seq) => ask((calls) => calls.readUpTo(seq)),
      remove: (id) => ask((calls) => calls.remove(id)),
      loadMore: () => ask((calls) => calls.loadMore()),
    };
  }

  connect(): void {
    if (this.#isStarted) {
      void this.#ask((calls) => calls.connect());
      return;
    }
    this.#isStarted = true;
    if (!this.#tabs) {
      this.#lead();
      return;
    }
    this.#link = this.#tabs(this.#options.storageKey, {
      lead: () => this.#lead(),
      follow: () => this.#stop(),
      calls: (owner) => this.#engine?.calls(owner),
      forget: (owner) => this.#engine?.rooms.forget(owner),
      state: () => ({ connection: this.connection.getSnapshot(), inbox: this.#inbox.getSnapshot() }),
      show: ({ connection, inbox }) => {
        this.#showConnection(connection);
        this.#showInbox(inbox);
      },
      event: (envelope) => this.#emit(envelope),
      led: () => this.#joinAgain(),
      signedOut: () => void this.#forget(),
    });
    // The page that holds the connection may be hidden, and its timers late.
    this.#unwatch = this.#options.page.watch(() => {
      if (!this.#engine) void this.#ask((calls) => calls.back());
    });
  }

  close(): void {
    if (!this.#isStarted) return;
    this.#isStarted = false;
    this.#unwatch?.();
    this.#stop();
    this.#link?.close();
    this.#link = undefined;
    this.connection.set({ ...idle, status: "closed", userId: this.#userId });
  }

  async signOut(): Promise<void> {
    this.#link?.signOut();
    await this.#forget();
  }

  async #forget(): Promise<void> {
    const engine = this.#engine;
    const forgotten = engine?.inbox.forget();
    this.close();
    this.#userId = null;
    this.#rooms.clear();
    this.connection.set({ ...idle, status: "closed" });
    this.#inbox.set(emptyInbox);
    await (forgotten ?? this.#options.storage?.clear(this.#options.storageKey));
  }

  on(event: string, handler: (data: any) => void): () => void {
    const handlers = this.#handlers.get(event) ?? new Set();
    this.#handlers.set(event, handlers);
    const own = (data: unknown): void => handler(data);
    handlers.add(own);
    return () => void handlers.delete(own);
  }

  onError(handler: (error: SignalError) => void): () => void {
    return this.on("error", handler);
  }

  async join(...rooms: string[]): Promise<JoinAnswer> {
    checkRooms(rooms);
    for (const room of rooms) this.#rooms.add(room);
    const answer = await this.#ask((calls) => calls.join(rooms));
    for (const room of answer.refused) this.#rooms.delete(room);
    return answer;
  }

  async leave(...rooms: string[]): Promise<void> {
    for (const room of rooms) this.#rooms.delete(room);
    await this.#ask((calls) => calls.leave(rooms));
  }

  async send(event: string, data: unknown): Promise<void> {
    await this.#ask((calls) => calls.send(event, data));
  }

  async #ask<T>(run: (calls: Calls) => T | Promise<T>): Promise<T> {
    const calls = this.#engine?.calls(SELF) ?? this.#link?.calls;
    if (!calls) throw new SignalError("closed", "the client is closed");
    return run(calls);
  }

  #lead(): void {
    if (this.#engine) return;
    const isShown = this.#inbox.getSnapshot().status === "ready";
    const engine = new Engine({ ...this.#options, isShown }, {
      connection: (state) => {
        if (this.#engine === engine) this.#showConnection(state);
      },
      event: (envelope) => {
        this.#emit(envelope);
        this.#link?.event(envelope);
      },
      error: (error) => this.#emit({ event: "error", data: error }),
    });
    this.#engine = engine;
    engine.inbox.state.subscribe(() => {
      if (this.#engine === engine) this.#showInbox(engine.inbox.state.getSnapshot());
    });
    engine.connection.connect();
    this.#joinAgain();
  }

  #stop(): void {
    const engine = this.#engine;
    this.#engine = undefined;
    engine?.close();
  }

  #joinAgain(): void {
    if (this.#rooms.size > 0) void this.#ask((calls) => calls.join([...this.#rooms])).catch(() => {});
  }

  #showConnection(state: ConnectionState): void {
    if (state.userId !== null) {
      if (this.#userId !== null && this.#userId !== state.userId) this.#inbox.set(emptyInbox);
      this.#userId = state.userId;
    }
    this.connection.set(state);
    this.#link?.changed();
  }

  #showInbox(state: InboxState): void {
    // A page that takes the connection over begins with an empty one: what is shown stays until it is loaded.
    if (state.status === "loading" && state.items.length === 0 && this.#inbox.getSnapshot().status === "ready" && state !== emptyInbox) return;
    this.#inbox.set(state);
    this.#link?.changed();
  }

  #emit({ event, data }: Envelope): void {
    for (const handler of [...(this.#handlers.get(event) ?? [])]) guard(() => handler(data));
  }
}

function resolve(options: ClientOptions): EngineOptions {
  const { location, WebSocket } = globalThis as { location?: Location; WebSocket?: new (url: string) => WebSocketLike };
  const url = new URL(options.url, location?.href);
  url.protocol = url.protocol.replace("http", "ws");
  if (url.pathname === "/") url.pathname = "/stream";
  const restUrl = (options.restUrl ?? url.origin.replace(/^ws/, "http")).replace(/\/$/, "");
  if ((options.storage || options.tabs) && !options.user) {
    throw new SignalError("invalid", "`storage` and `tabs` need `user`");
  }
  if (!options.socket && !WebSocket) {
    throw new SignalError("invalid", "there is no WebSocket here: give `socket`, in Node `fromWs(WebSocket)` with the package ws");
  }
  return {
    url: url.href,
    restUrl,
    token: options.token,
    encryption: options.encryption ?? "optional",
    socket: options.socket ?? ((to) => new WebSocket!(to)),
    fetch: options.fetch ?? ((to, init) => globalThis.fetch(to, init)),
    clock: options.clock ?? systemClock,
    page: options.page ?? browserPage(),
    backoff: { ...defaultBackoff, ...options.backoff },
    connectTimeoutMs: options.connectTimeoutMs ?? 20_000,
    probeMs: options.probeMs ?? 60_000,
    changeTimeoutMs: options.changeTimeoutMs ?? 30_000,
    pageSize: Math.min(100, Math.max(1, options.pageSize ?? 50)),
    maxItems: options.maxItems ?? 1_000,
    storage: options.storage,
    storageKey: `${url.href}|${options.user ?? ""}`,
    trace: options.trace,
    parse: options.parse ?? (JSON.parse as (text: string) => unknown),
  };
}
