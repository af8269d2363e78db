// The list of 10,000 rows, and the one that loads as it is scrolled.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Site, executable, site } from "./harness.js";
import { act, bell, closed, focused, get, MANY, open as openPage, type Options, when } from "./page.js";

describe.skipIf(!executable)("the list", () => {
  let pages: Site;
  beforeAll(async () => {
    pages = await site();
  });
  afterAll(async () => pages?.close());
  const open = (options?: Options) => openPage(pages, options);

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
      await act(page, end);
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
});
