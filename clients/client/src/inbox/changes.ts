// What the person did and the gateway has not confirmed yet. It is laid over what is known, and taken away when it is confirmed or
// refused: a refused change leaves no trace.

import type { Notification } from "../wire.js";
import type { Ledger } from "./ledger.js";

export interface Change {
  readonly kind: "read" | "delete";
  /** Of these notifications, or of all up to `upTo`. */
  readonly ids: ReadonlySet<string>;
  readonly upTo: number;
  /** When, RFC 3339. */
  readonly at: string;
  /** Of a deletion that is confirmed, whose count has not come: how many unread it took, and the tick of the confirmation. */
  done?: { readonly unread: number; readonly tick: number };
}

export class Changes {
  #open = new Set<Change>();
  #tick = 0;

  begin(kind: Change["kind"], ids: readonly string[], upTo: number, at: string): Change {
    const change: Change = { kind, ids: new Set(ids), upTo, at };
    this.#open.add(change);
    return change;
  }

  end(change: Change): void {
    this.#open.delete(change);
  }

  /** A deletion is confirmed. Its count follows with its event, or with the next answer that is asked for from here on. */
  deleted(change: Change, unread: number): void {
    change.done = { unread, tick: ++this.#tick };
  }

  /** The moment in which something is asked. */
  ask(): number {
    return ++this.#tick;
  }

  /** Something that was asked at this moment was answered. */
  answered(tick: number): void {
    for (const change of this.#open) if (change.done && change.done.tick < tick) this.#open.delete(change);
  }

  /** The event of deletions came. */
  counted(ids: readonly string[]): void {
    for (const change of this.#open) if (change.done && ids.some((id) => change.ids.has(id))) this.#open.delete(change);
  }

  clear(): void {
    this.#open.clear();
  }

  /** What is seen: the notifications, newest first, and how many are unread. */
  over(ledger: Ledger): { items: readonly Notification[]; unreadCount: number } {
    let items: readonly Notification[] = ledger.sorted();
    let { unreadCount } = ledger;
    for (const { kind, ids, upTo, at, done } of this.#open) {
      if (done) {
        unreadCount -= done.unread;
        continue;
      }
      const isMeant = (row: Notification): boolean => ids.has(row.id) || row.seq <= upTo;
      const unread = (row: Notification): boolean => !row.isRead;
      // Of all up to `upTo` only those behind it stay unread, and they are all held.
      if (upTo >= 0) unreadCount = Math.min(unreadCount, items.filter((row) => unread(row) && !isMeant(row)).length);
      else unreadCount -= items.filter((row) => unread(row) && isMeant(row)).length;
      items =
        kind === "delete"
          ? items.filter((row) => !isMeant(row))
          : items.map((row) => (unread(row) && isMeant(row) ? { ...row, isRead: true, readAt: at } : row));
    }
    return { items, unreadCount: Math.max(0, unreadCount) };
  }
}
