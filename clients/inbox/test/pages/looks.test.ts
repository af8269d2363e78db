// Light, dark, mirrored, in other languages, for touch, without motion, with forced colours; and axe in each.

import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Site, executable, site } from "./harness.js";
import { act, bell, closed, get, MANY, open as openPage, type Options, violations, when } from "./page.js";

describe.skipIf(!executable)("the looks of the inbox", () => {
  let pages: Site;
  beforeAll(async () => {
    pages = await site();
  });
  afterAll(async () => pages?.close());
  const open = (options?: Options) => openPage(pages, options);

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

    test("a text has the direction of its own language, and the side of the page's", async () => {
      const page = await open({ html: 'lang="ar" dir="rtl"', items: `[notification(2, { locale: "ar", title: "Chrome على Windows" }), notification(1, { title: "English" })]` });
      await act(page, "inbox.open = true");
      await page.getByText("English").waitFor();
      expect(await get(page, `[...root.querySelectorAll(".item-title")].map((node) => [node.lang, getComputedStyle(node).direction, getComputedStyle(node).textAlign])`)).toEqual([["ar", "rtl", "right"], ["en", "ltr", "right"]]);
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
});
