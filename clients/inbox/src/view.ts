// The nodes of the bell and the panel, made once for each element.

import { icon, icons, make, slot } from "./dom.js";
import { css } from "./styles.js";

let sheet: CSSStyleSheet | undefined;

export interface View {
  readonly bell: HTMLButtonElement;
  readonly badge: HTMLElement;
  readonly panel: HTMLElement;
  readonly title: HTMLElement;
  readonly readAll: HTMLButtonElement;
  readonly close: HTMLButtonElement;
  readonly tabs: HTMLElement;
  readonly all: HTMLButtonElement;
  readonly unread: HTMLButtonElement;
  readonly allLabel: HTMLElement;
  readonly unreadLabel: HTMLElement;
  readonly unreadCount: HTMLElement;
  readonly banner: HTMLElement;
  readonly bannerText: HTMLElement;
  readonly connect: HTMLButtonElement;
  readonly body: HTMLElement;
  readonly scroller: HTMLElement;
  readonly list: HTMLElement;
  readonly foot: HTMLElement;
  readonly footText: HTMLElement;
  readonly retry: HTMLButtonElement;
  readonly ghosts: HTMLElement;
  readonly state: HTMLElement;
  readonly stateSlot: HTMLSlotElement;
  readonly stateTitle: HTMLElement;
  readonly stateText: HTMLElement;
  readonly more: HTMLButtonElement;
  readonly moreText: HTMLElement;
  readonly toast: HTMLElement;
  readonly status: HTMLElement;
}

export function build(root: ShadowRoot): View {
  if (!sheet) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(css);
  }
  root.adoptedStyleSheets = [sheet];
  const span = (className: string): HTMLElement => make("span", { class: className });
  const tool = (part: string, path: string): HTMLButtonElement => make("button", { class: "tool", type: "button", part }, icon(path));
  const action = (part: string): HTMLButtonElement => make("button", { class: "action", type: "button", part });

  const badge = make("span", { class: "badge", part: "badge", "aria-hidden": "true" });
  const bell = make("button", { class: "bell", part: "bell", type: "button", "aria-haspopup": "dialog", "aria-controls": "panel" }, slot("bell", icon(icons.bell)), badge);

  const title = make("h2", { class: "title", part: "title", id: "title" });
  const readAll = tool("read-all", icons.checks);
  const close = tool("close", icons.close);
  const header = make("div", { class: "header", part: "header" }, title, slot("header"), readAll, close);

  const allLabel = make("span");
  const unreadLabel = make("span");
  const unreadCount = make("span", { class: "tab-count", part: "tab-count", "aria-hidden": "true" });
  const tab = (id: string, ...children: Node[]): HTMLButtonElement => make("button", { class: "tab", part: "tab", type: "button", role: "tab", id, "aria-controls": "body" }, ...children);
  const all = tab("all", allLabel);
  const unread = tab("unread", unreadLabel, unreadCount);
  const tabs = make("div", { class: "tabs", part: "tabs", role: "tablist", "aria-labelledby": "title" }, all, unread);

  const bannerText = make("span");
  const connect = action("connect");
  const banner = make("div", { class: "banner", part: "banner" }, bannerText, connect);

  const list = make("div", { class: "list", part: "list", role: "list" });
  const footText = make("span");
  const retry = action("retry");
  const foot = make("div", { class: "foot", part: "foot" }, footText, retry);
  const scroller = make("div", { class: "scroller", part: "scroller", tabindex: "-1" }, list, foot);
  const ghosts = make("div", { part: "loading", "aria-hidden": "true" }, ...Array.from({ length: 5 }, () => make("div", { class: "ghost" })));
  const stateTitle = span("state-title");
  const stateText = make("span");
  const stateSlot = slot("empty", make("span", { class: "state-icon" }, icon(icons.bell)), stateTitle, stateText);
  const state = make("div", { class: "state", part: "state" }, stateSlot);
  const moreText = make("span");
  const more = make("button", { class: "more", part: "more", type: "button" }, icon(icons.up), moreText);
  const toast = make("div", { class: "toast", part: "toast", role: "alert" });
  const body = make("div", { class: "body", part: "body", id: "body", role: "tabpanel" }, scroller, ghosts, state, more, toast);

  const panel = make("div", { class: "panel", part: "panel", id: "panel", "aria-labelledby": "title", tabindex: "-1" }, header, tabs, banner, body, slot("footer"));
  const status = make("div", { class: "hidden", role: "status" });
  root.replaceChildren(bell, panel, status);
  for (const hidden of [badge, banner, foot, ghosts, state, more, toast]) hidden.hidden = true;
  return {
    bell, badge, panel, title, readAll, close, tabs, all, unread, allLabel, unreadLabel, unreadCount, banner, bannerText, connect, body, scroller, list,
    foot, footText, retry, ghosts, state, stateSlot, stateTitle, stateText, more, moreText, toast, status,
  };
}
