// The panel as it opens and closes: who may close it, where it stands, and where the focus goes.

import { attribute } from "./dom.js";
import { type Placement, position } from "./position.js";
import type { View } from "./view.js";

/** Why the panel is about to open or to close. */
export type OpenReason = "bell" | "close" | "escape" | "outside" | "focus" | "item";

/** The element around it. */
export interface PopoverHost extends HTMLElement {
  open: boolean;
  readonly mode: "popover" | "inline";
  readonly placement: Placement;
}

export class Popover {
  /** Whether the panel is shown above the page. */
  isOpen = false;
  readonly #host: PopoverHost;
  readonly #view: View;
  readonly #mayChange: (open: boolean, reason: OpenReason) => boolean;
  #takesFocus = false;

  /** `mayChange` asks the page. */
  constructor(host: PopoverHost, view: View, mayChange: (open: boolean, reason: OpenReason) => boolean) {
    this.#host = host;
    this.#view = view;
    this.#mayChange = mayChange;
    view.bell.addEventListener("click", () => this.ask(!host.open, "bell"));
    view.close.addEventListener("click", () => this.ask(false, "close"));
    // Also from what the page put into slots.
    host.addEventListener("keydown", (event) => this.#key(event));
    host.addEventListener("focusout", ({ relatedTarget }) => {
      // Without another element the window lost the focus, not the panel.
      if (relatedTarget instanceof Node && !host.contains(relatedTarget)) this.ask(false, "focus");
    });
  }

  /** Watches the page. Returns what ends that. */
  connect(): () => void {
    const end = new AbortController();
    const { signal } = end;
    const place = (): void => this.place();
    document.addEventListener("pointerdown", (event) => {
      if (!event.composedPath().includes(this.#host)) this.ask(false, "outside");
    }, { capture: true, signal });
    addEventListener("resize", place, { signal });
    addEventListener("scroll", place, { capture: true, passive: true, signal });
    // What lies around the bell may move it.
    const resized = new ResizeObserver(place);
    for (const around of [this.#host, document.documentElement, document.body]) resized.observe(around);
    return () => {
      end.abort();
      resized.disconnect();
      this.isOpen = false;
    };
  }

  /** The person wants the panel open or closed; the page may say no. */
  ask(open: boolean, reason: OpenReason): void {
    const host = this.#host;
    if (host.mode === "inline" || open === host.open) return;
    if (open) this.#takesFocus = true;
    if (this.#mayChange(open, reason)) host.open = open;
  }

  /** Shows what the element's attributes say. */
  update(): void {
    const { panel, bell } = this.#view;
    const isInline = this.#host.mode === "inline";
    const isOpen = this.#host.open && !isInline;
    attribute(panel, "popover", isInline ? null : "manual");
    attribute(panel, "role", isInline ? "region" : "dialog");
    panel.toggleAttribute("data-open", isOpen || isInline);
    attribute(bell, "aria-expanded", String(isOpen));
    if (isInline) panel.removeAttribute("style");
    if (isOpen === this.isOpen) return;
    this.isOpen = isOpen;
    if (isOpen) this.#show();
    else this.#hide();
  }

  place(): void {
    if (!this.isOpen) return;
    const { bell, panel } = this.#view;
    panel.style.maxHeight = "none";
    const { clientWidth, clientHeight } = document.documentElement;
    const isRtl = getComputedStyle(this.#host).direction === "rtl";
    // Not as it is drawn: it may be in motion.
    const size = { width: panel.offsetWidth, height: panel.offsetHeight };
    const { left, top, room } = position(bell.getBoundingClientRect(), size, { width: clientWidth, height: clientHeight }, this.#host.placement, isRtl);
    Object.assign(panel.style, { maxHeight: `${room}px`, left: `${left}px`, top: `${top}px` });
  }

  #show(): void {
    const { panel, scroller } = this.#view;
    // The top layer: above everything, and no ancestor clips it. Without it, `z-index` does what it can.
    panel.showPopover?.();
    this.place();
    scroller.scrollTop = 0;
    if (this.#takesFocus) panel.focus({ preventScroll: true });
    this.#takesFocus = false;
  }

  #hide(): void {
    const { panel, bell } = this.#view;
    const host = this.#host;
    const active = host.shadowRoot!.activeElement;
    const hadFocus = active ? panel.contains(active) : document.activeElement !== host && host.contains(document.activeElement);
    if (panel.hasAttribute("popover") && panel.hidePopover !== undefined && panel.matches(":popover-open")) panel.hidePopover();
    if (hadFocus) bell.focus();
  }

  #key(event: KeyboardEvent): void {
    if (event.key !== "Escape" || event.defaultPrevented || !this.isOpen) return;
    // A dialog of the page around it stays.
    event.preventDefault();
    event.stopPropagation();
    this.ask(false, "escape");
  }
}
