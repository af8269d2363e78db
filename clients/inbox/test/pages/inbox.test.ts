// The element in a real Chromium, with an inbox that the test fills by itself.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { BrowserContextOptions, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Site, executable, site } from "./harness.js";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

interface Options extends BrowserContextOptions {
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
const MANY = `Array.from({ length: 10000 }, (_, index) => notification(10000 - index, { isRead: index % 3 > 0, content: "words ".repeat(1 + ((index * 7) % 40)) }))`;

describe.skipIf(!executable)("the inbox in a page", () => {
  let pages: Site;
  beforeAll(async () => {
    pages = await site();
  });
  afterAll(async () => pages?.close());

  async function open({ with: attributes = "", first = "", items = ITEMS, state = "{}", inside = "", around = (inbox) => inbox, ...options }: Options = {}): Promise<Page> {
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

  const get = <T = any>(page: Page, code: string): Promise<T> => page.evaluate(`(() => { const root = window.inbox?.shadowRoot; return ${code}; })()`);
  const act = (page: Page, code: string): Promise<void> => page.evaluate(`(() => { const root = window.inbox?.shadowRoot; ${code}; })()`);
  const when = (page: Page, condition: string): Promise<void> => expect.poll(() => get(page, condition), { message: condition, timeout: 5_000 }).toBe(true);
  const isOpen = (page: Page): Promise<boolean> => get(page, `inbox.open && root.querySelector(".panel").checkVisibility()`);
  const bell = (page: Page) => page.getByRole("button", { name: /^(Notifications|Thông báo)/ });
  /** The name of what has the focus, in the element or in the page. */
  const focused = (page: Page): Promise<string> =>
    get(page, `(() => { const node = root.activeElement ?? document.activeElement; return (node.getAttribute("aria-label") ?? node.id + "/" + node.textContent).replace(/\\s+/g, " ").slice(0, 60); })()`);
  const closed = async (page: Page): Promise<void> => page.context().close();

  describe("opens and closes", () => {
    test("the bell has the count, and the panel what there is", async () => {
      const page = await open();
      await page.getByRole("button", { name: "Notifications, 2 unread" }).click();
      await page.getByRole("dialog", { name: "Notifications" }).waitFor();
      expect(await page.getByRole("listitem").count()).toBe(3);
      await page.getByRole("listitem").nth(0).hover();
      await page.getByRole("button", { name: "Mark as read: Title 3" }).click();
      await page.getByRole("button", { name: "Notifications, 1 unread" }).waitFor();
      await page.getByRole("button", { name: "Mark all as read" }).click();
      await page.getByRole("button", { name: "Notifications", exact: true }).waitFor();
      await page.getByRole("listitem").nth(2).hover();
      await page.getByRole("button", { name: "Delete: Title 1" }).click();
      await when(page, `root.querySelectorAll(".item").length === 2`);
      expect(await get(page, "client.calls")).toEqual([["read", ["n3"]], ["readAll", null], ["remove", "n1"]]);
      await page.mouse.click(850, 650);
      expect(await isOpen(page)).toBe(false);
      expect(await get(page, `events.filter(([type]) => type === "signal-open-change").map(([, { open, reason }]) => [open, reason])`)).toEqual([[true, "bell"], [false, "outside"]]);
      expect(await get(page, `events.filter(([type]) => type === "signal-count").map(([, detail]) => detail.unreadCount)`)).toEqual([2, 1, 0]);
      await closed(page);
    });

    test("a page that cancels holds the open state itself", async () => {
      const page = await open({ first: `inbox.addEventListener("signal-open-change", (event) => event.preventDefault())` });
      await bell(page).click();
      expect(await isOpen(page)).toBe(false);
      await act(page, "inbox.open = true");
      await when(page, `root.querySelector(".panel").checkVisibility()`);
      await page.mouse.click(850, 650);
      await page.keyboard.press("Escape");
      expect(await isOpen(page)).toBe(true);
      await act(page, "inbox.open = false");
      await when(page, `!root.querySelector(".panel").checkVisibility()`);
      await closed(page);
    });

    test("nothing clips the panel, and nothing lies above it", async () => {
      const page = await open({
        viewport: { width: 900, height: 900 },
        around: (inbox) => `<div id="clip">${inbox}</div><div id="above"></div>`,
        first: `const sheet = new CSSStyleSheet(); sheet.replaceSync("#clip { overflow: hidden; height: 44px; transform: scale(1); } #above { position: fixed; inset: 0; z-index: 2147483647; pointer-events: none; }"); document.adoptedStyleSheets = [sheet];`,
      });
      await bell(page).click();
      const panel = await page.getByRole("dialog").boundingBox();
      expect([panel!.width, panel!.height].map(Math.round)).toEqual([400, 560]);
      expect(await get(page, `document.elementFromPoint(${panel!.x + 200}, ${panel!.y + 500}).localName`)).toBe("signal-inbox");
      await closed(page);
    });

    test("an inline inbox has no bell and is a part of the page", async () => {
      const page = await open({ with: 'mode="inline"' });
      await page.getByRole("region", { name: "Notifications" }).waitFor();
      expect(await page.getByRole("listitem").count()).toBe(3);
      expect(await bell(page).count()).toBe(0);
      await page.keyboard.press("Escape");
      expect(await page.getByRole("listitem").count()).toBe(3);
      await closed(page);
    });

    test("the panel follows its bell, and fits into a small window", async () => {
      const page = await open({ viewport: { width: 360, height: 500 } });
      await bell(page).click();
      const box = (await page.getByRole("dialog").boundingBox())!;
      expect([box.x, box.width]).toEqual([8, 344]);
      expect(box.y + box.height).toBeLessThanOrEqual(492);
      await act(page, `document.querySelector("h1").textContent = "A title of several lines ".repeat(6)`);
      await expect.poll(async () => (await page.getByRole("dialog").boundingBox())!.y - (await bell(page).boundingBox())!.y - 48).toBeLessThan(1);
      await closed(page);
    });
  });

  describe("with the keyboard", () => {
    test("the focus goes through bell, panel and rows, and returns to the bell", async () => {
      const page = await open({ inside: '<a slot="footer" href="/settings">Settings</a>' });
      await page.locator("#before").focus();
      const order: string[] = [];
      const press = async (key: string): Promise<void> => {
        await page.keyboard.press(key);
        await page.waitForTimeout(30);
        order.push(await focused(page));
      };
      await press("Tab");
      for (const key of ["Enter", "Tab", "Tab", "Tab", "Tab", "Tab", "Tab"]) await press(key);
      expect(order.map((name) => name.slice(0, 22))).toEqual([
        "Notifications, 2 unrea", "panel/NotificationsAll", "Mark all as read", "Close", "all/All", "/Unread. Title 3nowCon", "Mark as read: Title 3", "Delete: Title 3",
      ]);
      order.length = 0;
      await press("Tab");
      expect(order).toEqual(["/Settings"]);
      await press("Escape");
      expect([order[1], await isOpen(page)]).toEqual(["Notifications, 2 unread", false]);
      await closed(page);
    });

    test("arrow keys change the tab and the row, Delete deletes, Enter opens", async () => {
      const page = await open();
      await bell(page).click();
      await page.getByRole("tab", { name: "All" }).focus();
      await page.keyboard.press("ArrowRight");
      expect(await focused(page)).toBe("unread/Unread2");
      await when(page, `root.querySelectorAll(".item").length === 2`);
      await page.keyboard.press("ArrowLeft");
      await when(page, `root.querySelectorAll(".item").length === 3`);
      await page.keyboard.press("Tab");
      expect(await focused(page)).toContain("Title 3");
      await page.keyboard.press("ArrowDown");
      expect(await focused(page)).toContain("Title 2");
      await page.keyboard.press("End");
      expect(await focused(page)).toContain("Title 1");
      await page.keyboard.press("Delete");
      await when(page, `root.querySelectorAll(".item").length === 2`);
      expect(await focused(page), "its neighbour has the focus").toContain("Title 2");
      await page.keyboard.press("Home");
      await page.keyboard.press("Enter");
      await when(page, `client.inbox.getSnapshot().unreadCount === 1`);
      expect(await focused(page)).toContain("Title 3");
      await page.keyboard.press("Escape");
      expect(await focused(page)).toBe("Notifications, 1 unread");
      await closed(page);
    });

    test("the panel closes when the focus leaves it, and a dialog around it stays", async () => {
      const page = await open({ around: (inbox) => `<dialog aria-label="around">${inbox}<button>inner</button></dialog>`, first: `document.querySelector("dialog").showModal()` });
      await bell(page).click();
      await page.keyboard.press("Escape");
      expect(await get(page, `[inbox.open, document.querySelector("dialog").open]`)).toEqual([false, true]);
      await bell(page).click();
      for (let at = 0; at < 8 && (await get<boolean>(page, "inbox.open")); at++) await page.keyboard.press("Tab");
      expect(await focused(page)).toBe("/inner");
      expect(await get(page, `events.at(-1)[1].reason`)).toBe("focus");
      await closed(page);
    });

    test("a row that has the focus stays, wherever the list is scrolled to", async () => {
      const page = await open({ items: MANY });
      await bell(page).click();
      await page.getByRole("link").or(page.getByRole("button", { name: /Title 10000/ })).first().focus();
      await act(page, `root.querySelector(".scroller").scrollTop = 200000`);
      await page.waitForTimeout(200);
      await page.keyboard.press("ArrowDown");
      expect(await focused(page)).toContain("Title 9999");
      await page.keyboard.press("End");
      expect(await focused(page)).toContain("Title 1");
      await page.keyboard.press("PageUp");
      expect(await focused(page)).not.toContain("Title 1now");
      await closed(page);
    });
  });

  describe("of 10,000 rows", () => {
    const rows = `[...root.querySelectorAll(".item")].map((item) => item.getBoundingClientRect()).sort((a, b) => a.top - b.top)`;

    test("a few are nodes, each as high as its text, without a gap", async () => {
      const page = await open({ items: MANY, state: "{ hasMore: false }" });
      await bell(page).click();
      for (const top of [0, 900, 31_337, 400_000, 10_000_000, 600_123, 0]) {
        await act(page, `root.querySelector(".scroller").scrollTop = ${top}`);
        await page.waitForTimeout(120);
        expect(await get(page, `root.querySelectorAll(".item").length`)).toBeLessThan(40);
        const gaps = await get<number>(page, `${rows}.reduce((sum, row, index, all) => sum + (index ? Math.abs(row.top - all[index - 1].bottom) : 0), 0)`);
        expect(gaps, `at ${top}`).toBeLessThan(2);
        const view = (await page.locator("signal-inbox").getByRole("tabpanel").boundingBox())!;
        expect(await get(page, `${rows}[0].top <= ${view.y} + 1 && ${rows}.at(-1).bottom >= ${view.y + view.height} - 14`), `filled at ${top}`).toBe(true);
      }
      expect(await get(page, `new Set([...root.querySelectorAll(".item")].map((item) => item.offsetHeight)).size`)).toBeGreaterThan(1);
      expect(await page.getByRole("listitem").first().getAttribute("aria-setsize")).toBe("10000");
      await closed(page);
    });

    test("what is read stays where it is while new ones come and others go", async () => {
      const page = await open({ items: MANY });
      await bell(page).click();
      await act(page, `root.querySelector(".scroller").scrollTop = 50000`);
      await page.waitForTimeout(150);
      const at = `(() => { const box = root.querySelector(".scroller").getBoundingClientRect(); const item = [...root.querySelectorAll(".item")].find((item) => item.getBoundingClientRect().top >= box.top); return [item.querySelector(".item-title").textContent, Math.round(item.getBoundingClientRect().top)]; })()`;
      const before = await get(page, at);
      await act(page, `client.add(notification(10002, { content: "a".repeat(300) }), notification(10001))`);
      await page.getByRole("button", { name: "2 new" }).waitFor();
      expect(await get(page, at)).toEqual(before);
      await act(page, `client.inbox.remove("n9990")`);
      await page.waitForTimeout(100);
      expect(await get(page, at)).toEqual(before);
      await page.getByRole("button", { name: "2 new" }).click();
      await when(page, `root.querySelector(".scroller").scrollTop === 0`);
      expect(await focused(page)).toContain("Title 10002");
      await expect.poll(() => page.getByRole("button", { name: "2 new" }).count()).toBe(0);
      await closed(page);
    });

    test("one that comes is shown at once", async () => {
      const page = await open({ items: MANY });
      await bell(page).click();
      const ms = await page.evaluate(`(async () => {
        const begin = performance.now();
        for (let seq = 10001; seq <= 10020; seq++) { client.add(notification(seq)); await Promise.resolve(); await Promise.resolve(); }
        return (performance.now() - begin) / 20;
      })()`);
      // 20 ms on a busy machine, with what the fake itself does.
      expect(ms).toBeLessThan(200);
      await closed(page);
    });

    test("older ones are loaded as they are needed, and asked for again when they did not come", async () => {
      const page = await open({
        items: `Array.from({ length: 50 }, (_, index) => notification(200 - index, { isRead: true }))`,
        state: "{ hasMore: true }",
        first: `window.fails = true; window.more = async () => {
          await new Promise((resolve) => setTimeout(resolve, 30));
          if (fails) throw new Error("away");
          const { items } = client.store.getSnapshot();
          const next = Array.from({ length: 50 }, (_, index) => notification(items.at(-1).seq - 1 - index, { isRead: true }));
          client.store.set({ items: [...items, ...next], hasMore: items.length < 150 });
        };`,
      });
      await bell(page).click();
      const end = `root.querySelector(".scroller").scrollTop = 1e7`;
      await act(page, end);
      await page.getByText("Older ones could not be loaded.").waitFor();
      expect(await get(page, `events.at(-1)[1].action`)).toBe("more");
      await act(page, "fails = false");
      await page.getByRole("button", { name: "Try again" }).click();
      await expect.poll(async () => (await act(page, end), get(page, `client.store.getSnapshot().items.length`))).toBe(200);
      await page.getByText("Title 1", { exact: true }).waitFor();
      await closed(page);
    });

    test("unread ones are looked for in older pages, until all are found", async () => {
      const page = await open({
        items: `Array.from({ length: 50 }, (_, index) => notification(200 - index, { isRead: true }))`,
        state: "{ hasMore: true, unreadCount: 1 }",
        first: `window.more = async () => {
          const { items } = client.store.getSnapshot();
          const next = Array.from({ length: 50 }, (_, index) => notification(items.at(-1).seq - 1 - index, { isRead: items.at(-1).seq - 1 - index !== 70 }));
          client.store.set({ items: [...items, ...next], hasMore: items.length < 150 });
        };`,
        with: 'tab="unread"',
      });
      await bell(page).click();
      await page.getByText("Title 70", { exact: true }).waitFor();
      expect(await get(page, `client.calls.length`)).toBe(2);
      await closed(page);
    });
  });

  describe("data", () => {
    test("is text, and leads nowhere but to http, https and relative addresses", async () => {
      const page = await open({
        items: `[notification(3, { title: "<img src=x onerror=alert(1)><b>bold</b>", content: "<script>alert(1)</" + "script>" }), notification(2, { data: { url: "javascript:alert(1)" } }), notification(1, { data: { link: "https://example.com/a" } })]`,
      });
      await bell(page).click();
      await page.getByText("<img src=x onerror=alert(1)><b>bold</b>").waitFor();
      expect(await get(page, `root.querySelectorAll(".item img, .item b, .item script").length`)).toBe(0);
      expect(await get(page, `[...root.querySelectorAll(".link")].map((link) => [link.localName, link.getAttribute("href"), link.rel ?? null])`)).toEqual([["button", null, null], ["button", null, null], ["a", "https://example.com/a", "noopener"]]);
      await closed(page);
    });

    test("a link is followed, unless the page takes it; either way it becomes read", async () => {
      const page = await open({ first: `window.isTaken = true; inbox.addEventListener("signal-item-click", (event) => isTaken && event.preventDefault())` });
      await bell(page).click();
      const { origin } = new URL(page.url());
      await page.getByRole("link", { name: "Title 2" }).click();
      await when(page, `client.calls.length === 1`);
      expect(await get(page, `[client.calls, events.find(([type]) => type === "signal-item-click")[1].href, inbox.open]`)).toEqual([[["read", ["n2"]]], `${origin}/elsewhere`, false]);
      await act(page, "isTaken = false");
      await bell(page).click();
      await page.getByRole("link", { name: "Title 2" }).click();
      await page.waitForURL(`${origin}/elsewhere`);
      await closed(page);
    });

    test("a change that is refused is taken back, and said", async () => {
      const page = await open({ first: `client.refuse(new Error("no"))` });
      await bell(page).click();
      await page.getByRole("button", { name: "Mark all as read" }).click();
      await page.getByRole("alert").getByText("That could not be saved and was taken back.").waitFor();
      expect(await get(page, `events.at(-1)[1].action`)).toBe("read");
      await closed(page);
    });

    test("a page's own look stands in the page, and a click on it is one on the notification", async () => {
      const page = await open({
        first: `window.gone = []; inbox.renderItem = ({ id, seq, title, isRead }, signal) => {
          if (seq === 1) return null;
          signal.addEventListener("abort", () => gone.push(id));
          const node = document.createElement("article");
          node.textContent = "own " + title + (isRead ? " read" : "");
          const inner = document.createElement("button");
          inner.textContent = "inner";
          node.append(inner);
          return node;
        }`,
      });
      await bell(page).click();
      await page.locator("signal-inbox > article", { hasText: "own Title 3" }).getByRole("button").click();
      expect(await get(page, `events.filter(([type]) => type === "signal-item-click").length`)).toBe(0);
      await page.locator("signal-inbox > article", { hasText: "own Title 3" }).click({ position: { x: 200, y: 4 } });
      await page.locator("signal-inbox > article", { hasText: "own Title 3 read" }).waitFor();
      await page.getByText("Title 1", { exact: true }).waitFor();
      expect(await page.getByRole("button", { name: "Title 3", exact: true }).count(), "its name for the keyboard").toBe(1);
      await act(page, `client.inbox.remove("n3")`);
      await when(page, `gone.includes("n3") && !gone.includes("n2")`);
      expect(await page.locator("signal-inbox > article").count()).toBe(1);
      await closed(page);
    });
  });

  describe("says how things are", () => {
    test.each([
      ["loading", "[]", `{ status: "loading" }`, "", null],
      ["empty", "[]", "{}", "", "No notifications yet"],
      ["nothing unread", `[notification(1, { isRead: true })]`, "{}", 'tab="unread"', "You are all caught up"],
      ["an error", "[]", `{ status: "loading", error: { code: "rest" } }`, "", "Notifications could not be loaded"],
      ["no inbox", "[]", `{ status: "unavailable" }`, "", "No inbox"],
    ])("%s", async (_, items, state, attributes, text) => {
      const page = await open({ items, state, with: attributes });
      await bell(page).click();
      if (text) await page.getByText(text).waitFor();
      else await when(page, `root.querySelectorAll(".ghost").length === 5 && root.querySelector("[part=loading]").checkVisibility()`);
      expect(await violations(page)).toEqual([]);
      await closed(page);
    });

    test("a connection that is away, and one that has to be asked for", async () => {
      const page = await open({ first: `client.connection.set({ status: "waiting" })` });
      await bell(page).click();
      await page.getByText("Offline. Connecting again.").waitFor();
      expect(await page.getByRole("listitem").count(), "what is known stays").toBe(3);
      await act(page, `client.connection.set({ status: "closed" })`);
      await page.getByRole("button", { name: "Connect" }).click();
      expect(await get(page, `client.calls`)).toEqual([["connect"]]);
      await act(page, `client.connection.set({ status: "online" })`);
      await when(page, `!root.querySelector(".banner").checkVisibility()`);
      await closed(page);
    });

    test("to screen readers, what came, once for a burst", async () => {
      const page = await open();
      await act(page, `client.add(notification(4)); client.add(notification(5))`);
      await when(page, `root.querySelector("[role=status]").textContent === "Notifications, 4 unread"`);
      await closed(page);
    });

    test("more than 99", async () => {
      const page = await open({ state: "{ unreadCount: 1234 }" });
      await page.getByRole("button", { name: "Notifications, 99+ unread" }).waitFor();
      expect(await get(page, `root.querySelector(".badge").textContent`)).toBe("99+");
      await closed(page);
    });
  });

  describe("looks", () => {
    const ground = (page: Page): Promise<string> => get(page, `getComputedStyle(root.querySelector(".panel")).backgroundColor`);
    const LIGHT = "rgb(255, 255, 255)";
    const DARK = "rgb(23, 24, 28)";

    test("light and dark as the system has it, or as it is told", async () => {
      const page = await open({ colorScheme: "dark" });
      await bell(page).click();
      expect(await ground(page)).toBe(DARK);
      await act(page, `inbox.theme = "light"`);
      expect(await ground(page)).toBe(LIGHT);
      await act(page, `inbox.theme = "page"`);
      expect(await ground(page), "the page knows no dark").toBe(LIGHT);
      await act(page, `document.documentElement.style.colorScheme = "dark"`);
      expect(await ground(page)).toBe(DARK);
      await page.emulateMedia({ colorScheme: "light" });
      await act(page, `inbox.theme = "auto"`);
      expect(await ground(page)).toBe(LIGHT);
      await act(page, `inbox.style.setProperty("--signal-background", "rgb(1, 2, 3)")`);
      expect(await ground(page)).toBe("rgb(1, 2, 3)");
      await closed(page);
    });

    test("mirrored from right to left", async () => {
      const page = await open({ html: 'lang="ar" dir="rtl"', around: (inbox) => `<div id="end">${inbox}</div>`, first: `addMessages("ar", { title: "الإشعارات", bell: { other: "الإشعارات، {count}" } })` });
      await page.getByRole("button", { name: /^الإشعارات/ }).click();
      const panel = (await page.getByRole("dialog").boundingBox())!;
      const dot = (await page.locator("signal-inbox .dot").first().boundingBox())!;
      const time = (await page.locator("signal-inbox time").first().boundingBox())!;
      expect(dot.x, "the mark is at the right").toBeGreaterThan(panel.x + panel.width - 30);
      expect(time.x, "the time at the left").toBeLessThan(panel.x + 60);
      expect(await page.locator("signal-inbox time").first().textContent()).toBe("الآن");
      expect(await violations(page)).toEqual([]);
      await closed(page);
    });

    test("in another language at once", async () => {
      const page = await open({ with: 'lang="vi"' });
      await page.getByRole("button", { name: "Thông báo, 2 chưa đọc" }).click();
      await page.getByRole("button", { name: "Đánh dấu tất cả là đã đọc" }).waitFor();
      await act(page, `inbox.locale = "de"`);
      await act(page, `addMessages("de", { title: "Mitteilungen", all: "Alles" })`);
      await page.getByRole("tab", { name: "Alles" }).waitFor();
      await page.getByText("jetzt").first().waitFor();
      await act(page, `inbox.messages = { all: "Ganz" }`);
      await page.getByRole("tab", { name: "Ganz" }).waitFor();
      await closed(page);
    });

    test("without motion, and with the colours of the system, where that is wanted", async () => {
      const page = await open({ reducedMotion: "reduce", forcedColors: "active" });
      await bell(page).click();
      expect(await get(page, `getComputedStyle(root.querySelector(".panel")).animationName + getComputedStyle(root.querySelector(".tool")).transitionDuration`)).toBe("none0s");
      await page.keyboard.press("Tab");
      expect(await get(page, `getComputedStyle(root.activeElement).outlineStyle + getComputedStyle(root.activeElement).outlineWidth`)).toBe("solid2px");
      expect(await get(page, `getComputedStyle(root.querySelector(".dot")).backgroundColor !== getComputedStyle(root.querySelector(".panel")).backgroundColor`)).toBe(true);
      await closed(page);
      const moved = await open({ reducedMotion: "no-preference" });
      await bell(moved).click();
      expect(await get(moved, `getComputedStyle(root.querySelector(".panel")).animationName`)).toBe("open");
      await closed(moved);
    });

    test("on a touch screen, where nothing hovers, the buttons of a row are there", async () => {
      const page = await open({ hasTouch: true, isMobile: true, viewport: { width: 390, height: 700 } });
      await bell(page).tap();
      await page.getByRole("button", { name: "Delete: Title 3" }).tap();
      await when(page, `root.querySelectorAll(".item").length === 2`);
      await closed(page);
    });
  });

  async function violations(page: Page): Promise<unknown[]> {
    // Colours are in motion for a moment.
    await page.waitForTimeout(200);
    await page.evaluate(axe);
    return page.evaluate(`axe.run(document, { resultTypes: ["violations"], rules: { region: { enabled: true } } }).then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes.map(({ target, failureSummary }) => [target, failureSummary])]))`);
  }

  test.each([
    ["closed", {}, false],
    ["open", {}, true],
    ["dark", { colorScheme: "dark" }, true],
    ["of many", { items: MANY, state: "{ hasMore: true }" }, true],
    ["forced colours", { forcedColors: "active" }, true],
    ["offline", { first: `client.connection.set({ status: "closed" })` }, true],
    ["offline and dark", { first: `client.connection.set({ status: "closed" })`, colorScheme: "dark" }, true],
    ["inline", { with: 'mode="inline"' }, false],
    ["with a look of its own", { first: `inbox.renderItem = ({ title }) => Object.assign(document.createElement("p"), { textContent: title })` }, true],
  ] as [string, Options, boolean][])("axe finds nothing: %s", async (_, options, isOpened) => {
    const page = await open(options);
    if (isOpened) await bell(page).click();
    expect(await violations(page)).toEqual([]);
    if (isOpened) {
      await page.getByRole("listitem").first().hover();
      expect(await violations(page)).toEqual([]);
    }
    await closed(page);
  });

  test("what was set before the element was defined counts, and a removed element lets go", async () => {
    const { page } = await pages.open(`<signal-inbox></signal-inbox><script type="module" nonce="test">
      const { fakeClient, notification } = await import("/fake.js");
      window.client = fakeClient([notification(1)]);
      window.inbox = document.querySelector("signal-inbox");
      let listeners = 0;
      const { subscribe } = client.inbox;
      client.inbox.subscribe = (listener) => { listeners++; const end = subscribe(listener); return () => { listeners--; end(); }; };
      inbox.client = client;
      inbox.messages = { title: "Post" };
      await import("@signal/inbox");
      const texts = [inbox.shadowRoot.querySelector("h2").textContent, inbox.shadowRoot.querySelector(".badge").textContent];
      const counts = [listeners];
      inbox.remove();
      counts.push(listeners);
      document.body.append(inbox);
      counts.push(listeners);
      inbox.client = null;
      counts.push(listeners);
      window.result = { texts, counts };
    </script>`);
    await expect.poll(() => page.evaluate("window.result")).toEqual({ texts: ["Post", "1"], counts: [1, 0, 1, 0] });
    await page.context().close();
  });
});
