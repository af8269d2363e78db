// The chaos run: people with devices that read and delete, records all the time, and one fault after the other. What each client shows is watched at every
// change, and at the end it is exactly what the database has.

import WebSocket from "ws";
import { type Client, type InboxState, createClient, fromWs } from "../../src/index.js";
import { systemClock } from "../../src/clock.js";
import type { Cluster } from "./cluster.js";
import { equals, pause } from "./gateway.js";

/** A fault lasts so long, and so long everything works before the next one. */
const FAULT_MS = [1_000, 4_000] as const;
const CALM_MS = [1_000, 3_000] as const;
const RECORD_MS = 60;
const CHANGE_MS = 250;
/** A client whose clock is wrong is wrong by so much. */
const SKEW_MS = 3_600_000;

export interface ChaosReport {
  readonly seconds: number;
  readonly records: number;
  readonly changes: number;
  readonly connects: number;
  readonly faults: Record<string, number>;
  readonly errors: Record<string, number>;
}

/** Looks at each state of an inbox: nothing twice, the newest first, and where nobody reads or deletes no count ever falls. */
export class Watch {
  readonly problems: string[] = [];
  #count = 0;
  #newest = 0;

  constructor(
    readonly name: string,
    readonly isUntouched: boolean,
  ) {}

  look({ status, items, unreadCount }: Pick<InboxState, "status" | "items" | "unreadCount">): void {
    if (status !== "ready") return;
    const seqs = items.map(({ seq }) => seq);
    if (new Set(items.map(({ id }) => id)).size !== items.length) this.#say(`one notification twice: ${seqs.join(" ")}`);
    if (seqs.some((seq, at) => at > 0 && seq >= seqs[at - 1]!)) this.#say(`not the newest first: ${seqs.join(" ")}`);
    // Where two devices read, the count of a push may be known a moment before what another instance tells of the reading.
    if (!this.isUntouched) return;
    if (unreadCount < items.length) this.#say(`${unreadCount} unread, but ${items.length} are shown, and nobody read one`);
    if (unreadCount < this.#count) this.#say(`the count fell from ${this.#count} to ${unreadCount}`);
    if ((seqs[0] ?? 0) < this.#newest) this.#say(`the newest went from ${this.#newest} back to ${seqs[0]}`);
    this.#count = unreadCount;
    this.#newest = seqs[0] ?? 0;
  }

  #say(problem: string): void {
    if (this.problems.length < 5) this.problems.push(`${this.name}: ${problem}`);
  }
}

interface Fault {
  readonly name: string;
  break(): Promise<void> | void;
  mend?(): Promise<void> | void;
}

export class Chaos {
  readonly people: string[];
  readonly watches: Watch[] = [];
  readonly #clients: { readonly user: string; readonly client: Client }[] = [];
  readonly #errors: Record<string, number> = {};
  #records = 0;
  #changes = 0;
  #connects = 0;

  /** Each person has two devices; those of every second person only look. */
  constructor(
    readonly cluster: Cluster,
    devices: number,
    /** People besides, whose devices are pages of a browser; they only look. */
    readonly pages: readonly string[],
    readonly random: () => number,
  ) {
    this.people = Array.from({ length: Math.ceil(devices / 2) }, (_, number) => String(1_000 + number));
    for (let number = 0; number < devices; number++) this.#connect(number);
  }

  isUntouched(user: string): boolean {
    return Number(user) % 2 === 1 || this.pages.includes(user);
  }

  /** How long a token lives: `expiring` comes a minute before its end. */
  life(): number {
    return 62 + Math.floor(this.random() * 60);
  }

  #connect(number: number): void {
    const user = this.people[number % this.people.length]!;
    const watch = new Watch(`user ${user}, device ${number}`, this.isUntouched(user));
    this.watches.push(watch);
    const skew = number % 10 === 3 ? SKEW_MS : 0;
    const client = createClient({
      url: `ws://127.0.0.1:${this.cluster.balancer.port}`,
      token: () => this.cluster.token(user, this.life()),
      encryption: number % 3 === 0 ? "off" : "required",
      socket: fromWs(WebSocket),
      backoff: { firstMs: 500, maxMs: 2_000, stableMs: 1_000 },
      probeMs: 3_000,
      clock: { ...systemClock, now: () => systemClock.now() + skew },
    });
    client.inbox.subscribe(() => watch.look(client.inbox.getSnapshot()));
    let last = "";
    client.connection.subscribe(() => {
      const { status } = client.connection.getSnapshot();
      if (status === "online" && last !== "online") this.#connects++;
      last = status;
    });
    client.onError(({ code }) => (this.#errors[code] = (this.#errors[code] ?? 0) + 1));
    this.#clients.push({ user, client });
  }

  #faults(): Fault[] {
    const { cluster } = this;
    const any = <T>(from: readonly T[]): T => from[Math.floor(this.random() * from.length)]!;
    const ends = (name: string, signal: "SIGKILL" | "SIGTERM"): Fault => {
      const instance = any(cluster.instances);
      return {
        name,
        break: () => instance.end(signal),
        mend: async () => {
          instance.start();
          await instance.ready();
        },
      };
    };
    const away = (name: string, proxy: Cluster["redis"], mode: "refused" | "silent"): Fault => ({
      name: `${name} ${mode}`,
      break: () => (mode === "refused" ? proxy.cut(mode) : void (proxy.mode = mode)),
      // What was silent lost bytes on the way, as a real network does not: its connections end.
      mend: () => proxy.cut("open"),
    });
    const drained = any(cluster.instances);
    return [
      ends("gateway killed", "SIGKILL"),
      ends("gateway ended, Kafka rebalances", "SIGTERM"),
      away("Redis", cluster.redis, "refused"),
      away("Redis", cluster.redis, "silent"),
      away("PostgreSQL", cluster.database, "refused"),
      away("PostgreSQL", cluster.database, "silent"),
      away("network of clients", cluster.balancer, "refused"),
      away("network of clients", cluster.balancer, "silent"),
      { name: "drain", break: () => drained.admin("POST", "/drain", { hold: true }), mend: () => drained.admin("DELETE", "/drain") },
      { name: "connections rebalanced", break: () => any(cluster.instances).admin("POST", "/shed", { count: this.#clients.length }) },
      { name: "tokens revoked", break: () => cluster.revoke(any(this.people)) },
    ];
  }

  /** Breaks one thing after the other, each kind before any comes again, for so long and at least once. */
  async run(seconds: number): Promise<ChaosReport> {
    const begin = performance.now();
    const faults: Record<string, number> = {};
    let isOver = false;
    const work = [this.#repeat(RECORD_MS, () => isOver, () => this.#record()), this.#repeat(CHANGE_MS, () => isOver, () => this.#change())];
    let waiting: number[] = [];
    const kinds = this.#faults().length;
    try {
      for (let count = 0; performance.now() - begin < seconds * 1000 || count < kinds; count++) {
        if (waiting.length === 0) waiting = Array.from({ length: kinds }, (_, kind) => kind);
        const [kind] = waiting.splice(Math.floor(this.random() * waiting.length), 1);
        const fault = this.#faults()[kind!]!;
        faults[fault.name] = (faults[fault.name] ?? 0) + 1;
        await fault.break();
        await pause(this.#between(FAULT_MS));
        await fault.mend?.();
        await pause(this.#between(CALM_MS));
      }
    } finally {
      isOver = true;
      await Promise.all(work);
    }
    await this.cluster.mend();
    return { seconds: Math.round((performance.now() - begin) / 1000), records: this.#records, changes: this.#changes, connects: this.#connects, faults, errors: this.#errors };
  }

  /** Every client shows what the database has, and did all the time. */
  async check(): Promise<void> {
    // The last records may still be on their way through the pipeline.
    await this.cluster.notify([...this.people, ...this.pages], "the last one");
    for (const { user, client } of this.#clients) await equals(this.cluster, client, user, 60_000);
    const problems = this.watches.flatMap((watch) => watch.problems);
    if (problems.length > 0) throw new Error(problems.join("\n"));
  }

  close(): void {
    for (const { client } of this.#clients) client.close();
  }

  #between([least, most]: readonly [number, number]): number {
    return least + this.random() * (most - least);
  }

  async #repeat(ms: number, isOver: () => boolean, run: () => Promise<void>): Promise<void> {
    while (!isOver()) {
      await run();
      await pause(this.random() * 2 * ms);
    }
  }

  async #record(): Promise<void> {
    const all = [...this.people, ...this.pages];
    const users = all.filter(() => this.random() < 0.2);
    if (users.length === 0) return;
    await this.cluster.notify(users, `number ${++this.#records}`);
  }

  /** Somebody reads or deletes. What a fault refuses is taken back, and counts for nothing. */
  async #change(): Promise<void> {
    const those = this.#clients.filter(({ user }) => !this.isUntouched(user));
    const one = those[Math.floor(this.random() * those.length)];
    const { items } = one?.client.inbox.getSnapshot() ?? { items: [] };
    const item = items[Math.floor(this.random() * items.length)];
    if (!one || !item) return;
    this.#changes++;
    const { inbox } = one.client;
    const chance = this.random();
    const change = chance < 0.5 ? inbox.read([item.id]) : chance < 0.8 ? inbox.remove(item.id) : chance < 0.9 ? inbox.readUpTo(item.seq) : inbox.readAll();
    change.catch(() => {});
  }
}
