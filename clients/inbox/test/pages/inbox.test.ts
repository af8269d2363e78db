// The element in a real Chromium, with an inbox that the test fills by itself: how it opens, what it shows and does.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Site, executable, site } from "./harness.js";
import { act, bell, closed, get, isOpen, open as openPage, type Options, violations, when } from "./page.js";

describe.skipIf(!executable)("the inbox in a page", () => {
  let pages: Site;
  beforeAll(async () => {
    pages = await site();
  });
  afterAll(async () => pages?.close());
  const open = (options?: Options) => openPage(pages, options);

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

    test("a browser without the top layer shows the panel as well", async () => {
      const page = await open({ first: `for (const name of ["showPopover", "hidePopover"]) Object.defineProperty(HTMLElement.prototype, name, { value: undefined })` });
      await bell(page).click();
      await page.getByRole("dialog").getByText("Title 3").waitFor();
      await page.keyboard.press("Escape");
      await when(page, `!root.querySelector(".panel").checkVisibility()`);
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

    test("a link is followed also where its row goes by being read", async () => {
      const page = await open({ with: 'tab="unread"' });
      await bell(page).click();
      await page.getByRole("link", { name: "Title 2" }).click();
      await page.waitForURL("**/elsewhere");
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
