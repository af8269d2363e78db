// The client in a real Chromium, two pages of one browser, against a real gateway. Skipped where no Chromium is installed.

import { existsSync, readFileSync } from "node:fs";
import { type Server, createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { type Browser, type BrowserContext, type Page, chromium } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Gateway, binary, until } from "./gateway.js";

const executable = process.env["SIGNAL_TEST_CHROMIUM"] ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync) ?? "";
const isPossible = binary !== "" && executable !== "";
if (binary && !executable) console.log("skipped: clients: browser: no Chromium is installed");

const HTML = `<!doctype html><title>test</title><script type="module">
import { createClient, indexedDbStorage, sharedTabs } from "/dist/index.js";
const user = new URLSearchParams(location.search).get("user");
const url = new URLSearchParams(location.search).get("url");
window.client = createClient({
  url, user, encryption: "required",
  token: () => fetch("/token?user=" + user).then((answer) => answer.text()),
  storage: indexedDbStorage(), tabs: sharedTabs(), backoff: { firstMs: 300, maxMs: 1000 },
});
window.lengths = [];
client.inbox.subscribe(() => window.lengths.push(client.inbox.getSnapshot().items.length));
</script>`;

interface Shown {
  readonly status: string;
  readonly clientId: string | null;
  readonly encrypted: boolean;
  readonly inbox: string;
  readonly titles: string[];
  readonly unread: number;
  readonly lengths: number[];
}

describe.skipIf(!isPossible)("pages of a Chromium", () => {
  let gateway: Gateway;
  let server: Server;
  let browser: Browser;
  let context: BrowserContext;
  let origin = "";

  beforeAll(async () => {
    gateway = await Gateway.start();
    server = createServer((request, response) => {
      const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
      if (pathname === "/token") return void response.end(gateway.token(searchParams.get("user") ?? ""));
      const isScript = /^\/dist\/[\w/-]+\.js$/.test(pathname);
      response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
      response.end(isScript ? readFileSync(fileURLToPath(new URL(`../..${pathname}`, import.meta.url))) : HTML);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    origin = `http://127.0.0.1:${(server.address() as { port: number }).port}`;
    browser = await chromium.launch({ executablePath: executable, args: ["--no-sandbox"] });
    context = await browser.newContext();
  });
  afterAll(async () => {
    await browser?.close();
    server?.close();
    await gateway?.close();
  });

  async function open(user: string): Promise<Page> {
    const page = await context.newPage();
    await page.goto(`${origin}/?user=${user}&url=${encodeURIComponent(`ws://127.0.0.1:${gateway.proxy.port}`)}`);
    return page;
  }

  const shown = (page: Page): Promise<Shown> =>
    page.evaluate(() => {
      const { client, lengths } = globalThis as any;
      const { status, clientId, encrypted } = client.connection.getSnapshot();
      const { items, unreadCount, status: inbox } = client.inbox.getSnapshot();
      return { status, clientId, encrypted, inbox, titles: items.map(({ title }: { title: string }) => title), unread: unreadCount, lengths };
    });

  const when = (what: string, page: Page, isSo: (state: Shown) => boolean): Promise<Shown> =>
    until(what, async () => {
      const state = await shown(page);
      return isSo(state) ? state : undefined;
    });

  test("two pages share one sealed connection, and the second takes it over when the first closes", async () => {
    const first = await open("17");
    const { clientId, encrypted } = await when("the first is online", first, ({ inbox, status }) => inbox === "ready" && status === "online");
    expect(encrypted).toBe(true);
    const second = await open("17");
    expect(await when("the second shows the same connection", second, ({ inbox, status }) => inbox === "ready" && status === "online")).toMatchObject({ clientId });
    await gateway.notify(["17"], 3);
    for (const page of [first, second]) await when("it shows them", page, ({ titles }) => titles.length === 3);
    await second.evaluate(() => (globalThis as any).client.inbox.readAll());
    await when("the first shows what the second did", first, ({ unread }) => unread === 0);
    await second.evaluate(() => ((globalThis as any).lengths.length = 0));
    await first.close();
    const next = await when("the second has a connection of its own", second, (state) => state.status === "online" && state.clientId !== clientId);
    expect(next.lengths, "its list never emptied").not.toContain(0);
    await gateway.notify(["17"]);
    await when("the next one comes", second, ({ titles }) => titles.length === 4);
    await second.close();
  });

  test("after a reload the list is there while the gateway is away, and after a sign-out it is not", async () => {
    const page = await open("18");
    await when("it is ready", page, ({ inbox, status }) => inbox === "ready" && status === "online");
    await gateway.notify(["18"], 2);
    await when("it shows them", page, ({ titles }) => titles.length === 2);
    await page.waitForTimeout(1_000);
    gateway.proxy.cut("refused");
    await page.reload();
    const away = await when("the stored list is there", page, ({ titles }) => titles.length === 2);
    expect(away.status).not.toBe("online");
    gateway.proxy.mode = "open";
    await when("it is back", page, ({ status }) => status === "online");
    await page.evaluate(() => (globalThis as any).client.signOut());
    gateway.proxy.cut("refused");
    await page.reload();
    await page.waitForTimeout(1_000);
    expect(await shown(page)).toMatchObject({ inbox: "loading", titles: [] });
    gateway.proxy.mode = "open";
    await page.close();
  });

  test("a browser that goes offline and comes back shows what came meanwhile", async () => {
    const page = await open("1");
    await when("it is ready", page, ({ inbox, status }) => inbox === "ready" && status === "online");
    await context.setOffline(true);
    gateway.proxy.cut("refused");
    await gateway.notify(["1"], 5);
    await when("it is offline", page, ({ status }) => status !== "online");
    gateway.proxy.mode = "open";
    await context.setOffline(false);
    await when("it shows them", page, ({ titles }) => titles.length === 5);
    await page.close();
  });
});
