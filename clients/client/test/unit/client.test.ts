// The client as applications hold it: one page, several pages of a browser, and what is stored.

import "fake-indexeddb/auto";
import { afterEach, beforeEach, describe, expect, expectTypeOf, test, vi } from "vitest";
import { type Client, type ClientOptions, type InboxStorage, SignalError, createClient, fromWs, indexedDbStorage, sharedTabs } from "../../src/index.js";
import type { InboxRecord } from "../../src/storage.js";
import type { Notification } from "../../src/wire.js";
import { FakeSocket, settle } from "./fakes.js";

/** A gateway that answers at once. */
class Answers {
  readonly sockets: FakeSocket[] = [];
  readonly requests: string[] = [];
  rows: Notification[] = [];
  version = 0;
  userId = "17";
  /** So many joins are answered with an error. */
  undecided = 0;

  readonly socket = (url: string): FakeSocket => {
    const socket = new FakeSocket(url);
    this.sockets.push(socket);
    const send = socket.send.bind(socket);
    socket.send = (text) => {
      send(text);
      const { event, data, id } = socket.sent.at(-1)!;
      queueMicrotask(() => {
        if (event === "authenticate") socket.push("connected", { id: `c${this.sockets.length}`, userId: this.userId, time: "" });
        if (event === "join" && data.rooms.includes("undecided") && this.undecided-- > 0) socket.push("error", { message: "Try again later" }, id);
        else if (event === "join") socket.push("joined", { rooms: data.rooms.filter((room: string) => room !== "secret"), refused: data.rooms.filter((room: string) => room === "secret") }, id);
        if (event === "notification:sync") socket.push("notification:synced", { count: 0, cursor: data.after, epoch: "e", unreadCount: this.unread, version: this.version, more: false });
      });
    };
    queueMicrotask(() => socket.open());
    return socket;
  };

  get unread(): number {
    return this.rows.filter(({ isRead }) => !isRead).length;
  }

  readonly fetch = async (url: string, init: RequestInit): Promise<Response> => {
    this.requests.push(`${init.method} ${new URL(url).pathname}`);
    if (init.method === "DELETE") {
      const id = url.split("/").at(-1)!;
      this.rows = this.rows.filter((row) => row.id !== id);
      this.version++;
      this.push("notification:deleted", { ids: [id], unreadCount: this.unread, version: this.version });
      return new Response(null, { status: 204 });
    }
    return Response.json({ data: this.rows, next: null, epoch: "e", unreadCount: this.unread, version: this.version });
  };

  /** To the socket that is open. */
  push(event: string, data: unknown): void {
    for (const socket of this.sockets) if (socket.readyState === 1) socket.push(event, data);
  }

  create(): void {
    const seq = this.rows.length + 1;
    const notification = { id: `n${seq}`, seq, type: "T", title: `${seq}`, content: "", data: {}, actorId: null, recipientId: this.userId, locale: "en", isRead: false, readAt: null, createdAt: "" };
    this.rows.unshift(notification);
    this.version++;
    this.push("notification:created", { notification, previousSeq: seq - 1, unreadCount: this.unread, version: this.version });
  }

  get open(): number {
    return this.sockets.filter(({ readyState }) => readyState === 1).length;
  }
}

/** The browser's locks, as far as pages use them: one holder, others in their order. */
class FakeLocks {
  #held = new Set<string>();
  #queue: { name: string; start: () => void }[] = [];

  async request(name: string, options: { ifAvailable?: boolean; signal?: AbortSignal }, run: (lock: object | null) => unknown): Promise<unknown> {
    if (this.#held.has(name)) {
      if (options.ifAvailable) return run(null);
      await new Promise<void>((resolve, reject) => {
        this.#queue.push({ name, start: resolve });
        options.signal?.addEventListener("abort", () => reject(new Error("aborted")));
      });
      if (options.signal?.aborted) throw new Error("aborted");
    }
    this.#held.add(name);
    try {
      return await run({});
    } finally {
      this.#held.delete(name);
      const next = this.#queue.findIndex((each) => each.name === name);
      if (next >= 0) this.#queue.splice(next, 1)[0]!.start();
    }
  }
}

const clients: Client[] = [];
let gateway: Answers;

function page(options: Partial<ClientOptions> = {}): Client {
  const { socket, fetch } = gateway;
  const client = createClient({ url: "https://example.com", token: () => "token", encryption: "off", socket, fetch, user: "17", ...options });
  clients.push(client);
  return client;
}

async function until(what: string, isSo: () => boolean): Promise<void> {
  const end = Date.now() + 5_000;
  while (!isSo()) {
    if (Date.now() > end) throw new Error(`not in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** Until what the client stores is stored. */
async function stored(storage: InboxStorage): Promise<void> {
  for (const end = Date.now() + 5_000; !(await storage.load("wss://example.com/stream|17")) && Date.now() < end; ) await settle(1);
}

const seqs = (client: Client): number[] => client.inbox.getSnapshot().items.map(({ seq }) => seq);
const isReady = (client: Client) => (): boolean => client.inbox.getSnapshot().status === "ready" && client.connection.getSnapshot().status === "online";

beforeEach(() => {
  gateway = new Answers();
});
afterEach(async () => {
  for (const client of clients.splice(0)) await client.signOut();
  vi.unstubAllGlobals();
});

test("https becomes wss, and /stream is added where no path is named", async () => {
  const client = page();
  await until("it is ready", isReady(client));
  expect(gateway.sockets[0]!.url).toBe("wss://example.com/stream");
  expect(gateway.requests).toEqual(["GET /notifications"]);
});

test("the snapshot is the same object until something changes, and listeners are called when it did", async () => {
  const client = page();
  await until("it is ready", isReady(client));
  await settle();
  const before = client.inbox.getSnapshot();
  let calls = 0;
  const end = client.inbox.subscribe(() => calls++);
  expect(client.inbox.getSnapshot()).toBe(before);
  gateway.create();
  gateway.create();
  await settle();
  expect([calls, seqs(client)]).toEqual([1, [2, 1]]);
  end();
  gateway.create();
  await settle();
  expect(calls).toBe(1);
});

test("a handler that throws breaks nothing, and is reported", async () => {
  const reported: unknown[] = [];
  vi.stubGlobal("reportError", (error: unknown) => reported.push(error));
  const client = page();
  await until("it is ready", isReady(client));
  const seen: unknown[] = [];
  client.on("order:updated", () => {
    throw new Error("the application's");
  });
  client.on("order:updated", (data) => seen.push(data));
  gateway.push("order:updated", { orderId: "DH-1001" });
  expect([seen, reported]).toEqual([[{ orderId: "DH-1001" }], [new Error("the application's")]]);
  expect(client.connection.getSnapshot().status).toBe("online");
});

test("data of events has the types that the application and the documents give it", () => {
  const client = createClient<{ "order:updated": { orderId: string } }>({ url: "wss://x", token: () => null, connect: false, socket: gateway.socket });
  client.on("order:updated", (data) => expectTypeOf(data).toEqualTypeOf<{ orderId: string }>());
  client.on("notification:created", (data) => expectTypeOf(data.notification).toEqualTypeOf<Notification>());
  // @ts-expect-error: no such event
  client.on("order:deleted", () => {});
  // @ts-expect-error: other data
  void client.send("order:updated", { orderId: 1 }).catch(() => {});
});

test("join says which rooms were refused, and joins the others again on the next connection", async () => {
  const client = page();
  await until("it is ready", isReady(client));
  expect(await client.join("merchant:42", "secret")).toEqual({ acknowledged: true, rooms: ["merchant:42"], refused: ["secret"] });
  gateway.sockets[0]!.end(4009);
  await until("it is back", () => gateway.sockets.length === 2 && isReady(client)());
  expect(gateway.sockets[1]!.sent.find(({ event }) => event === "join")!.data).toEqual({ rooms: ["merchant:42"] });
  await client.leave("merchant:42");
  expect(gateway.sockets[1]!.sent.at(-1)).toMatchObject({ event: "leave", data: { rooms: ["merchant:42"] } });
});

test("a join that the gateway cannot decide is tried again", async () => {
  gateway.undecided = 1;
  const client = page();
  await until("it is ready", isReady(client));
  expect(await client.join("undecided")).toMatchObject({ acknowledged: false, rooms: ["undecided"] });
  const joins = () => gateway.sockets[0]!.sent.filter(({ event }) => event === "join").length;
  await until("it was asked again", () => joins() === 2);
});

test("names of rooms that the gateway drops without a word are refused with a word (5.1)", async () => {
  const client = page();
  for (const name of ["", "ws:secret", "x".repeat(257)]) await expect(client.join(name)).rejects.toMatchObject({ code: "invalid" });
});

test("a change is sent also where the page is left with the same click; a page of the list is not", async () => {
  const asked: [string, boolean][] = [];
  const client = page({
    fetch: (url, init) => {
      asked.push([init.method!, init.keepalive === true]);
      return gateway.fetch(url, init);
    },
  });
  gateway.create();
  await until("it is ready", isReady(client));
  await client.inbox.remove("n1");
  expect(asked).toEqual([["GET", false], ["DELETE", true]]);
});

test("calls of a closed client say so", async () => {
  const client = page({ connect: false });
  await expect(client.inbox.readAll()).rejects.toMatchObject({ code: "closed", advice: "Call connect() first." });
  expect(client.connection.getSnapshot().status).toBe("idle");
});

test("options that cannot work are refused with what to do", () => {
  const options = { url: "wss://example.com", token: () => "token", fetch: gateway.fetch };
  expect(() => createClient({ ...options, socket: gateway.socket, tabs: sharedTabs() })).toThrow(SignalError);
  vi.stubGlobal("WebSocket", undefined);
  expect(() => createClient(options)).toThrow("fromWs");
});

test("a socket of ws hands the gateway's Retry-After on, and is ended", () => {
  const listeners: Record<string, (...args: unknown[]) => void> = {};
  class Ws extends FakeSocket {
    isTerminated = false;
    on(event: string, listener: (...args: unknown[]) => void): void {
      listeners[event] = listener;
    }
    terminate(): void {
      this.isTerminated = true;
    }
  }
  const socket = fromWs(Ws)("ws://gateway") as Ws;
  const hints: unknown[] = [];
  socket.onerror = (event) => hints.push(event);
  listeners["unexpected-response"]!({}, { headers: { "retry-after": "7" } });
  expect([hints, socket.isTerminated]).toEqual([[{ retryAfterMs: 7_000 }], true]);
});

describe("storage", () => {
  test("the next page shows the stored list before it is connected", async () => {
    const storage = indexedDbStorage();
    gateway.create();
    const first = page({ storage });
    await until("it is ready", isReady(first));
    first.close();
    await stored(storage);
    const next = page({ storage, token: () => new Promise(() => {}) });
    await until("the list is there", () => seqs(next).length === 1);
    expect(next.connection.getSnapshot().status).toBe("connecting");
  });

  test("signing out deletes it", async () => {
    const storage = indexedDbStorage();
    gateway.create();
    const first = page({ storage });
    await until("it is ready", isReady(first));
    first.close();
    await stored(storage);
    expect(await storage.load("wss://example.com/stream|17")).toMatchObject({ userId: "17" });
    const next = page({ storage });
    await until("it is ready", isReady(next));
    await next.signOut();
    expect(next.inbox.getSnapshot()).toMatchObject({ status: "loading", items: [], unreadCount: 0 });
    expect(await storage.load("wss://example.com/stream|17")).toBe(null);
  });

  test("a storage that fails is reported, and the client goes on without it", async () => {
    const broken = () => Promise.reject(new Error("full"));
    const errors: SignalError[] = [];
    const client = page({ storage: { load: broken, save: broken, clear: async () => {} } });
    client.onError((error) => errors.push(error));
    await until("it is ready", isReady(client));
    expect(errors.map(({ code }) => code)).toContain("storage");
  });
});

describe("several pages", () => {
  beforeEach(() => {
    vi.stubGlobal("navigator", { locks: new FakeLocks() });
  });
  // A busy machine answers late.
  const tabs = sharedTabs({ answerMs: 4_000 });

  test("have one connection, and show the same", async () => {
    const [first, second] = [page({ tabs }), page({ tabs })];
    await until("both are ready", () => isReady(first)() && isReady(second)());
    gateway.create();
    await until("both show it", () => seqs(first).length === 1 && seqs(second).length === 1);
    expect(gateway.sockets.length).toBe(1);
    await second.inbox.remove("n1");
    await until("both hide it", () => seqs(first).length === 0 && seqs(second).length === 0);
  });

  test("get events and rooms through the page that leads", async () => {
    const [first, second] = [page({ tabs }), page({ tabs })];
    await until("both are ready", () => isReady(first)() && isReady(second)());
    const seen: unknown[] = [];
    second.on("order:updated", (data) => seen.push(data));
    expect(await second.join("merchant:42", "secret")).toMatchObject({ rooms: ["merchant:42"], refused: ["secret"] });
    gateway.push("order:updated", 1);
    await until("it came", () => seen.length === 1);
    await expect(second.send("order:seen", "x".repeat(200_000))).rejects.toMatchObject({ code: "invalid" });
  });

  test("go on when the leading page closes: the next one connects, joins its rooms, and its list never empties", async () => {
    const first = page({ tabs });
    await until("it is ready", isReady(first));
    const second = page({ tabs });
    gateway.create();
    await until("both show it", () => seqs(second).length === 1);
    await second.join("merchant:42");
    const lengths = new Set<number>();
    second.inbox.subscribe(() => lengths.add(seqs(second).length));
    first.close();
    await until("it is back", () => gateway.sockets.length === 2 && isReady(second)());
    await until("the room is joined", () => gateway.sockets[1]!.names().includes("join"));
    gateway.create();
    await until("the next one is shown", () => seqs(second).length === 2);
    expect(lengths).not.toContain(0);
    expect(gateway.open).toBe(1);
  });

  test("go on with what they show where the browser has stored less", async () => {
    let stored: InboxRecord | null = null;
    const storage = { load: async () => stored, save: async (_: string, record: InboxRecord) => void (stored ??= record), clear: async () => {} };
    const first = page({ tabs, storage });
    await until("an empty inbox is stored", () => stored !== null);
    const second = page({ tabs, storage });
    gateway.create();
    await until("both show it", () => seqs(second).length === 1);
    const lengths = new Set<number>();
    second.inbox.subscribe(() => lengths.add(seqs(second).length));
    first.close();
    await until("it is back", () => gateway.sockets.length === 2 && isReady(second)());
    gateway.create();
    await until("the next one is shown", () => seqs(second).length === 2);
    expect(lengths).not.toContain(0);
  });

  test("a page that the leading one does not answer connects by itself", async () => {
    const locks = new FakeLocks();
    vi.stubGlobal("navigator", { locks });
    // A frozen page: it has the lock and answers nothing.
    void locks.request("signal:wss://example.com/stream|17", {}, () => new Promise(() => {}));
    const client = page({ tabs: sharedTabs({ answerMs: 100 }) });
    await until("it is ready", isReady(client));
    expect(gateway.sockets.length).toBe(1);
  });

  test("where the browser has no locks, each connects by itself", async () => {
    vi.stubGlobal("navigator", {});
    const [first, second] = [page({ tabs }), page({ tabs })];
    await until("both are ready", () => isReady(first)() && isReady(second)());
    expect(gateway.sockets.length).toBe(2);
  });

  test("signing out in one signs out in all", async () => {
    const storage = indexedDbStorage("tabs");
    const [first, second] = [page({ tabs, storage }), page({ tabs, storage })];
    await until("both are ready", () => isReady(first)() && isReady(second)());
    gateway.create();
    await until("both show it", () => seqs(second).length === 1);
    await second.signOut();
    await until("the other is closed", () => first.connection.getSnapshot().status === "closed");
    expect(seqs(first)).toEqual([]);
    await new Promise((resolve) => setTimeout(resolve, 700));
    expect(await storage.load("wss://example.com/stream|17")).toBe(null);
  });

  test("of other people have a connection of their own", async () => {
    const [first, second] = [page({ tabs }), page({ tabs, user: "18" })];
    await until("both are ready", () => isReady(first)() && isReady(second)());
    expect(gateway.sockets.length).toBe(2);
  });
});
