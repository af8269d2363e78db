// Clauses are those of docs/protocol.md.

import { expect, test } from "vitest";
import type { SignalError } from "../../src/errors.js";
import { Inbox, type InboxOptions, type InboxState } from "../../src/inbox/inbox.js";
import type { Rest } from "../../src/rest.js";
import type { Envelope } from "../../src/session.js";
import type { InboxRecord, InboxStorage } from "../../src/storage.js";
import { FakeClock, seeded, settle } from "./fakes.js";
import { type Faults, ModelGateway } from "./model.js";

const QUIET: Faults = { lost: 0, failed: 0, pushMs: 0, answerMs: 0 };

function memoryStorage(): InboxStorage & { records: Map<string, InboxRecord> } {
  const records = new Map<string, InboxRecord>();
  return {
    records,
    load: async (key) => structuredClone(records.get(key)) ?? null,
    save: async (key, record) => void records.set(key, structuredClone(record)),
    clear: async (key) => void records.delete(key),
  };
}

class Bench {
  readonly clock: FakeClock;
  readonly gateway: ModelGateway;
  readonly random: () => number;
  readonly errors: SignalError[] = [];
  readonly shown: InboxState[] = [];
  readonly sent: Envelope[] = [];
  dropped = 0;
  inbox!: Inbox;

  constructor(
    readonly faults: Faults = { ...QUIET },
    seed = 1,
    readonly options: Partial<InboxOptions> = {},
  ) {
    this.random = seeded(seed);
    this.clock = new FakeClock(seeded(seed + 1));
    this.gateway = new ModelGateway(this.clock, this.random, faults);
    this.begin();
  }

  /** A page begins: what it keeps in memory is new. */
  begin(): void {
    this.inbox = new Inbox(
      { clock: this.clock, pageSize: 5, maxItems: 1_000, storage: undefined, storageKey: "key", changeTimeoutMs: 30_000, ...this.options },
      this.gateway.rest() as unknown as Rest,
      {
        isOnline: () => this.gateway.client !== undefined,
        send: (envelope) => {
          this.sent.push(envelope);
          this.gateway.take(envelope);
          return true;
        },
        drop: () => {
          this.dropped++;
          this.disconnect();
          this.clock.after(1_000, () => void this.connect());
        },
        error: (error) => this.errors.push(error),
      },
    );
    this.inbox.state.subscribe(() => {
      const state = this.state;
      this.shown.push(state);
      expect(new Set(state.items.map(({ id }) => id)).size).toBe(state.items.length);
      expect(state.items.every(({ seq }, at) => at === 0 || seq < state.items[at - 1]!.seq)).toBe(true);
      expect(state.unreadCount).toBeGreaterThanOrEqual(0);
    });
  }

  async connect(userId = "17"): Promise<void> {
    if (this.gateway.client) return;
    this.gateway.connect((envelope) => void this.inbox.event(envelope));
    await this.inbox.connected(userId);
  }

  disconnect(): void {
    this.gateway.disconnect();
    this.inbox.lost();
  }

  get state(): InboxState {
    return this.inbox.state.getSnapshot();
  }

  seqs(): number[] {
    return this.state.items.map(({ seq }) => seq);
  }

  syncs(): number[] {
    return this.sent.filter(({ event }) => event === "notification:sync").map(({ data }) => (data as { after: number }).after);
  }

  /** Everything that is on its way arrives, and the client looks once more. */
  async calm(): Promise<void> {
    Object.assign(this.faults, { lost: 0, failed: 0 });
    await this.clock.advance(120_000);
    // What retention takes away is not announced: the next connect finds it.
    this.disconnect();
    await this.connect();
    await this.clock.advance(120_000);
  }

  /** What is shown is what the database has. */
  async check(label = ""): Promise<void> {
    const held = this.state.items.length;
    expect(this.state.items, label).toEqual(this.gateway.sorted.slice(0, held));
    expect(this.state, label).toMatchObject({ status: "ready", unreadCount: this.gateway.unreadCount });
    // What is older may have been deleted meanwhile: then `loadMore()` brings nothing.
    if (held < this.gateway.rows.size) expect(this.state.hasMore, label).toBe(true);
    while (this.state.hasMore) {
      void this.inbox.loadMore();
      await this.clock.advance(5_000);
    }
    expect(this.state.items, label).toEqual(this.gateway.sorted);
  }
}

test("the first page comes from REST, and then a sync from its newest", async () => {
  const bench = new Bench();
  for (let n = 0; n < 12; n++) bench.gateway.create();
  await bench.connect();
  await bench.clock.advance(2_000);
  expect(bench.seqs()).toEqual([12, 11, 10, 9, 8]);
  expect(bench.state).toMatchObject({ status: "ready", unreadCount: 12, hasMore: true, error: null });
  expect(bench.syncs()).toEqual([12]);
  await bench.check();
});

test("live pushes are shown at once, with the count of the highest version (9.3)", async () => {
  const bench = new Bench();
  await bench.connect();
  await bench.clock.advance(2_000);
  const [first, second] = [bench.gateway.create(), bench.gateway.create()];
  await bench.clock.advance(1);
  expect(bench.seqs()).toEqual([2, 1]);
  expect(bench.state.unreadCount).toBe(2);
  bench.gateway.markRead({ ids: [first.id] });
  bench.gateway.remove(second.id);
  await bench.clock.advance(1);
  expect(bench.state).toMatchObject({ unreadCount: 0, items: [{ id: first.id, isRead: true }] });
  expect(bench.syncs().length, "nothing was missing").toBe(1);
});

test("a gap is waited for 0.2 to 1 s, and then a sync from the contiguous seq closes it (9.9)", async () => {
  const bench = new Bench();
  await bench.connect();
  bench.gateway.create();
  await bench.clock.advance(2_000);
  bench.faults.lost = 1;
  bench.gateway.create();
  bench.faults.lost = 0;
  bench.gateway.create();
  await bench.clock.advance(199);
  expect(bench.seqs(), "3 is kept behind the gap").toEqual([1]);
  expect(bench.syncs().length).toBe(1);
  await bench.clock.advance(801);
  expect(bench.seqs()).toEqual([3, 2, 1]);
  expect(bench.syncs().slice(1)).toEqual([1]);
});

test("a push that was only late closes its gap without a sync", async () => {
  const bench = new Bench();
  await bench.connect();
  await bench.clock.advance(2_000);
  const pushes: Envelope[] = [];
  bench.gateway.client = (envelope) => pushes.push(envelope);
  bench.gateway.create();
  bench.gateway.create();
  await bench.clock.advance(1);
  bench.gateway.client = (envelope) => void bench.inbox.event(envelope);
  for (const envelope of pushes.reverse()) bench.inbox.event(envelope);
  await bench.clock.advance(5_000);
  expect(bench.seqs()).toEqual([2, 1]);
  expect(bench.syncs().length).toBe(1);
});

test("a deletion that comes before its notification hides it", async () => {
  const bench = new Bench();
  await bench.connect();
  await bench.clock.advance(2_000);
  const pushes: Envelope[] = [];
  bench.gateway.client = (envelope) => pushes.push(envelope);
  bench.gateway.remove(bench.gateway.create().id);
  await bench.clock.advance(1);
  bench.gateway.client = (envelope) => void bench.inbox.event(envelope);
  for (const envelope of pushes.reverse()) bench.inbox.event(envelope);
  await bench.clock.advance(5_000);
  expect(bench.seqs()).toEqual([]);
});

test("what was read and deleted while offline is found by the version, and the held pages are loaded again", async () => {
  const bench = new Bench();
  for (let n = 0; n < 12; n++) bench.gateway.create();
  await bench.connect();
  void bench.inbox.loadMore();
  await bench.clock.advance(2_000);
  expect(bench.seqs().length).toBe(10);
  bench.disconnect();
  bench.gateway.remove(bench.gateway.sorted[1]!.id);
  bench.gateway.markRead({ upTo: 4 });
  bench.gateway.create();
  await bench.connect();
  await bench.clock.advance(5_000);
  expect(bench.seqs()).toEqual([13, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
  await bench.check();
});

test("a connect after which nothing changed costs one sync and no request", async () => {
  const bench = new Bench();
  for (let n = 0; n < 12; n++) bench.gateway.create();
  await bench.connect();
  await bench.clock.advance(2_000);
  const { requests } = bench.gateway;
  bench.disconnect();
  bench.gateway.create();
  await bench.connect();
  await bench.clock.advance(5_000);
  expect(bench.seqs()[0]).toBe(13);
  expect(bench.gateway.requests).toBe(requests);
});

test("after resync a client waits a random time and syncs (9.5)", async () => {
  const bench = new Bench();
  await bench.connect();
  await bench.clock.advance(2_000);
  bench.inbox.event({ event: "resync", data: { reason: "bus_reconnected" } });
  await bench.clock.advance(199);
  expect(bench.syncs().length).toBe(1);
  await bench.clock.advance(801);
  expect(bench.syncs().length).toBe(2);
});

test("when the database went back in time everything begins over, and what was shown stays until then (9.10)", async () => {
  const bench = new Bench();
  for (let n = 0; n < 3; n++) bench.gateway.create();
  const copy = bench.gateway.copy();
  bench.gateway.create();
  await bench.connect();
  await bench.clock.advance(2_000);
  bench.shown.length = 0;
  bench.gateway.goBack(copy);
  bench.gateway.create();
  await bench.clock.advance(5_000);
  expect(bench.state.items.map(({ id }) => id)).toEqual(["n5", "n3", "n2", "n1"]);
  expect(bench.shown.every(({ items }) => items.length > 0)).toBe(true);
  await bench.check();
});

test("a lower version in an answer than before it was asked for begins over as well (9.10)", async () => {
  const bench = new Bench();
  for (let n = 0; n < 6; n++) bench.gateway.create();
  await bench.connect();
  await bench.clock.advance(2_000);
  const newest = bench.gateway.sorted[0]!;
  bench.gateway.rows.delete(newest.seq);
  Object.assign(bench.gateway, { seq: 5, version: 5 });
  bench.inbox.event({ event: "resync", data: { reason: "push_missed" } });
  await bench.clock.advance(5_000);
  expect(bench.seqs()).toEqual([5, 4, 3, 2, 1]);
});

test("a notification that is too long for a message is read over REST (9.8)", async () => {
  const bench = new Bench();
  bench.gateway.skips = true;
  await bench.connect();
  await bench.clock.advance(2_000);
  for (let n = 0; n < 11; n++) bench.gateway.create();
  await bench.clock.advance(1_000);
  expect(bench.seqs()).toEqual([11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
});

test("a read is shown at once and stays", async () => {
  const bench = new Bench({ ...QUIET, answerMs: 200 });
  for (let n = 0; n < 3; n++) bench.gateway.create();
  await bench.connect();
  await bench.clock.advance(2_000);
  const { id } = bench.gateway.sorted[1]!;
  bench.shown.length = 0;
  const read = bench.inbox.read([id]);
  await settle();
  expect(bench.state).toMatchObject({ unreadCount: 2, items: [{ isRead: false }, { id, isRead: true }, { isRead: false }] });
  await bench.clock.advance(2_000);
  await read;
  expect(new Set(bench.shown.map(({ unreadCount }) => unreadCount)), "the count never went back").toEqual(new Set([2]));
  await bench.check();
});

test("all as read counts what comes later", async () => {
  const bench = new Bench({ ...QUIET, answerMs: 500 });
  for (let n = 0; n < 9; n++) bench.gateway.create();
  await bench.connect();
  await bench.clock.advance(3_000);
  const read = bench.inbox.readUpTo();
  await settle();
  expect(bench.state.unreadCount).toBe(0);
  bench.gateway.create();
  await bench.clock.advance(1);
  expect(bench.state.unreadCount).toBe(1);
  await bench.clock.advance(5_000);
  await read;
  expect(bench.state.unreadCount).toBe(1);
  await bench.check();
});

test("a deletion hides at once; its count never goes up again", async () => {
  const bench = new Bench({ ...QUIET, answerMs: 100, pushMs: 900 }, 3);
  for (let n = 0; n < 4; n++) bench.gateway.create();
  await bench.connect();
  await bench.clock.advance(3_000);
  bench.shown.length = 0;
  const removed = bench.inbox.remove(bench.gateway.sorted[0]!.id);
  await bench.clock.advance(5_000);
  await removed;
  expect(new Set(bench.shown.map(({ unreadCount, items }) => `${unreadCount} of ${items.length}`))).toEqual(new Set(["3 of 3"]));
  await bench.check();
});

test("what the gateway refuses is taken back, and the promise says why", async () => {
  const bench = new Bench();
  for (let n = 0; n < 3; n++) bench.gateway.create();
  await bench.connect();
  await bench.clock.advance(2_000);
  bench.faults.failed = 1;
  const failed = bench.inbox.remove(bench.gateway.sorted[0]!.id).catch((error: SignalError) => error.code);
  await settle();
  expect(bench.seqs()).toEqual([2, 1]);
  await bench.clock.advance(60_000);
  expect(await failed).toMatch(/rest|connection_lost/);
  expect(bench.seqs()).toEqual([3, 2, 1]);
  expect(bench.state.unreadCount).toBe(3);
});

test("a gateway that cannot be asked right now is asked again, and the error is shown meanwhile", async () => {
  const bench = new Bench({ ...QUIET, failed: 1 });
  bench.gateway.create();
  await bench.connect();
  await bench.clock.advance(5_000);
  expect(bench.state).toMatchObject({ status: "loading", error: { code: expect.stringMatching(/rest|connection_lost/) as string } });
  await bench.calm();
  await bench.check();
  expect(bench.state.error).toBe(null);
});

test("a sync that is not answered ends the connection", async () => {
  const bench = new Bench();
  await bench.connect();
  bench.gateway.take = () => {};
  await bench.clock.advance(15_000);
  expect(bench.dropped).toBe(1);
});

test("after a reload of the page the stored list is there before the connection, and a sync begins where it ended", async () => {
  const storage = memoryStorage();
  const bench = new Bench({ ...QUIET }, 1, { storage });
  for (let n = 0; n < 3; n++) bench.gateway.create();
  await bench.connect();
  await bench.clock.advance(2_000);
  bench.disconnect();
  bench.inbox.close();
  bench.gateway.create();
  const { requests } = bench.gateway;
  bench.begin();
  await settle();
  expect(bench.state).toMatchObject({ status: "ready", unreadCount: 3 });
  await bench.connect();
  await bench.clock.advance(2_000);
  expect(bench.gateway.requests).toBe(requests);
  await bench.check();
});

test("what is stored of one person is never shown to another", async () => {
  const storage = memoryStorage();
  const bench = new Bench({ ...QUIET }, 1, { storage });
  bench.gateway.create();
  await bench.connect("17");
  await bench.clock.advance(2_000);
  bench.disconnect();
  bench.inbox.close();
  bench.gateway.rows.clear();
  bench.begin();
  await settle();
  bench.shown.length = 0;
  await bench.connect("18");
  expect(bench.seqs()).toEqual([]);
  await bench.clock.advance(2_000);
  expect(bench.seqs()).toEqual([]);
  expect([...storage.records.values()].map(({ userId }) => userId)).toEqual(["18"]);
});

test("after a sign-out nothing is stored, not even by what was on its way", async () => {
  const storage = memoryStorage();
  const bench = new Bench({ ...QUIET }, 1, { storage });
  await bench.connect();
  await bench.clock.advance(2_000);
  bench.gateway.create();
  await bench.clock.advance(1);
  await bench.inbox.forget();
  await bench.clock.advance(60_000);
  expect(storage.records.size).toBe(0);
});

test("a list that became too long begins again with its newest page", async () => {
  const bench = new Bench({ ...QUIET }, 1, { maxItems: 20 });
  await bench.connect();
  await bench.clock.advance(2_000);
  for (let n = 0; n < 30; n++) bench.gateway.create();
  bench.disconnect();
  await bench.connect();
  await bench.clock.advance(10_000);
  expect(bench.seqs()).toEqual([30, 29, 28, 27, 26]);
  await bench.check();
});

const SEEDS = Number(process.env["SIGNAL_MODEL_SEEDS"] ?? 500);

test(`whatever is lost, late, repeated, refused or restored, the list ends as the database has it (${SEEDS} histories)`, { timeout: 600_000 }, async () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const random = seeded(seed * 977);
    const storage = seed % 3 === 0 ? memoryStorage() : undefined;
    const bench = new Bench(
      { lost: random() * 0.3, failed: random() * 0.2, pushMs: random() * 1_500, answerMs: random() * 800 },
      seed,
      { storage },
    );
    const { gateway } = bench;
    gateway.skips = seed % 2 === 0;
    let copy = gateway.copy();
    const some = () => gateway.sorted[Math.floor(random() * gateway.rows.size)]?.id ?? "none";
    const ignore = () => {};
    for (let step = 0; step < 60; step++) {
      const dice = random();
      if (dice < 0.4) gateway.create();
      else if (dice < 0.48) gateway.markRead({ ids: [some(), some()] });
      else if (dice < 0.51) gateway.markRead({ upTo: Math.floor(random() * gateway.seq) });
      else if (dice < 0.58) gateway.remove(some());
      else if (dice < 0.6) gateway.purge();
      else if (dice < 0.66) void bench.inbox.read([some()]).catch(ignore);
      else if (dice < 0.68) void bench.inbox.readUpTo().catch(ignore);
      else if (dice < 0.74) void bench.inbox.remove(some()).catch(ignore);
      else if (dice < 0.79) void bench.inbox.loadMore().catch(ignore);
      else if (dice < 0.85) bench.disconnect();
      else if (dice < 0.93) await bench.connect();
      else if (dice < 0.95) copy = gateway.copy();
      else if (dice < 0.96) gateway.goBack(copy);
      else if (dice < 0.97 && storage) {
        bench.disconnect();
        bench.inbox.close();
        bench.begin();
      }
      if (gateway.epoch !== "epoch-1" && random() < 0.2) copy = gateway.copy();
      await bench.clock.advance(random() < 0.5 ? random() * 100 : random() * 3_000);
    }
    await bench.calm();
    await bench.check(`seed ${seed}`);
  }
});
