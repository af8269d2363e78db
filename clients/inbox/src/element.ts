// `<signal-inbox>`: the bell, the panel, and what connects them with a client.
//
// Nothing here asks a server for anything: the client's store says what there is, and its methods change it. Each change of the store, of an
// attribute or of a property leads to one `#update`, at the end of the turn, which sets what differs.

import type { Client, Notification } from "@signal/client";
import { attribute, show, text } from "./dom.js";
import { linkOf, safeLink } from "./link.js";
import { VirtualList } from "./list.js";
import { type Messages, Texts, watchMessages } from "./messages.js";
import { type OpenReason, Popover } from "./popover.js";
import type { Placement } from "./position.js";
import { Row, type RowHost } from "./row.js";
import { Times } from "./time.js";
import { type View, build } from "./view.js";

export { linkOf } from "./link.js";
export { type Messages, type Plural, addMessages } from "./messages.js";
export type { OpenReason } from "./popover.js";
export type { Placement } from "./position.js";

/** What the element needs of a client. */
export type InboxClient = Pick<Client, "connect" | "connection" | "inbox">;

/** Details of the events of `<signal-inbox>`. */
export interface InboxEventDetails {
  /** The person opens or closes the panel. Cancelable: then `open` stays, and the page sets it. */
  readonly "signal-open-change": { readonly open: boolean; readonly reason: OpenReason };
  /** A notification was clicked. Cancelable: then its link is not followed, and the page goes there by its router. */
  readonly "signal-item-click": { readonly notification: Notification; readonly href: string | null; readonly originalEvent: MouseEvent };
  /** The count changed. */
  readonly "signal-count": { readonly unreadCount: number };
  /** What the person asked for could not be done. */
  readonly "signal-error": { readonly action: "read" | "delete" | "more"; readonly error: unknown };
}

export type InboxEvents = { readonly [Name in keyof InboxEventDetails]: CustomEvent<InboxEventDetails[Name]> };

/** Gives a notification a look of its own: an element, which the inbox puts into the page as its own child, or null for the usual look. Called again for each new state of it; `signal` aborts when it is out of sight. */
export type RenderItem = (notification: Notification, signal: AbortSignal) => Element | null;

/** `all`, or those that are unread. */
export type InboxTab = "all" | "unread";

const PROPERTIES = ["client", "messages", "renderItem", "itemLink"] as const;
const MOST_SHOWN = 99;
const TICK_MS = 30_000;
const TOAST_MS = 6_000;
const ANNOUNCE_MS = 700;

// Where pages are rendered on a server there are no elements; the class is there, and nobody makes one.
const Base = (globalThis as { HTMLElement?: typeof HTMLElement }).HTMLElement ?? (class {} as typeof HTMLElement);

export class SignalInbox extends Base {
  static readonly observedAttributes = ["open", "mode", "placement", "theme", "locale", "tab", "lang", "dir"];

  #client: InboxClient | null = null;
  #messages: Partial<Messages> = {};
  #renderItem: RenderItem | null = null;
  #itemLink: (notification: Notification) => unknown = linkOf;
  #view: View | undefined;
  #list!: VirtualList<Notification>;
  #popover!: Popover;
  #locale = "";
  #texts = new Texts("en");
  #times = new Times("en");
  #host!: RowHost;
  #total: number | null = null;
  #ends: (() => void)[] = [];
  #isPending = false;
  #isLoadingMore = false;
  #moreFailed = false;
  #unreadCount: number | null = null;
  #seenSeq = 0;
  #topSeq = 0;
  #toastTimer = 0;
  #announceTimer = 0;
  /** The time that rows show. */
  #now = 0;

  /** The client whose inbox is shown; null shows an empty bell. */
  get client(): InboxClient | null {
    return this.#client;
  }
  set client(client: InboxClient | null) {
    if (client === this.#client) return;
    this.#client = client;
    this.#unreadCount = null;
    this.#seenSeq = 0;
    if (this.isConnected) this.#watch();
  }

  /** Texts of this inbox alone, over those of its language. */
  get messages(): Partial<Messages> {
    return this.#messages;
  }
  set messages(messages: Partial<Messages>) {
    this.#messages = messages;
    this.#say();
  }

  get renderItem(): RenderItem | null {
    return this.#renderItem;
  }
  set renderItem(render: RenderItem | null) {
    this.#renderItem = render;
    this.#rebuild();
  }

  /** Where a notification leads to. Only http, https and relative addresses are used. Default: `linkOf`. */
  get itemLink(): (notification: Notification) => unknown {
    return this.#itemLink;
  }
  set itemLink(link: (notification: Notification) => unknown) {
    this.#itemLink = link;
    this.#rebuild();
  }

  /** Whether the panel is open. */
  get open(): boolean {
    return this.hasAttribute("open");
  }
  set open(open: boolean) {
    this.toggleAttribute("open", open);
  }

  /** `popover`, the default: a bell that opens the panel above everything else; `inline`: the panel alone, as a part of the page. */
  get mode(): "popover" | "inline" {
    return this.getAttribute("mode") === "inline" ? "inline" : "popover";
  }
  set mode(mode: "popover" | "inline") {
    this.setAttribute("mode", mode);
  }

  /** Where the panel opens. Default `bottom-end`. */
  get placement(): Placement {
    const value = this.getAttribute("placement");
    return value === "bottom-start" || value === "top-start" || value === "top-end" ? value : "bottom-end";
  }
  set placement(placement: Placement) {
    this.setAttribute("placement", placement);
  }

  /** `auto`, the default: as the system has it; `light`, `dark`, or `page`: as the page's `color-scheme` says. */
  get theme(): "auto" | "light" | "dark" | "page" {
    const value = this.getAttribute("theme");
    return value === "light" || value === "dark" || value === "page" ? value : "auto";
  }
  set theme(theme: "auto" | "light" | "dark" | "page") {
    this.setAttribute("theme", theme);
  }

  /** A BCP 47 tag. Default: that of the page at this place, or the browser's. */
  get locale(): string {
    return this.getAttribute("locale") || (this.closest("[lang]") as HTMLElement | null)?.lang || navigator.language;
  }
  set locale(locale: string) {
    this.setAttribute("locale", locale);
  }

  get tab(): InboxTab {
    return this.getAttribute("tab") === "unread" ? "unread" : "all";
  }
  set tab(tab: InboxTab) {
    this.setAttribute("tab", tab);
  }

  connectedCallback(): void {
    // Set before the element was defined, such a property hides the accessor.
    for (const name of PROPERTIES) {
      if (!Object.hasOwn(this, name)) continue;
      const value = this[name];
      delete (this as Record<string, unknown>)[name];
      (this as Record<string, unknown>)[name] = value;
    }
    if (!this.#view) this.#build();
    this.#list.connect();
    this.#watch();
    const timer = setInterval(() => this.#tick(), TICK_MS);
    this.#ends.push(() => clearInterval(timer), this.#popover.connect(), watchMessages(() => this.#say()));
    this.#update();
  }

  disconnectedCallback(): void {
    for (const end of this.#ends.splice(0)) end();
    this.#unwatch();
    this.#list.disconnect();
    clearTimeout(this.#toastTimer);
    clearTimeout(this.#announceTimer);
  }

  attributeChangedCallback(): void {
    this.#changed();
  }

  #unwatch = (): void => {};

  #watch(): void {
    this.#unwatch();
    const client = this.#client;
    const changed = (): void => this.#changed();
    const ends = client ? [client.inbox.subscribe(changed), client.connection.subscribe(changed)] : [];
    this.#unwatch = () => {
      for (const end of ends.splice(0)) end();
    };
    this.#changed();
  }

  #changed(): void {
    if (this.#isPending || !this.#view) return;
    this.#isPending = true;
    queueMicrotask(() => {
      this.#isPending = false;
      if (this.isConnected) this.#update();
    });
  }

  /** Texts are others. */
  #say(): void {
    this.#locale = "";
    this.#changed();
  }

  /** Rows are made again, for they look or lead otherwise. */
  #rebuild(): void {
    if (!this.#view) return;
    this.#list.set([]);
    this.#changed();
  }

  #build(): void {
    const view = build(this.shadowRoot ?? this.attachShadow({ mode: "open" }));
    this.#view = view;
    const element = this;
    this.#host = {
      get texts() { return element.#texts; },
      get times() { return element.#times; },
      get now() { return element.#now; },
      get total() { return element.#total; },
      link: (notification) => safeLink(this.#itemLink(notification), document.baseURI),
      custom: (notification, name, signal) => this.#custom(notification, name, signal),
      activate: (notification, href, event) => this.#activate(notification, href, event),
      read: ({ id }) => this.#do("read", (client) => client.inbox.read([id])),
      remove: ({ id }) => this.#do("delete", (client) => client.inbox.remove(id)),
    };
    this.#list = new VirtualList(view.scroller, view.list, {
      make: (row) => new Row(this.#host, row),
      nearEnd: () => this.#more(),
      scrolled: () => this.#scrolled(),
    });
    this.#popover = new Popover(this, view, (open, reason) => this.#fire("signal-open-change", { open, reason }));
    view.readAll.addEventListener("click", () => this.#do("read", (client) => client.inbox.readAll()));
    view.connect.addEventListener("click", () => this.#client?.connect());
    view.retry.addEventListener("click", () => {
      this.#moreFailed = false;
      this.#more();
    });
    view.more.addEventListener("click", () => {
      this.#list.toTop();
      this.#list.focus(0);
    });
    for (const tab of ["all", "unread"] as const) view[tab].addEventListener("click", () => this.#select(tab));
    view.tabs.addEventListener("keydown", (event) => this.#tabKey(event));
  }

  #custom(notification: Notification, name: string, signal: AbortSignal): Element | null {
    const element = this.#renderItem?.(notification, signal) ?? null;
    if (element) {
      attribute(element, "slot", name);
      if (element.parentNode !== this) this.append(element);
    }
    return element;
  }

  #activate(notification: Notification, href: string | null, event: MouseEvent): void {
    const isFollowed = this.#fire("signal-item-click", { notification, href, originalEvent: event });
    if (!isFollowed) event.preventDefault();
    // At once, for the page may be left with this click. In the list of unread ones the row goes by it: a link is followed all the same.
    if (!notification.isRead) this.#host.read(notification);
    if (href !== null && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey) this.#popover.ask(false, "item");
  }

  #do(action: "read" | "delete", run: (client: InboxClient) => Promise<void>): void {
    if (!this.#client) return;
    run(this.#client).catch((error: unknown) => {
      this.#fire("signal-error", { action, error });
      this.#toast(this.#texts.get("changeFailed"));
    });
  }

  #toast(message: string): void {
    const { toast } = this.#view!;
    text(toast, message);
    show(toast, true);
    clearTimeout(this.#toastTimer);
    this.#toastTimer = window.setTimeout(() => show(toast, false), TOAST_MS);
  }

  #more(): void {
    const client = this.#client;
    if (!client || this.#isLoadingMore || this.#moreFailed || !this.#isVisible) return;
    const { hasMore, status, items, unreadCount } = client.inbox.getSnapshot();
    if (!hasMore || status !== "ready") return;
    // Older ones than the last unread one are of no use there.
    if (this.tab === "unread" && items.reduce((sum, { isRead }) => sum + (isRead ? 0 : 1), 0) >= unreadCount) return;
    this.#isLoadingMore = true;
    this.#changed();
    client.inbox.loadMore().then(
      () => {
        this.#isLoadingMore = false;
        this.#changed();
      },
      (error: unknown) => {
        this.#isLoadingMore = false;
        this.#moreFailed = true;
        this.#fire("signal-error", { action: "more", error });
        this.#changed();
      },
    );
  }

  get #isVisible(): boolean {
    return this.mode === "inline" || this.#popover.isOpen;
  }

  #fire<Name extends keyof InboxEventDetails>(name: Name, detail: InboxEventDetails[Name]): boolean {
    return this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true, cancelable: true }));
  }

  #tabKey(event: KeyboardEvent): void {
    const isNext = event.key === "ArrowRight" || event.key === "ArrowLeft";
    const tab = isNext ? (this.tab === "all" ? "unread" : "all") : event.key === "Home" ? "all" : event.key === "End" ? "unread" : null;
    if (!tab) return;
    event.preventDefault();
    this.#select(tab);
    this.#view![tab].focus();
  }

  #select(tab: InboxTab): void {
    this.tab = tab;
    this.#view!.scroller.scrollTop = 0;
  }

  #tick(): void {
    if (!this.#isVisible) return;
    this.#now = Date.now();
    this.#list.each((row) => (row as Row).tick());
  }

  #scrolled(): void {
    if (!this.#list.isScrolled) this.#seenSeq = Math.max(this.#seenSeq, this.#topSeq);
    const { more, moreText } = this.#view!;
    let count = 0;
    for (const { seq } of this.#list.rows) {
      if (seq <= this.#seenSeq) break;
      count++;
    }
    show(more, count > 0);
    if (count > 0) text(moreText, this.#texts.count("more", count));
  }

  #update(): void {
    const view = this.#view!;
    const isInline = this.mode === "inline";
    const { locale } = this;
    if (locale !== this.#locale) {
      this.#locale = locale;
      this.#texts = new Texts(locale, this.#messages);
      this.#times = new Times(this.#texts.locale);
    }
    this.#now = Date.now();
    show(view.bell, !isInline);
    show(view.close, !isInline);
    this.#updateTexts(view);
    this.#popover.update();
    this.#updateCount(view);
    this.#updateBanner(view);
    if (this.#isVisible) this.#updateList(view);
  }

  #updateTexts(view: View): void {
    const texts = this.#texts;
    text(view.title, texts.get("title"));
    text(view.allLabel, texts.get("all"));
    text(view.unreadLabel, texts.get("unread"));
    text(view.connect, texts.get("connect"));
    text(view.retry, texts.get("retry"));
    for (const [button, key] of [[view.readAll, "markAllRead"], [view.close, "close"]] as const) {
      attribute(button, "aria-label", texts.get(key));
      attribute(button, "title", texts.get(key));
    }
    attribute(view.panel, "lang", texts.locale);
    attribute(view.bell, "lang", texts.locale);
  }

  #updateCount(view: View): void {
    const texts = this.#texts;
    const state = this.#client?.inbox.getSnapshot();
    const count = state?.unreadCount ?? 0;
    const shown = count > MOST_SHOWN ? `${texts.number(MOST_SHOWN)}+` : texts.number(count);
    show(view.badge, count > 0);
    text(view.badge, shown);
    const label = count > 0 ? texts.count("bell", count, shown) : texts.get("title");
    attribute(view.bell, "aria-label", label);
    show(view.unreadCount, count > 0);
    text(view.unreadCount, shown);
    view.readAll.disabled = count === 0;
    if (!state || state.status === "loading") return;
    const before = this.#unreadCount;
    if (before === count) return;
    this.#unreadCount = count;
    this.#fire("signal-count", { unreadCount: count });
    if (before === null || count < before) return;
    // A burst is read out once.
    clearTimeout(this.#announceTimer);
    this.#announceTimer = window.setTimeout(() => text(view.status, label), ANNOUNCE_MS);
  }

  #updateBanner(view: View): void {
    const status = this.#client?.connection.getSnapshot().status;
    const isClosed = status === "closed";
    show(view.banner, isClosed || status === "waiting");
    text(view.bannerText, this.#texts.get(isClosed ? "closed" : "offline"));
    show(view.connect, isClosed);
  }

  #updateList(view: View): void {
    const texts = this.#texts;
    const { tab } = this;
    for (const name of ["all", "unread"] as const) {
      attribute(view[name], "aria-selected", String(name === tab));
      view[name].tabIndex = name === tab ? 0 : -1;
    }
    attribute(view.body, "aria-labelledby", tab);
    const state = this.#client?.inbox.getSnapshot();
    const all = state?.items ?? [];
    const rows = tab === "unread" ? all.filter(({ isRead }) => !isRead) : all;
    this.#topSeq = all[0]?.seq ?? 0;
    this.#total = state?.hasMore ? null : rows.length;
    const isMissing = rows.length === 0 && tab === "unread" && state?.hasMore === true && state.unreadCount > 0 && !this.#moreFailed;
    const isLoading = rows.length === 0 && (state === undefined || (state.status === "loading" && !state.error) || isMissing);
    const kind = rows.length > 0 || isLoading ? null : state?.status === "unavailable" ? "unavailable" : state?.error ? "error" : tab === "unread" && all.length > 0 ? "no-unread" : "empty";
    show(view.ghosts, isLoading);
    show(view.state, kind !== null);
    show(view.scroller, rows.length > 0);
    attribute(view.body, "aria-busy", isLoading || this.#isLoadingMore ? "true" : null);
    if (kind !== null) {
      const key = kind === "no-unread" ? "noUnread" : kind;
      view.stateSlot.name = kind;
      text(view.stateTitle, texts.get(`${key}Title`));
      text(view.stateText, texts.get(`${key}Text`));
    }
    show(view.foot, this.#isLoadingMore || this.#moreFailed);
    text(view.footText, this.#moreFailed ? texts.get("moreFailed") : texts.get("loading"));
    show(view.retry, this.#moreFailed);
    this.#list.set(rows);
    if (isMissing) this.#more();
  }
}

// Listeners are typed.
export interface SignalInbox {
  addEventListener<Name extends keyof InboxEvents>(type: Name, listener: (event: InboxEvents[Name]) => void, options?: boolean | AddEventListenerOptions): void;
  addEventListener<Name extends keyof HTMLElementEventMap>(type: Name, listener: (event: HTMLElementEventMap[Name]) => void, options?: boolean | AddEventListenerOptions): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject, options?: boolean | AddEventListenerOptions): void;
}

declare global {
  interface HTMLElementTagNameMap {
    "signal-inbox": SignalInbox;
  }
}
