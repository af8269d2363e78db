// The element, the client and a real gateway. Skipped where none was built.

import { readFileSync } from "node:fs";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Gateway, binary, until } from "../../../client/test/conformance/gateway.js";
import { type Site, executable, site } from "./harness.js";

describe.skipIf(!binary || !executable)("the inbox of a real gateway", () => {
  let gateway: Gateway;
  let pages: Site;
  beforeAll(async () => {
    gateway = await Gateway.start();
    pages = await site({ "/token": (query) => gateway.token(query.get("user") ?? ""), "/api/signal-token": () => gateway.token("16") });
  });
  afterAll(async () => {
    await pages?.close();
    await gateway?.close();
  });

  async function open(user: string, attributes = "", options = ""): Promise<Page> {
    const { page } = await pages.open(`<signal-inbox ${attributes}></signal-inbox><script type="module" nonce="test">
      import "@signal/inbox";
      import { createClient } from "@signal/client";
      window.client = createClient({ url: "ws://127.0.0.1:${gateway.proxy.port}", user: "${user}", token: () => fetch("/token?user=${user}").then((answer) => answer.text()), backoff: { firstMs: 300, maxMs: 1000 }, ${options} });
      document.querySelector("signal-inbox").client = client;
    </script>`);
    await until("it is ready", () => page.evaluate(`window.client?.inbox.getSnapshot().status === "ready"`));
    return page;
  }

  const bell = (page: Page, unread: number) => page.getByRole("button", { name: unread ? `Notifications, ${unread} unread` : "Notifications", exact: true });

  test("the first example of the README rings", async () => {
    const example = /```html\n(.*?)```/s.exec(readFileSync(new URL("../../README.md", import.meta.url), "utf8"))![1]!;
    expect(example).toContain("https://signal.example.com");
    const { page, context } = await pages.open(example.replace("https://signal.example.com", gateway.addresses.rest).replace("<script", '<script nonce="test"'));
    await bell(page, 0).waitFor();
    await gateway.notify(["16"]);
    await bell(page, 1).click();
    await page.getByText("number 0").waitFor();
    await context.close();
  });

  test("the bell rings, and what is read or deleted is so everywhere", async () => {
    const [one, two] = [await open("17"), await open("17", 'mode="inline"')];
    await gateway.notify(["17"], 3);
    await bell(one, 3).click();
    await one.getByText("number 2").waitFor();
    await one.getByRole("listitem").first().hover();
    await one.getByRole("button", { name: "Delete: number 2" }).click();
    await two.getByText("number 1").waitFor();
    await expect.poll(() => two.getByRole("listitem").count()).toBe(2);
    await two.getByRole("button", { name: "Mark all as read" }).click();
    await bell(one, 0).waitFor();
    const { items, unreadCount } = await gateway.inbox("17");
    expect([items.length, unreadCount]).toEqual([2, 0]);
    for (const page of [one, two]) await page.context().close();
  });

  test("a link that is followed at once becomes read", async () => {
    const page = await open("18");
    await page.evaluate(`document.querySelector("signal-inbox").itemLink = () => "/elsewhere"`);
    await gateway.notify(["18"], 5);
    await bell(page, 5).click();
    for (let unread = 4; unread >= 0; unread--) {
      await page.getByRole("link", { name: /Unread/ }).first().click();
      await page.waitForURL("**/elsewhere");
      await until("it is read", async () => (await gateway.inbox("18")).unreadCount === unread, 5_000);
      await page.goBack();
      if (unread > 0) await bell(page, unread).click();
      await page.evaluate(`document.querySelector("signal-inbox").itemLink = () => "/elsewhere"`);
    }
    await page.context().close();
  });

  test("1,000 notifications are scrolled through to the first, while the network fails", async () => {
    await gateway.notify(["19"], 1_000);
    await until("all are stored", async () => (await gateway.inbox("19")).unreadCount === 1_000, 60_000);
    const page = await open("19", "", "maxItems: 2000");
    await page.getByRole("button", { name: "Notifications, 99+ unread" }).click();
    const down = (): Promise<unknown> => page.evaluate(`document.querySelector("signal-inbox").shadowRoot.querySelector(".scroller").scrollTop = 1e7`);
    const loaded = (): Promise<number> => page.evaluate("client.inbox.getSnapshot().items.length");
    await until("some are loaded", async () => (await down(), (await loaded()) >= 300));
    gateway.proxy.cut("refused");
    await page.getByText("Offline. Connecting again.").waitFor();
    await down();
    gateway.proxy.mode = "open";
    await until("all are loaded", async () => {
      await down();
      const retry = page.getByRole("button", { name: "Try again" });
      if (await retry.isVisible()) await retry.click();
      return (await loaded()) === 1_000;
    });
    await until("the oldest is shown", async () => (await down(), page.getByText("number 0", { exact: true }).isVisible()));
    expect(await page.evaluate(`document.querySelector("signal-inbox").shadowRoot.querySelectorAll(".item").length`)).toBeLessThan(40);
    await page.getByRole("button", { name: "Mark all as read" }).click();
    await bell(page, 0).waitFor();
    await until("the database has it", async () => (await gateway.inbox("19")).unreadCount === 0);
    await page.context().close();
  });

  test("a client that was closed is asked to connect", async () => {
    const page = await open("20");
    await page.evaluate("client.close()");
    await bell(page, 0).click();
    await page.getByText("Not connected.").waitFor();
    await page.getByRole("button", { name: "Connect" }).click();
    await expect.poll(() => page.getByText("Not connected.").isVisible()).toBe(false);
    await page.context().close();
  });
});
