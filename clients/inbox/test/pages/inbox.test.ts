// The element in a real Chromium, with an inbox that the test fills by itself.

import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Site, executable, site } from "./harness.js";

const BODY = (attributes = "", extra = ""): string => `<button id="before">before</button><signal-inbox ${attributes}></signal-inbox><button id="after">after</button>
<script type="module" nonce="test">
  import "@signal/inbox";
  import { fakeClient, notification } from "/fake.js";
  window.notification = notification;
  window.inbox = document.querySelector("signal-inbox");
  window.client = fakeClient([notification(3), notification(2, { data: { url: "/page-1" } }), notification(1, { isRead: true })]);
  window.events = [];
  for (const name of ["signal-open-change", "signal-item-click", "signal-count", "signal-error"]) inbox.addEventListener(name, ({ type, detail }) => events.push([type, detail]));
  ${extra}
  inbox.client = client;
</script>`;

const run = (page: Page, code: string): Promise<any> => page.evaluate(code);

describe.skipIf(!executable)("the inbox in a page", () => {
  let pages: Site;
  beforeAll(async () => {
    pages = await site();
  });
  afterAll(async () => pages?.close());

  test("the bell has the count, and opens the panel", async () => {
    const { page, context } = await pages.open(BODY());
    const bell = page.getByRole("button", { name: "Notifications, 2 unread" });
    await bell.click();
    await page.getByRole("dialog", { name: "Notifications" }).waitFor();
    expect(await page.getByRole("listitem").count()).toBe(3);
    expect(await run(page, "inbox.open")).toBe(true);
    await page.getByRole("listitem").nth(0).hover();
    await page.getByRole("button", { name: "Mark as read: Title 3" }).click();
    await page.getByRole("button", { name: "Notifications, 1 unread" }).waitFor();
    await page.getByRole("button", { name: "Mark all as read" }).click();
    await page.getByRole("button", { name: "Notifications", exact: true }).waitFor();
    expect(await run(page, "client.calls")).toEqual([["read", ["n3"]], ["readAll", null]]);
    await page.mouse.click(850, 650);
    expect(await run(page, "inbox.open")).toBe(false);
    await context.close();
  });
});
