// A gateway's inbox in memory, as sections 8 and 9 of docs/protocol.md describe it, whose pushes come late, in another order, or not at all.

import { SignalError } from "../../src/errors.js";
import type { ReadSelector } from "../../src/rest.js";
import type { Envelope } from "../../src/session.js";
import type { Notification, NotificationPage, NotificationsRead } from "../../src/wire.js";
import type { FakeClock } from "./fakes.js";

export interface Faults {
  /** Shares of pushes that are lost, and of requests that fail. */
  lost: number;
  failed: number;
  /** The longest delay of a push, and of an answer. */
  pushMs: number;
  answerMs: number;
}

export class ModelGateway {
  rows = new Map<number, Notification>();
  seq = 0;
  version = 0;
  epoch = "epoch-1";
  /** Receives what the client gets; undefined while it is not connected. */
  client: ((envelope: Envelope) => void) | undefined;
  /** `seq` above which notifications are announced with `notification:skipped`, one in ten. */
  skips = false;
  requests = 0;
  #connection = 0;
  #ids = 0;
  /** Pushes wait while a sync is being answered (9.4). */
  #held: Envelope[] | undefined;
  #oweResync = false;

  constructor(
    readonly clock: FakeClock,
    readonly random: () => number,
    readonly faults: Faults,
  ) {}

  get unreadCount(): number {
    return [...this.rows.values()].filter(({ isRead }) => !isRead).length;
  }

  get sorted(): Notification[] {
    return [...this.rows.values()].sort((a, b) => b.seq - a.seq);
  }

  connect(client: (envelope: Envelope) => void): void {
    this.#connection++;
    this.#held = undefined;
    this.client = client;
  }

  disconnect(): void {
    this.#connection++;
    this.client = undefined;
  }

  create(): Notification {
    const seq = ++this.seq;
    const row: Notification = {
      id: `n${++this.#ids}`,
      seq,
      type: "ORDER",
      title: `number ${seq}`,
      content: "",
      data: {},
      actorId: null,
      recipientId: "17",
      locale: "en",
      isRead: false,
      readAt: null,
      createdAt: "2026-11-23T08:00:00.000Z",
    };
    this.rows.set(seq, row);
    this.version++;
    this.push(this.#announce(row, seq - 1, this.unreadCount, this.version));
    return row;
  }

  markRead(selector: ReadSelector): NotificationsRead {
    const ids: string[] = [];
    const readAt = new Date(this.clock.now()).toISOString();
    for (const row of this.sorted) {
      const isMeant = "ids" in selector ? selector.ids.includes(row.id) : "upTo" in selector ? row.seq <= selector.upTo : true;
      if (row.isRead || !isMeant) continue;
      this.rows.set(row.seq, { ...row, isRead: true, readAt });
      ids.push(row.id);
    }
    if (ids.length > 0) this.version++;
    // As the gateway's list of 1,000, which is small here.
    const answer = { ids: ids.slice(0, 5), total: ids.length, readAt, unreadCount: this.unreadCount, version: this.version };
    if (ids.length > 0) this.push({ event: "notification:read", data: answer });
    return answer;
  }

  remove(id: string): boolean {
    const row = this.sorted.find((each) => each.id === id);
    if (!row) return false;
    this.rows.delete(row.seq);
    this.version++;
    this.push({ event: "notification:deleted", data: { ids: [id], unreadCount: this.unreadCount, version: this.version } });
    return true;
  }

  /** Old notifications end without an event, as retention does it. */
  purge(): void {
    const oldest = this.sorted.at(-1);
    if (!oldest) return;
    this.rows.delete(oldest.seq);
    this.version++;
  }

  copy(): { rows: Map<number, Notification>; seq: number; version: number } {
    return { rows: new Map(this.rows), seq: this.seq, version: this.version };
  }

  /** The database goes back to a copy. The gateway notices within 2 s; until then answers carry the epoch before (9.10). */
  goBack(to: { rows: Map<number, Notification>; seq: number; version: number }): void {
    this.rows = new Map(to.rows);
    this.seq = to.seq;
    this.version = to.version;
    this.#later(2_000, () => {
      this.epoch = `epoch-${++this.#ids}`;
      this.#send({ event: "resync", data: { reason: "epoch_changed" } });
    });
  }

  /** What the client sends. */
  take({ event, data }: Envelope): void {
    if (event !== "notification:sync") return;
    const { after } = data as { after: number };
    const connection = this.#connection;
    this.#later(this.faults.answerMs * this.random(), () => {
      if (connection !== this.#connection) return;
      if (this.random() < this.faults.failed) {
        this.#send({ event: "error", data: { message: "Try again later" } });
        return;
      }
      // The snapshot is taken here, and the answer leaves a little later.
      const rows = this.sorted.reverse().filter(({ seq }) => seq > after).slice(0, 4);
      const { unreadCount, version, epoch } = this;
      const more = this.sorted.some(({ seq }) => seq > (rows.at(-1)?.seq ?? after));
      this.#held = [];
      this.#later(50 * this.random(), () => {
        if (connection !== this.#connection) return;
        let cursor = after;
        for (const row of rows) {
          this.#send(this.#announce(row, cursor, unreadCount, version));
          cursor = row.seq;
        }
        this.#send({ event: "notification:synced", data: { count: rows.length, cursor, epoch, unreadCount, version, more } });
        const held = this.#held ?? [];
        this.#held = undefined;
        for (const envelope of held) {
          const seq = seqOf(envelope);
          if (seq === undefined || (seq > cursor && !more)) this.#send(envelope);
        }
      });
    });
  }

  push(envelope: Envelope): void {
    const connection = this.#connection;
    if (!this.client) return;
    if (this.random() < this.faults.lost) {
      // 8.4: whoever missed something is told.
      if (!this.#oweResync) this.#later(2_000, () => {
        this.#oweResync = false;
        this.#send({ event: "resync", data: { reason: "push_missed" } });
      });
      this.#oweResync = true;
      return;
    }
    this.#later(this.faults.pushMs * this.random(), () => {
      if (connection !== this.#connection) return;
      if (this.#held) this.#held.push(envelope);
      else this.#send(envelope);
      if (this.random() < 0.1) this.#send(envelope);
    });
  }

  /** REST, in the shape of the client's `Rest`. */
  rest() {
    const answer = async <T>(give: () => T): Promise<T> => {
      this.requests++;
      await this.#wait();
      if (this.random() < this.faults.failed) throw new SignalError("rest", "not now", { status: 503 });
      const value = give();
      await this.#wait();
      // The answer is lost on its way, and what was asked for is done.
      if (this.random() < this.faults.failed) throw new SignalError("connection_lost", "cut");
      return value;
    };
    return {
      page: ({ cursor, limit = 50 }: { cursor?: string | null; limit?: number } = {}) =>
        answer((): NotificationPage => {
          const rows = this.sorted.filter(({ seq }) => !cursor || seq < Number(cursor));
          const data = rows.slice(0, limit);
          const { unreadCount, version, epoch } = this;
          return { data, next: rows.length > limit ? String(data.at(-1)!.seq) : null, epoch, unreadCount, version };
        }),
      one: (id: string) => answer(() => this.sorted.find((row) => row.id === id) ?? null),
      read: (selector: ReadSelector) => answer(() => this.markRead(selector)),
      remove: (id: string) => answer(() => this.remove(id)),
    };
  }

  #wait(): Promise<void> {
    return new Promise((resolve) => this.#later((this.faults.answerMs / 2) * this.random(), resolve));
  }

  #announce(row: Notification, previousSeq: number, unreadCount: number, version: number): Envelope {
    const { id, seq } = row;
    return this.skips && seq % 10 === 0
      ? { event: "notification:skipped", data: { id, seq, previousSeq, unreadCount, version } }
      : { event: "notification:created", data: { notification: row, previousSeq, unreadCount, version } };
  }

  #send(envelope: Envelope): void {
    this.client?.(envelope);
  }

  #later(ms: number, run: () => void): void {
    this.clock.after(ms, run);
  }
}

function seqOf({ event, data }: Envelope): number | undefined {
  if (event === "notification:skipped") return (data as { seq: number }).seq;
  return event === "notification:created" ? (data as { notification: Notification }).notification.seq : undefined;
}
