// What is known of one inbox, without IO, clock or chance: the rules of section 9 of docs/protocol.md, whose clauses comments cite.
//
// Two numbers say what is whole. Up to `contiguous`, a `seq`, everything that exists is known: new notifications. Up to `whole`, a
// `version`, every change is known: also what was read and deleted. Each change of an inbox has a version of its own, so a hole in the
// versions is a change that was missed; a sync brings new notifications, and what is still missing after it is loaded from REST.

import type { Notification, NotificationCreated, NotificationPage, NotificationSkipped, NotificationsDeleted, NotificationsRead, Synced } from "../wire.js";

/** Facts about notifications that may arrive before them, or before an older copy of them. */
const MOST_MARKS = 2_000;
/** Notifications that are kept behind a gap; with more a sync brings them. */
const MOST_KEPT = 500;
/** Versions that are kept behind a hole; with more the inbox is loaded again. */
const MOST_LATER = 2_000;

/** What a change asks for. */
export type Need =
  /** Nothing. */
  | "none"
  /** The next page of the sync, at once. */
  | "more"
  /** The pages that are held, from REST: changes were missed that no sync brings. */
  | "reload"
  /** Everything: the database went back in time (9.10). */
  | "restart";

interface Kept {
  readonly previous: number;
  readonly id: string;
  /** Null where only REST has it (9.8). */
  readonly notification: Notification | null;
}

interface Mark {
  readonly isDeleted: boolean;
  readonly readAt: string | null;
}

/** What is written to the browser's storage. */
export interface Saved {
  readonly epoch: string;
  readonly contiguous: number;
  readonly whole: number;
  readonly version: number;
  readonly unreadCount: number;
  readonly next: string | null;
  readonly items: readonly Notification[];
}

export class Ledger {
  epoch: string | null = null;
  /** Null before the first page. */
  contiguous: number | null = null;
  whole = 0;
  /** The highest version that was seen; `unreadCount` belongs to it. */
  version = 0;
  unreadCount = 0;
  /** The cursor of REST for what is older; null where nothing is. */
  next: string | null = null;
  /** By `seq`. */
  readonly items = new Map<number, Notification>();
  /** `seq` of what must be read over REST, by id. */
  readonly skipped = new Map<string, number>();
  /** Syncs that are not answered. */
  syncing = 0;

  /** `seq` of each of `items`, by id. */
  #seqs = new Map<string, number>();
  #kept = new Map<number, Kept>();
  #later = new Set<number>();
  #marks = new Map<string, Mark>();
  /** The version when the first of the open syncs was asked for. */
  #askedAt = 0;
  /** What came while a sync was open. */
  #answered = new Set<number>();
  /** What syncs brought since the last one that ended: changes whose versions are not known. */
  #fresh = new Set<number>();
  /** While REST is asked: versions of what was created meanwhile. */
  #born: Map<number, number> | null = null;
  #reloadAt = 0;

  /** Whether something is missing that a sync brings, or shows to be missing. */
  get hasGap(): boolean {
    return this.#kept.size > 0 || this.whole < this.version || this.contiguous === null;
  }

  /** A connection began: no answer of the last one is to come. */
  begin(): void {
    this.syncing = 0;
    this.#answered.clear();
  }

  /** A sync from `contiguous` is being sent. */
  ask(): void {
    if (this.syncing++ === 0) this.#askedAt = this.version;
  }

  /** A sync was answered with an error. */
  failSync(): void {
    this.syncing = Math.max(0, this.syncing - 1);
  }

  /** Takes `notification:created`. */
  created({ notification, previousSeq, unreadCount, version }: NotificationCreated): void {
    const { seq, id } = notification;
    this.#take(seq, { previous: previousSeq, id, notification }, unreadCount, version);
  }

  /** Takes `notification:skipped` (9.8). */
  skip({ id, seq, previousSeq, unreadCount, version }: NotificationSkipped): void {
    this.#take(seq, { previous: previousSeq, id, notification: null }, unreadCount, version);
  }

  /** Takes `notification:read`, from the socket or as REST's answer. */
  read({ ids, total, readAt, unreadCount, version }: NotificationsRead): void {
    for (const id of ids) this.#mark(id, { isDeleted: this.#marks.get(id)?.isDeleted ?? false, readAt });
    this.#count(version, unreadCount);
    // Where the list has no room for all, the version stays a hole, and what is behind it is loaded. Where nothing changed, the version is
    // of another change, which may have been missed.
    if (total > 0 && total <= ids.length) this.#see(version);
  }

  /** Takes `notification:deleted`. */
  deleted({ ids, unreadCount, version }: NotificationsDeleted): void {
    for (const id of ids) this.markDeleted(id);
    this.#count(version, unreadCount);
    this.#see(version);
  }

  /** The notification does not exist any more; its event may still come. */
  markDeleted(id: string): void {
    this.#mark(id, { isDeleted: true, readAt: null });
  }

  /** Takes `notification:synced`. */
  finish({ cursor, epoch, more, unreadCount, version }: Synced): Need {
    this.syncing = Math.max(0, this.syncing - 1);
    if (this.#isOther(epoch) || version < this.#askedAt) return "restart";
    this.epoch = epoch;
    this.#count(version, unreadCount);
    this.contiguous = Math.max(this.contiguous ?? 0, cursor);
    this.#settle();
    if (more) return "more";
    if (this.syncing > 0) return "none";
    // 9.9: what was kept and is not in the answer was deleted.
    for (const [seq, kept] of [...this.#kept].sort(([a], [b]) => a - b)) {
      if (this.#answered.has(seq)) this.#add(seq, kept);
      this.contiguous = Math.max(this.contiguous, seq);
    }
    this.#kept.clear();
    this.#answered.clear();
    // Each new notification is one change; so is each event whose version was seen. What is left was missed.
    let known = this.#fresh.size;
    for (const seen of this.#later) if (seen <= version) known++;
    this.#fresh.clear();
    if (this.whole + known < version) return "reload";
    this.#advance(version);
    return "none";
  }

  /** REST is being asked for the pages from the newest on. */
  beginReload(): void {
    this.#born = new Map();
    this.#reloadAt = this.version;
  }

  /** The request failed. */
  cancelReload(): void {
    this.#born = null;
  }

  /** Takes pages from the newest on, in their order, as they follow each other. */
  reload(pages: readonly NotificationPage[]): Need {
    const first = pages[0];
    const last = pages.at(-1);
    const born = this.#born;
    this.#born = null;
    if (!first || !last) return "none";
    if (pages.some((page) => this.#isOther(page.epoch) || page.version < this.#reloadAt)) return "restart";
    this.epoch = first.epoch;
    const rows = pages.flatMap((page) => page.data);
    // What is not in the pages is deleted, or was created behind them.
    for (const held of [...this.items.values()]) {
      if (!((born?.get(held.seq) ?? 0) > first.version)) this.#remove(held);
    }
    for (const row of rows) this.#put(row);
    for (const [id, seq] of this.skipped) {
      if (this.items.has(seq) || !((born?.get(seq) ?? 0) > first.version)) this.skipped.delete(id);
    }
    this.next = last.next;
    this.contiguous = Math.max(this.contiguous ?? 0, rows[0]?.seq ?? 0);
    this.#count(first.version, first.unreadCount);
    this.#fresh.clear();
    this.#advance(first.version);
    this.#settle();
    return "none";
  }

  /** Takes the page behind the oldest that is held. */
  older({ data, next, epoch, unreadCount, version }: NotificationPage): Need {
    if (this.#isOther(epoch)) return "restart";
    for (const row of data) this.#put(row);
    this.next = next;
    this.#count(version, unreadCount);
    return "none";
  }

  /** Takes a notification that was skipped, from REST; null where it is gone. */
  fetched(id: string, notification: Notification | null): void {
    this.skipped.delete(id);
    if (notification) this.#put(notification);
  }

  /** What is to be stored; null while it would be a lie. */
  save(most: number): Saved | null {
    const { epoch, contiguous, whole, version, unreadCount } = this;
    if (epoch === null || contiguous === null || this.skipped.size > 0) return null;
    const all = this.sorted();
    const isCut = all.length > most;
    // Without the cursor behind them, the pages are loaded again at the next start: version 0 is a hole.
    return { epoch, contiguous, whole: isCut ? 0 : whole, version, unreadCount, next: isCut ? null : this.next, items: all.slice(0, most) };
  }

  /** Goes on from what was stored. */
  restore({ epoch, contiguous, whole, version, unreadCount, next, items }: Saved): void {
    Object.assign(this, { epoch, contiguous, whole, next });
    this.#count(version, unreadCount);
    for (const item of items) this.#put(item);
  }

  /** The notifications that are held, newest first. */
  sorted(): Notification[] {
    return [...this.items.values()].sort((a, b) => b.seq - a.seq);
  }

  #isOther(epoch: string): boolean {
    return this.epoch !== null && this.epoch !== epoch;
  }

  #count(version: number, unreadCount: number): void {
    if (version < this.version) return;
    this.version = version;
    this.unreadCount = unreadCount;
  }

  #see(version: number): void {
    if (version <= this.whole || this.#later.size >= MOST_LATER) return;
    this.#later.add(version);
    this.#advance(this.whole);
  }

  /** Every change up to `version` is known, and those that follow it. */
  #advance(version: number): void {
    this.whole = Math.max(this.whole, version);
    for (const seen of this.#later) if (seen <= this.whole) this.#later.delete(seen);
    while (this.#later.delete(this.whole + 1)) this.whole++;
  }

  #take(seq: number, kept: Kept, unreadCount: number, version: number): void {
    const contiguous = this.contiguous ?? -1;
    this.#count(version, unreadCount);
    const isNew = seq > contiguous && !this.#kept.has(seq);
    // A sync brings it once more, and its version stays a hole until then.
    if (isNew && kept.previous > contiguous && this.#kept.size >= MOST_KEPT) return;
    if (this.syncing > 0) {
      // In an answer every event has the version of the whole inbox. What is pushed meanwhile comes behind it (9.4).
      if (isNew) this.#fresh.add(seq);
      if (seq > contiguous) this.#answered.add(seq);
    } else if (!this.#fresh.has(seq)) {
      this.#see(version);
    }
    this.#born?.set(seq, version);
    if (seq <= contiguous) return;
    // An answer says what lies before it more exactly than a push.
    this.#kept.set(seq, kept);
    if (this.contiguous !== null) this.#settle();
  }

  /** Takes what follows (9.9). Not always the first that was kept: a sync passes over what was deleted. */
  #settle(): void {
    for (let found = true; found; ) {
      found = false;
      for (const [seq, kept] of [...this.#kept].sort(([a], [b]) => a - b)) {
        if (seq <= (this.contiguous ?? -1)) {
          this.#drop(seq);
        } else if (kept.previous <= (this.contiguous ?? -1)) {
          this.#drop(seq);
          this.contiguous = seq;
          this.#add(seq, kept);
          found = true;
        }
      }
    }
  }

  #drop(seq: number): void {
    this.#kept.delete(seq);
    this.#answered.delete(seq);
  }

  #add(seq: number, { id, notification }: Kept): void {
    if (notification) this.#put(notification);
    else if (!this.#marks.get(id)?.isDeleted) this.skipped.set(id, seq);
  }

  #put(notification: Notification): void {
    const mark = this.#marks.get(notification.id);
    if (mark?.isDeleted) return;
    const { readAt } = mark ?? {};
    this.#seqs.set(notification.id, notification.seq);
    this.items.set(notification.seq, readAt && !notification.isRead ? { ...notification, isRead: true, readAt } : notification);
  }

  #remove({ id, seq }: Notification): void {
    this.items.delete(seq);
    this.#seqs.delete(id);
  }

  #mark(id: string, mark: Mark): void {
    this.#marks.delete(id);
    this.#marks.set(id, mark);
    if (this.#marks.size > MOST_MARKS) this.#marks.delete(this.#marks.keys().next().value as string);
    if (mark.isDeleted) this.skipped.delete(id);
    const seq = this.#seqs.get(id);
    const held = seq === undefined ? undefined : this.items.get(seq);
    if (!held) return;
    if (mark.isDeleted) this.#remove(held);
    else this.#put(held);
  }
}
