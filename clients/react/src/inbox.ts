"use client";
// `<signal-inbox>` as a component: its properties, its events, and React nodes in its slots and rows.

import type { Notification } from "@signal/client";
import type { InboxEvents, InboxTab, Messages, OpenReason, Placement, SignalInbox } from "@signal/inbox";
import "@signal/inbox";
import { type CSSProperties, type ReactNode, createElement, forwardRef, useEffect, useImperativeHandle, useLayoutEffect, useReducer, useRef } from "react";
import { createPortal } from "react-dom";
import { type AnyClient, useClient } from "./provider.js";

export interface InboxProps {
  readonly mode?: "popover" | "inline";
  readonly placement?: Placement;
  readonly theme?: "auto" | "light" | "dark" | "page";
  readonly locale?: string;
  /** The tab at the start, and another one whenever this changes. */
  readonly tab?: InboxTab;
  readonly messages?: Partial<Messages>;
  /** Given, the application holds the open state: change it in `onOpenChange`. */
  readonly open?: boolean;
  readonly onOpenChange?: (open: boolean, reason: OpenReason) => void;
  /** A notification was clicked; `event.preventDefault()` keeps the browser from following its link. */
  readonly onItemClick?: (event: InboxEvents["signal-item-click"]) => void;
  readonly onCount?: (unreadCount: number) => void;
  readonly onError?: (event: InboxEvents["signal-error"]) => void;
  readonly itemLink?: (notification: Notification) => unknown;
  /** A look of its own for each notification. */
  readonly renderItem?: (notification: Notification) => ReactNode;
  readonly bell?: ReactNode;
  readonly header?: ReactNode;
  readonly footer?: ReactNode;
  readonly empty?: ReactNode;
  readonly id?: string;
  readonly className?: string;
  /** Custom properties of the inbox, too. */
  readonly style?: CSSProperties & { readonly [property: `--signal-${string}`]: string | number };
}

/** Rows that the list shows, by id: where React renders what. */
type Rows = Map<string, { readonly container: HTMLElement; notification: Notification }>;

// React warns of it on a server, where it does nothing.
const useBrowserEffect = typeof document === "undefined" ? useEffect : useLayoutEffect;

/** The inbox of the provider's client. */
export const Inbox = forwardRef<SignalInbox, InboxProps>(function Inbox(props, ref) {
  const { mode, placement, theme, locale, tab, id, className, style, bell, header, footer, empty, renderItem } = props;
  const client: AnyClient | null = useClient();
  const element = useRef<SignalInbox>(null);
  const latest = useRef(props);
  const rows = useRef<Rows>(new Map());
  const [, changed] = useReducer((count: number) => count + 1, 0);
  useImperativeHandle(ref, () => element.current!, []);

  useBrowserEffect(() => {
    latest.current = props;
    const { messages, open } = props;
    element.current!.messages = messages ?? NO_MESSAGES;
    if (open !== undefined) element.current!.open = open;
  });
  useBrowserEffect(() => {
    element.current!.client = client;
    return () => {
      if (element.current) element.current.client = null;
    };
  }, [client]);
  useBrowserEffect(() => listen(element.current!, latest), []);

  const hasLink = props.itemLink !== undefined;
  useBrowserEffect(() => {
    if (!hasLink) return;
    const inbox = element.current!;
    const before = inbox.itemLink;
    inbox.itemLink = (notification) => (latest.current.itemLink ?? before)(notification);
    return () => void (inbox.itemLink = before);
  }, [hasLink]);

  const hasLook = renderItem !== undefined;
  useBrowserEffect(() => {
    if (!hasLook) return;
    const inbox = element.current!;
    inbox.renderItem = (notification, signal) => take(rows.current, notification, signal, changed);
    return () => void (inbox.renderItem = null);
  }, [hasLook]);

  const slots = { bell, header, footer, empty };
  return createElement(
    "signal-inbox",
    { ref: element, id, class: className, style, mode, placement, theme, locale, tab },
    ...Object.entries(slots).map(([slot, node]) => (node === undefined || node === null ? null : createElement(slot === "bell" ? "span" : "div", { key: slot, slot }, node))),
    ...[...rows.current].map(([key, { container, notification }]) => createPortal(renderItem?.(notification), container, key)),
  );
});

const NO_MESSAGES = {};

/** Gives the list a node for this notification, and React the news. */
function take(rows: Rows, notification: Notification, signal: AbortSignal, changed: () => void): Element {
  const held = rows.get(notification.id);
  const row = held ?? { container: document.createElement("div"), notification };
  row.notification = notification;
  // The list asks in the middle of a change of its own; React renders behind it.
  queueMicrotask(changed);
  if (held) return held.container;
  rows.set(notification.id, row);
  signal.addEventListener("abort", () => {
    if (rows.get(notification.id) === row) rows.delete(notification.id);
    queueMicrotask(changed);
  });
  return row.container;
}

/** Hands the events of the element to the handlers of the last render. */
function listen(inbox: SignalInbox, latest: { readonly current: InboxProps }): () => void {
  const end = new AbortController();
  const { signal } = end;
  inbox.addEventListener("signal-open-change", (event) => {
    const { open, onOpenChange } = latest.current;
    if (open !== undefined) event.preventDefault();
    onOpenChange?.(event.detail.open, event.detail.reason);
  }, { signal });
  inbox.addEventListener("signal-item-click", (event) => latest.current.onItemClick?.(event), { signal });
  inbox.addEventListener("signal-count", ({ detail }) => latest.current.onCount?.(detail.unreadCount), { signal });
  inbox.addEventListener("signal-error", (event) => latest.current.onError?.(event), { signal });
  return () => end.abort();
}
