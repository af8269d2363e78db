// One user's inbox, kept whole: asks for pages and syncs, at the right moments, and shows what is known.
//
// `Ledger` knows the rules, `Changes` what is not confirmed; here are time, the connection, REST and the browser's storage. At most one
// question about what is missing is open at a time, a sync or a reload, so that their answers never mix.

import { type Clock, Timer } from "../clock.js";
import { SignalError, asSignalError } from "../errors.js";
import { type Rest, isTransient } from "../rest.js";
import type { Envelope } from "../session.js";
import type { InboxStorage } from "../storage.js";
import { Value } from "../store.js";
import type { Notification, NotificationCreated, NotificationPage, NotificationSkipped, NotificationsDeleted, NotificationsRead, Synced } from "../wire.js";
import { type Change, Changes } from "./changes.js";
import { Ledger, type Need } from "./ledger.js";

/** What a page shows of an inbox. It is replaced at each change and never changed. */
export interface InboxState {
  /** `loading` until the first page came; `unavailable` where this user has no inbox. */
  readonly status: "loading" | "ready" | "unavailable";
  /** Newest first. */
  readonly items: readonly Notification[];
  /** Of the whole inbox, not only of `items`. */
  readonly unreadCount: number;
  /** Whether `loadMore()` may bring older ones. */
  readonly hasMore: boolean;
  /** Why the inbox cannot be loaded right now, or null. */
  readonly error: SignalError | null;
}

export const emptyInbox: InboxState = { status: "loading", items: [], unreadCount: 0, hasMore: false, error: null };

export interface InboxOptions {
  readonly clock: Clock;
  readonly pageSize: number;
  /** Most notifications that are held: beyond that the list begins again with its newest page. */
  readonly maxItems: number;
  readonly storage: InboxStorage | undefined;
  /** The key of this user's record. */
  readonly storageKey: string;
  /** How long a change that could not be sent is tried. */
  readonly changeTimeoutMs: number;
  /** Whether the page shows this inbox already: what is stored may be older than that. */
  readonly isShown?: boolean;
}

export interface InboxLink {
  isOnline(): boolean;
  send(envelope: Envelope): boolean;
  drop(error: SignalError): void;
  error(error: SignalError): void;
}

/** A sync is answered within this time, or the connection is dead. */
const SYNC_MS = 15_000;
/** 9.9: many clients see the same gap at the same moment. */
const GAP_MS = [200, 800] as const;
const SAVE_MS = 500;
/** Most that is stored. */
const MOST_SAVED = 200;
const RETRY_MS = [1_000, 30_000] as const;

export class Inbox {
  readonly state = new Value<InboxState>(emptyInbox);
  readonly #options: InboxOptions;
  readonly #rest: Rest;
  readonly #link: InboxLink;
  readonly #changes = new Changes();
  readonly #syncTimer: Timer;
  readonly #gapTimer: Timer;
  readonly #saveTimer: Timer;
  #ledger = new Ledger();
  #userId: string | null = null;
  #isReloading = false;
  #needsReload = false;
  #needsRestart = false;
  #isTold = false;
  #failures = 0;
  #syncTick = 0;
  #error: SignalError | null = null;
  #isUnavailable = false;
  #isClosed = false;
  #isForgotten = false;
  #isPublishing = false;
  #fetching = false;
  /** Requests of pages follow each other. */
  #pages: Promise<unknown> = Promise.resolve();
  #restored: Promise<void>;

  constructor(options: InboxOptions, rest: Rest, link: InboxLink) {
    this.#options = options;
    this.#rest = rest;
    this.#link = link;
    this.#syncTimer = new Timer(options.clock);
    this.#gapTimer = new Timer(options.clock);
    this.#saveTimer = new Timer(options.clock);
    this.#restored = options.isShown ? Promise.resolve() : this.#restore();
  }

  /** A connection began. */
  async connected(userId: string): Promise<void> {
    await this.#restored;
    if (this.#isClosed) return;
    if (this.#userId !== null && this.#userId !== userId) {
      // Another person: nothing of the last one is shown, not for a moment.
      this.#ledger = new Ledger();
      this.#changes.clear();
      this.#isUnavailable = false;
      this.#needsReload = false;
      this.state.set(emptyInbox);
      await this.#clearStorage();
    }
    this.#userId = userId;
    // Without a page nothing says of which history the facts are that came before.
    if (this.#ledger.epoch === null) this.#ledger = new Ledger();
    this.#ledger.begin();
    this.#isTold = true;
    this.#failures = 0;
    if (this.#needsRestart) this.#follow("restart");
    else this.#next();
  }

  /** The connection is gone. */
  lost(): void {
    this.#syncTimer.clear();
    this.#gapTimer.clear();
    this.#ledger.begin();
    this.#publish(true);
  }

  close(): void {
    this.#isClosed = true;
    this.#syncTimer.clear();
    this.#gapTimer.clear();
    if (this.#saveTimer.isSet) void this.#save();
    this.#saveTimer.clear();
  }

  /** The person signed out: nothing of them is stored, now and later. */
  async forget(): Promise<void> {
    this.#isForgotten = true;
    this.close();
    await this.#clearStorage();
  }

  async #clearStorage(): Promise<void> {
    this.#saveTimer.clear();
    await this.#guardStorage(() => this.#options.storage?.clear(this.#options.storageKey));
  }

  /** Takes an event of the connection. Returns whether it was the inbox's. */
  event({ event, data }: Envelope): boolean {
    const ledger = this.#ledger;
    switch (event) {
      case "notification:created":
        ledger.created(data as NotificationCreated);
        break;
      case "notification:skipped":
        ledger.skip(data as NotificationSkipped);
        break;
      case "notification:read":
        ledger.read(data as NotificationsRead);
        break;
      case "notification:deleted":
        ledger.deleted(data as NotificationsDeleted);
        this.#changes.counted((data as NotificationsDeleted).ids);
        break;
      case "notification:synced":
        this.#synced(data as Synced);
        break;
      case "resync":
        this.#isTold = true;
        break;
      case "error":
        this.#refused(String((data as { message?: unknown })?.message));
        return false;
      default:
        return false;
    }
    this.#look();
    this.#publish();
    return event !== "resync";
  }

  /** Marks these as read; shown at once, and taken back where the gateway refuses. */
  async read(ids: readonly string[]): Promise<void> {
    // As many as one request may name.
    for (let at = 0; at < ids.length; at += 1000) {
      const some = ids.slice(at, at + 1000);
      await this.#change("read", some, -1, async () => this.#ledger.read(await this.#rest.read({ ids: some })));
    }
  }

  /** Marks all up to this `seq` as read; without one, all that are known. */
  async readUpTo(seq?: number): Promise<void> {
    const upTo = seq ?? this.#ledger.contiguous;
    const selector = upTo === null ? ({ all: true } as const) : { upTo };
    await this.#change("read", [], upTo ?? Number.MAX_SAFE_INTEGER, async () => this.#ledger.read(await this.#rest.read(selector)));
  }

  /** Deletes one; hidden at once, and shown again where the gateway refuses. */
  async remove(id: string): Promise<void> {
    await this.#change("delete", [id], -1, async (change) => {
      const existed = await this.#rest.remove(id);
      const held = this.#ledger.sorted().find((row) => row.id === id);
      this.#ledger.markDeleted(id);
      if (existed && held) this.#changes.deleted(change, held.isRead ? 0 : 1);
      else this.#changes.end(change);
    });
  }

  /** Loads the page behind the oldest that is held. */
  loadMore(): Promise<void> {
    return this.#inTurn(async () => {
      const { next } = this.#ledger;
      if (next === null) return;
      const ledger = this.#ledger;
      const page = await this.#rest.page({ cursor: next, limit: this.#options.pageSize });
      if (ledger === this.#ledger) this.#follow(ledger.older(page));
      this.#look();
      this.#publish(true);
    });
  }

  async #change(kind: Change["kind"], ids: readonly string[], upTo: number, send: (change: Change) => Promise<void>): Promise<void> {
    const { clock, changeTimeoutMs } = this.#options;
    const change = this.#changes.begin(kind, ids, upTo, new Date(clock.now()).toISOString());
    this.#publish(true);
    const until = clock.now() + changeTimeoutMs;
    try {
      for (let failures = 0; ; failures++) {
        try {
          await send(change);
          break;
        } catch (thrown) {
          const error = asSignalError(thrown, "rest");
          const wait = error.retryAfterMs ?? 500 * 2 ** failures * (0.5 + clock.random() / 2);
          if (this.#isClosed || !isTransient(error) || clock.now() + wait > until) throw error;
          await new Promise<void>((resolve) => clock.after(wait, resolve));
        }
      }
      if (!change.done) this.#changes.end(change);
    } catch (error) {
      this.#changes.end(change);
      throw error;
    } finally {
      this.#look();
      this.#publish(true);
    }
  }

  /** Starts the next question where one is needed and none is open. */
  #next(): void {
    const ledger = this.#ledger;
    if (this.#isClosed || this.#isUnavailable || !this.#link.isOnline()) return;
    if (ledger.syncing > 0 || this.#isReloading) return;
    if (ledger.contiguous === null || this.#needsReload) void this.#reload();
    else this.#sync();
  }

  #sync(): void {
    const ledger = this.#ledger;
    const after = ledger.contiguous ?? 0;
    this.#gapTimer.clear();
    this.#isTold = false;
    this.#syncTick = this.#changes.ask();
    ledger.ask();
    this.#link.send({ event: "notification:sync", data: { after } });
    this.#syncTimer.set(SYNC_MS, () => this.#link.drop(new SignalError("timeout", "a sync was not answered")));
  }

  #synced(data: Synced): void {
    this.#syncTimer.clear();
    this.#failures = 0;
    const need = this.#needsRestart ? "restart" : this.#ledger.finish(data);
    if (this.#needsRestart) this.#ledger.failSync();
    if (need === "more") {
      this.#sync();
      return;
    }
    if (need === "none") this.#changes.answered(this.#syncTick);
    this.#follow(need);
    if (this.#ledger.items.size > this.#options.maxItems) this.#needsReload = true;
    if (this.#needsReload) this.#next();
  }

  #follow(need: Need): void {
    if (need === "restart" && this.#ledger.syncing > 0) {
      // Its answer is of before, and nobody could tell it from the next one's.
      this.#needsRestart = true;
    } else if (need === "restart") {
      // What is shown stays until the first page has come.
      this.#ledger = new Ledger();
      this.#needsReload = this.#needsRestart = false;
      this.#syncTimer.clear();
      this.#next();
    } else if (need === "reload") {
      this.#needsReload = true;
      this.#next();
    }
  }

  /** Loads the pages that are held from REST, or the first one. */
  async #reload(): Promise<void> {
    const ledger = this.#ledger;
    const tick = this.#changes.ask();
    let need: Need = "none";
    this.#isReloading = true;
    this.#isTold = true;
    ledger.beginReload();
    try {
      const pages = await this.#inTurn(() => this.#heldPages(ledger));
      if (ledger === this.#ledger) {
        need = ledger.reload(pages);
        this.#needsReload = false;
        this.#error = null;
        this.#failures = 0;
        if (need === "none") this.#changes.answered(tick);
      }
    } catch (thrown) {
      ledger.cancelReload();
      const error = asSignalError(thrown, "rest");
      this.#error = error;
      this.#link.error(error);
      // authorization.md 7.2
      if (error.problem === "no_inbox") this.#isUnavailable = true;
      else this.#again(error.retryAfterMs);
    }
    this.#isReloading = false;
    if (need === "restart") this.#follow(need);
    // What was created meanwhile.
    else if (!this.#gapTimer.isSet) this.#next();
    this.#publish(true);
  }

  async #heldPages(ledger: Ledger): Promise<NotificationPage[]> {
    const { pageSize, maxItems } = this.#options;
    const all = ledger.sorted();
    const held = all.length > maxItems ? [] : all;
    const oldest = held.at(-1)?.seq ?? Number.POSITIVE_INFINITY;
    const limit = held.length > pageSize ? 100 : pageSize;
    const pages: NotificationPage[] = [];
    for (let cursor: string | null = null; ; ) {
      const page: NotificationPage = await this.#rest.page({ cursor, limit });
      pages.push(page);
      cursor = page.next;
      if (cursor === null || (page.data.at(-1)?.seq ?? 0) <= oldest || oldest === Number.POSITIVE_INFINITY) return pages;
    }
  }

  /** Looks at what is known after something came, and syncs soon where there is a gap. */
  #look(): void {
    const ledger = this.#ledger;
    // Also one that was kept behind a gap until now.
    if (ledger.skipped.size > 0) void this.#fetchSkipped();
    if (ledger.syncing > 0 || this.#isReloading || this.#gapTimer.isSet || !this.#link.isOnline()) return;
    if (!ledger.hasGap && !this.#isTold) return;
    const { clock } = this.#options;
    this.#gapTimer.set(GAP_MS[0] + clock.random() * GAP_MS[1], () => {
      if (this.#ledger.hasGap || this.#isTold) this.#next();
    });
  }

  /** 2.9, 2.10: the sync is not answered. */
  #refused(text: string): void {
    if (this.#ledger.syncing === 0 || (text !== "Try again later" && text !== "Too many requests")) return;
    this.#syncTimer.clear();
    this.#ledger.failSync();
    if (this.#needsRestart) this.#follow("restart");
    else this.#again();
    this.#publish(true);
  }

  #again(retryAfterMs?: number): void {
    const { clock } = this.#options;
    const bound = Math.min(RETRY_MS[1], RETRY_MS[0] * 2 ** this.#failures++);
    this.#isTold = true;
    this.#gapTimer.set(retryAfterMs ?? GAP_MS[0] + clock.random() * bound, () => this.#next());
  }

  async #fetchSkipped(): Promise<void> {
    if (this.#fetching) return;
    this.#fetching = true;
    try {
      for (;;) {
        const ledger = this.#ledger;
        const id = ledger.skipped.keys().next().value;
        if (id === undefined) return;
        ledger.fetched(id, await this.#rest.one(id));
        this.#publish();
      }
    } catch (thrown) {
      this.#link.error(asSignalError(thrown, "rest"));
      // It is in the pages of REST.
      this.#needsReload = true;
      this.#again();
    } finally {
      this.#fetching = false;
    }
  }

  #inTurn<T>(run: () => Promise<T>): Promise<T> {
    const turn = this.#pages.then(run, run);
    this.#pages = turn.catch(() => {});
    return turn;
  }

  /** Shows what is known, once for all that comes in one turn. `isOwn`: also while a sync is open. */
  #publish(isOwn = false): void {
    if (this.#isPublishing || (this.#ledger.syncing > 0 && !isOwn)) return;
    this.#isPublishing = true;
    queueMicrotask(() => {
      this.#isPublishing = false;
      this.#show();
    });
  }

  #show(): void {
    if (this.#isClosed) return;
    const ledger = this.#ledger;
    if (ledger.epoch === null) {
      // Nothing is known: what was shown before stays.
      const status = this.#isUnavailable ? "unavailable" : this.state.getSnapshot().status;
      this.state.set({ ...this.state.getSnapshot(), status, error: this.#error });
      return;
    }
    const { items, unreadCount } = this.#changes.over(ledger);
    this.state.set({ status: "ready", items, unreadCount, hasMore: ledger.next !== null, error: this.#error });
    if (this.#options.storage && !this.#saveTimer.isSet) this.#saveTimer.set(SAVE_MS, () => void this.#save());
  }

  async #restore(): Promise<void> {
    const { storage, storageKey } = this.#options;
    if (!storage) return;
    await this.#guardStorage(async () => {
      const record = await storage.load(storageKey);
      if (!record || this.#ledger.epoch !== null) return;
      this.#userId = record.userId;
      this.#ledger.restore(record.inbox);
      this.#publish(true);
    });
  }

  async #save(): Promise<void> {
    const { storage, storageKey } = this.#options;
    if (this.#isForgotten) return;
    const inbox = this.#ledger.save(MOST_SAVED);
    const userId = this.#userId;
    if (inbox && userId !== null) await this.#guardStorage(() => storage?.save(storageKey, { userId, inbox }));
  }

  /** The browser's storage may be full, blocked or gone: the client goes on without it. */
  async #guardStorage(run: () => Promise<void> | undefined): Promise<void> {
    try {
      await run();
    } catch (error) {
      this.#link.error(asSignalError(error, "storage"));
    }
  }
}
