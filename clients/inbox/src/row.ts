// One notification in the list: its text, its link, and the buttons for it.

import type { Notification } from "@signal/client";
import { attribute, icon, icons, make, show, text } from "./dom.js";
import type { RowView } from "./list.js";
import type { Texts } from "./messages.js";
import type { Times } from "./time.js";

/** What a row asks of the element. */
export interface RowHost {
  readonly texts: Texts;
  readonly times: Times;
  readonly now: number;
  /** How many there are, or null while that is not known. */
  readonly total: number | null;
  link(notification: Notification): string | null;
  /** What the page shows in place of the text, in the slot of this name; `signal` aborts when the row is taken away. */
  custom(notification: Notification, slot: string, signal: AbortSignal): Element | null;
  activate(notification: Notification, href: string | null, event: MouseEvent): void;
  read(notification: Notification): void;
  remove(notification: Notification): void;
}

/** Languages that are written from right to left. */
const RTL = /^(ar|ckb|dv|fa|he|iw|ks|ps|sd|ug|ur|yi)(-|$)/i;
const INTERACTIVE = "a[href],button,input,select,textarea,summary,label,[role=button],[contenteditable]";

export class Row implements RowView<Notification> {
  readonly element = make("div", { class: "item", role: "listitem" });
  control!: HTMLElement;
  readonly #host: RowHost;
  #notification: Notification;
  #href: string | null | undefined;
  #custom: Element | null = null;
  #isCurrent = false;
  readonly #end = new AbortController();
  readonly #mark = make("span", { class: "hidden" });
  readonly #title = make("span", { class: "item-title", part: "item-title" });
  readonly #content = make("span", { class: "item-content", part: "item-content" });
  readonly #time = make("time", { class: "item-time", part: "item-time" });
  readonly #dot = make("span", { class: "dot", part: "unread-dot", "aria-hidden": "true" });
  readonly #read = make("button", { class: "tool", type: "button", part: "item-action item-read" }, icon(icons.check));
  readonly #remove = make("button", { class: "tool", type: "button", part: "item-action item-delete" }, icon(icons.remove));
  readonly #tools = make("div", { class: "tools", part: "item-actions" }, this.#read, this.#remove);

  constructor(host: RowHost, notification: Notification) {
    this.#host = host;
    this.#notification = notification;
    this.#read.addEventListener("click", () => host.read(this.#notification));
    this.#remove.addEventListener("click", () => host.remove(this.#notification));
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Delete" || event.target !== this.control) return;
      event.preventDefault();
      host.remove(this.#notification);
    });
    // Custom content lies above the link: a click on what is no control of its own is a click on the link.
    this.element.addEventListener("click", (event) => {
      const inner = (event.target as Element).closest?.(INTERACTIVE);
      if (inner) return;
      this.control.dispatchEvent(new MouseEvent("click", event));
    });
  }

  update(notification: Notification, index: number): void {
    const { texts, total } = this.#host;
    const isOther = this.#notification !== notification;
    this.#notification = notification;
    const { isRead, title, content, type, locale } = notification;
    attribute(this.element, "part", isRead ? "item" : "item item-unread");
    attribute(this.element, "data-type", type);
    attribute(this.element, "aria-posinset", String(index + 1));
    attribute(this.element, "aria-setsize", String(total ?? -1));
    this.element.classList.toggle("unread", !isRead);
    if (isOther || !this.control) this.#build();
    const mark = isRead ? "" : `${texts.get("unread")}. `;
    text(this.#mark, mark);
    if (this.#custom) attribute(this.control, "aria-label", mark + title);
    for (const [node, value] of [[this.#title, title], [this.#content, content]] as const) {
      text(node, value);
      attribute(node, "lang", locale || null);
      // The first letters of a text mislead where they are a name in another script.
      attribute(node, "dir", RTL.test(locale) ? "rtl" : "auto");
    }
    show(this.#content, content !== "");
    show(this.#read, !isRead);
    for (const [button, label] of [[this.#read, texts.get("markRead")], [this.#remove, texts.get("remove")]] as const) {
      attribute(button, "aria-label", `${label}: ${title}`);
      attribute(button, "title", label);
    }
    this.tick();
  }

  /** Time went on. */
  tick(): void {
    const { times, now } = this.#host;
    const { occurredAt, createdAt } = this.#notification;
    const at = Date.parse(occurredAt ?? createdAt);
    if (Number.isNaN(at)) return;
    text(this.#time, times.relative(at, now));
    attribute(this.#time, "datetime", new Date(at).toISOString());
    attribute(this.#time, "title", times.full(at));
  }

  setCurrent(isCurrent: boolean): void {
    this.#isCurrent = isCurrent;
    for (const control of [this.control, this.#read, this.#remove]) control.tabIndex = isCurrent ? 0 : -1;
  }

  contains(node: Node): boolean {
    return this.element.contains(node) || this.#custom?.contains(node) === true;
  }

  remove(): void {
    this.#custom?.remove();
    this.#end.abort();
  }

  /** The link or the button, around the text or, where the page shows its own, under that. */
  #build(): void {
    const host = this.#host;
    const href = host.link(this.#notification);
    const custom = host.custom(this.#notification, `item-${this.#notification.id}`, this.#end.signal);
    if (this.control && href === this.#href && custom === this.#custom) return;
    const { activeElement } = this.element.getRootNode() as ShadowRoot | Document;
    const isFocused = this.control !== undefined && activeElement === this.control;
    if (custom !== this.#custom) this.#custom?.remove();
    this.#href = href;
    this.#custom = custom;
    const control = href === null ? make("button", { type: "button" }) : make("a", { href });
    attribute(control, "class", custom ? "link cover" : "link");
    attribute(control, "part", "item-link");
    if (href !== null && new URL(href).origin !== location.origin) attribute(control, "rel", "noopener");
    control.addEventListener("click", (event: Event) => host.activate(this.#notification, href, event as MouseEvent));
    if (custom) {
      this.element.replaceChildren(control, make("div", { class: "custom" }, make("slot", { name: custom.slot })), this.#tools);
    } else {
      control.append(this.#dot, make("span", { class: "text" }, make("span", { class: "line" }, this.#mark, this.#title, this.#time), this.#content));
      this.element.replaceChildren(control, this.#tools);
    }
    this.control = control;
    this.setCurrent(this.#isCurrent);
    if (isFocused) control.focus({ preventScroll: true });
  }
}
