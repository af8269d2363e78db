// What the tests of the element do with a page.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { BrowserContextOptions, Locator, Page } from "playwright-core";
import { expect } from "vitest";
import type { Site } from "./harness.js";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export interface Options extends BrowserContextOptions {
  /** Attributes of the element. */
  readonly with?: string;
  /** Runs before the client is set. */
  readonly first?: string;
  readonly items?: string;
  /** More of the inbox's state. */
  readonly state?: string;
  /** What the element holds. */
  readonly inside?: string;
  readonly around?: (inbox: string) => string;
  readonly html?: string;
}

const ITEMS = `[notification(3), notification(2, { data: { url: "/elsewhere" } }), notification(1, { isRead: true, content: "" })]`;
/** As many as a list must bear, of several heights. */
export const MANY = `Array.from({ length: 10000 }, (_, index) => notification(10000 - index, { isRead: index % 3 > 0, content: "words ".repeat(1 + ((index * 7) % 40)) }))`;

export async function open(pages: Site, { with: attributes = "", first = "", items = ITEMS, state = "{}", inside = "", around = (inbox) => inbox, ...options }: Options = {}): Promise<Page> {
  const { page } = await pages.open(
    `<main><h1>Test</h1><button id="before">before</button>${around(`<signal-inbox ${attributes}>${inside}</signal-inbox>`)}<button id="after">after</button></main>
    <script type="module" nonce="test">
      import { addMessages } from "@signal/inbox";
      import { fakeClient, notification } from "/fake.js";
      Object.assign(window, { addMessages, fakeClient, notification, inbox: document.querySelector("signal-inbox") });
      window.client = fakeClient(${items}, ${state});
      window.events = [];
      for (const name of ["signal-open-change", "signal-item-click", "signal-count", "signal-error"]) document.addEventListener(name, ({ type, detail }) => events.push([type, detail]));
      ${first}
      inbox.client = client;
      window.isReady = true;
    </script>`,
    options,
  );
  await when(page, "window.isReady === true");
  return page;
}

export const get = <T = any>(page: Page, code: string): Promise<T> => page.evaluate(`(() => { const root = window.inbox?.shadowRoot; return ${code}; })()`);
export const act = (page: Page, code: string): Promise<void> => page.evaluate(`(() => { const root = window.inbox?.shadowRoot; ${code}; })()`);
export const when = (page: Page, condition: string): Promise<void> => expect.poll(() => get(page, condition), { message: condition, timeout: 5_000 }).toBe(true);
export const isOpen = (page: Page): Promise<boolean> => get(page, `inbox.open && root.querySelector(".panel").checkVisibility()`);
export const bell = (page: Page): Locator => page.getByRole("button", { name: /^(Notifications|Thông báo)/ });
/** The name of what has the focus, in the element or in the page. */
export const focused = (page: Page): Promise<string> =>
  get(page, `(() => { const node = root.activeElement ?? document.activeElement; return (node.getAttribute("aria-label") ?? node.id + "/" + node.textContent).replace(/\\s+/g, " ").slice(0, 60); })()`);
export const closed = async (page: Page): Promise<void> => page.context().close();

/** What axe finds. */
export async function violations(page: Page): Promise<unknown[]> {
  // Colours are in motion for a moment.
  await page.waitForTimeout(200);
  await page.evaluate(axe);
  return page.evaluate(`axe.run(document, { resultTypes: ["violations"], rules: { region: { enabled: true } } }).then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes.map(({ target, failureSummary }) => [target, failureSummary])]))`);
}
