// Rendered on a server: no page, no socket, no client. Once with each React that the package takes.

import { createElement, version } from "react";
import { renderToString } from "react-dom/server";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { App } from "../app.js";
import { SignalProvider, useUnreadCount } from "../../src/index.js";

const said = vi.spyOn(console, "error").mockImplementation(() => {});
beforeEach(() => said.mockClear());
afterEach(() => expect(said.mock.calls).toEqual([]));

test(`React ${version} renders every hook and the inbox`, () => {
  for (const props of [{ client: null }, { create: () => { throw new Error("made on a server"); } }]) {
    const html = renderToString(createElement(App, props));
    expect(html).toContain('<output id="count">0</output>');
    expect(html).toContain('<output id="status">idle</output>');
    expect(html).toContain('data-status="loading"');
    expect(html).toMatch(/<signal-inbox[^>]* class="corner"/);
    expect(html).toMatch(/<signal-inbox[^>]* theme="dark"/);
    expect(html).toContain('<a href="/settings">Settings</a>');
  }
});

test("a client that exists on a server shows nothing of its state there", () => {
  const Count = (): string => `${useUnreadCount()} unread`;
  const client = { inbox: { subscribe: () => () => {}, getSnapshot: () => ({ unreadCount: 5 }) } } as never;
  expect(renderToString(createElement(SignalProvider, { client }, createElement(Count)))).toBe("0 unread");
});

test("a hook without a provider says what is missing", () => {
  const Count = (): string => `${useUnreadCount()}`;
  expect(() => renderToString(createElement(Count))).toThrow("no <SignalProvider> is around this component");
});
