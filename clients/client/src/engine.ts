// What runs in the one page that holds the connection: connection, inbox and rooms, wired together.

import { Connection, type ConnectionOptions, type ConnectionState } from "./connection.js";
import { SignalError } from "./errors.js";
import { Inbox, type InboxOptions } from "./inbox/inbox.js";
import { type Fetch, Rest } from "./rest.js";
import { type JoinAnswer, Rooms } from "./rooms.js";
import { type Envelope, checkLength } from "./session.js";
import { type TokenSource, Tokens } from "./tokens.js";

export interface EngineOptions extends ConnectionOptions, InboxOptions {
  readonly token: TokenSource;
  readonly restUrl: string;
  readonly fetch: Fetch;
}

export interface EngineHooks {
  connection(state: ConnectionState): void;
  event(envelope: Envelope): void;
  error(error: SignalError): void;
}

/** What a page can ask of the page that holds the connection. Each may be repeated without harm. */
export interface Calls {
  connect(): void;
  back(): void;
  read(ids: readonly string[]): Promise<void>;
  readUpTo(seq?: number): Promise<void>;
  remove(id: string): Promise<void>;
  loadMore(): Promise<void>;
  join(rooms: readonly string[]): Promise<JoinAnswer>;
  leave(rooms: readonly string[]): void;
  send(event: string, data: unknown): void;
}

export class Engine {
  readonly connection: Connection;
  readonly inbox: Inbox;
  readonly rooms: Rooms;

  constructor(options: EngineOptions, hooks: EngineHooks) {
    const tokens = new Tokens(options.token, options.clock);
    const rest = new Rest(options.restUrl, tokens, options.fetch, options.clock, options.parse);
    const send = (envelope: Envelope): boolean => this.connection.send(envelope);
    this.rooms = new Rooms(options.clock, send);
    this.connection = new Connection(options, tokens, {
      changed: (state) => hooks.connection(state),
      connected: ({ userId }) => {
        this.rooms.connected();
        void this.inbox.connected(userId);
      },
      event: (envelope) => {
        if (this.rooms.event(envelope)) return;
        this.inbox.event(envelope);
        if (envelope.event === "error") {
          const text = String((envelope.data as { message?: unknown })?.message);
          hooks.error(new SignalError("server", text, { serverText: text }));
        } else {
          hooks.event(envelope);
        }
      },
      lost: () => this.inbox.lost(),
      error: (error) => hooks.error(error),
    });
    this.inbox = new Inbox(options, rest, {
      isOnline: () => this.connection.isOnline,
      send,
      drop: (error) => this.connection.drop(error),
      error: (error) => hooks.error(error),
    });
  }

  /** What a page asks; `owner` is its name. */
  calls(owner: string): Calls {
    const { connection, inbox, rooms } = this;
    return {
      connect: () => connection.connect(),
      back: () => connection.back(),
      read: (ids) => inbox.read(ids),
      readUpTo: (seq) => inbox.readUpTo(seq),
      remove: (id) => inbox.remove(id),
      loadMore: () => inbox.loadMore(),
      join: (names) => rooms.join(names, owner),
      leave: (names) => rooms.leave(names, owner),
      send: (event, data) => {
        const envelope = { event, data };
        checkLength(envelope);
        if (!connection.send(envelope)) throw new SignalError("closed", "there is no connection");
      },
    };
  }

  close(): void {
    this.connection.close();
    this.inbox.close();
    this.rooms.close();
  }
}
