// Where the focus goes, and what keys do.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Site, executable, site } from "./harness.js";
import { act, bell, closed, focused, get, isOpen, MANY, open as openPage, type Options, when } from "./page.js";

describe.skipIf(!executable)("the inbox with the keyboard", () => {
  let pages: Site;
  beforeAll(async () => {
    pages = await site();
  });
  afterAll(async () => pages?.close());
  const open = (options?: Options) => openPage(pages, options);

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

    test("what a page put into a row keeps the focus and its keys", async () => {
      const page = await open({ items: MANY, first: `inbox.renderItem = ({ title }) => { const node = document.createElement("p"); const field = document.createElement("input"); field.ariaLabel = title; field.value = "text"; node.append(field); return node; }` });
      await bell(page).click();
      const field = page.getByRole("textbox", { name: "Title 9999", exact: true });
      await field.focus();
      await page.keyboard.press("ArrowDown");
      await page.keyboard.press("Delete");
      await act(page, `root.querySelector(".scroller").scrollTop = 100000`);
      await page.waitForTimeout(200);
      await page.keyboard.type("more");
      expect(await get(page, `document.activeElement.ariaLabel + " " + document.activeElement.value.length`)).toBe("Title 9999 8");
      expect(await get(page, `client.calls.length`)).toBe(0);
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
});
