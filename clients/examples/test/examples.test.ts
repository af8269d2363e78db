// Each example as a reader starts it: by `npm start` in its folder, with a real gateway and a real Chromium.

import { type ChildProcess, spawn } from "node:child_process";
import { createServer } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Browser, type Page, chromium } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { Gateway, binary, until } from "../../client/test/conformance/gateway.js";
import { executable } from "../../inbox/test/pages/harness.js";

interface Started {
  readonly child: ChildProcess;
  printed: string;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

describe.skipIf(!binary)("an example", () => {
  let gateway: Gateway;
  let browser: Browser | undefined;
  const started: Started[] = [];

  beforeAll(async () => {
    gateway = await Gateway.start();
    if (executable) browser = await chromium.launch({ executablePath: executable, args: ["--no-sandbox"] });
  });
  afterEach(async () => {
    for (const { child } of started.splice(0)) {
      // npm, what it started, and what that started.
      if (child.pid) process.kill(-child.pid, "SIGTERM");
    }
    await gateway.rest("17", "POST", "/notifications/read", { all: true });
  });
  afterAll(async () => {
    await browser?.close();
    await gateway?.close();
  });

  function start(name: string, ...args: string[]): Started {
    const child = spawn("npm", ["start", "--silent", ...(args.length > 0 ? ["--", ...args] : [])], {
      cwd: fileURLToPath(new URL(`../${name}`, import.meta.url)),
      env: { ...process.env, SIGNAL_URL: gateway.addresses.rest, SIGNAL_TOKEN_FILE: join(gateway.folder, "user-17.token"), ...(args.length === 0 && { PORT: "0" }) },
      detached: true,
    });
    const result: Started = { child, printed: "" };
    for (const stream of [child.stdout!, child.stderr!]) stream.on("data", (bytes: Buffer) => (result.printed += bytes.toString()));
    started.push(result);
    return result;
  }

  /** Opens the page that the example serves. */
  async function open(name: string, hasVite: boolean): Promise<{ page: Page; said: string[] }> {
    const port = hasVite ? await freePort() : 0;
    const example = start(name, ...(hasVite ? ["--port", String(port), "--strictPort", "--host", "127.0.0.1"] : []));
    // Vite writes its address in colours.
    const address = await until("it says where it is", () => {
      if (example.child.exitCode !== null) throw new Error(example.printed);
      return /http:\/\/127\.0\.0\.1:\d+\//.exec(example.printed.replace(/\x1b\[\d+m/g, ""))?.[0];
    });
    const page = await (await browser!.newContext()).newPage();
    const said: string[] = [];
    page.on("pageerror", (error) => said.push(String(error)));
    page.on("console", (message) => ["error", "warning"].includes(message.type()) && said.push(message.text()));
    await page.goto(address);
    // Vite may find packages to bundle, and load the page once more.
    await until("it is ready", () => page.evaluate(`document.querySelector("signal-inbox")?.client?.inbox.getSnapshot().status === "ready"`).catch(() => false));
    return { page, said };
  }

  const bell = (page: Page) => page.getByRole("button", { name: "Notifications, 2 unread" });

  test.skipIf(!executable)("plain: the bell rings, and the title counts", async () => {
    const { page, said } = await open("plain", false);
    await gateway.notify(["17"], 2);
    await bell(page).click();
    await page.getByRole("dialog").getByText("number 1").first().waitFor();
    expect(await page.title()).toBe("(2) Shop");
    await page.getByRole("button", { name: "Mark all as read" }).click();
    await expect.poll(() => page.title()).toBe("Shop");
    expect(said).toEqual([]);
    await page.context().close();
  });

  test.skipIf(!executable)("react: the bell rings, the hooks list, and a link is the router's", async () => {
    const { page, said } = await open("react", true);
    await gateway.notify(["17"], 2);
    await bell(page).waitFor();
    const newest = page.getByRole("list", { name: "Newest" });
    await newest.getByRole("button", { name: "seen" }).first().click();
    await page.getByRole("button", { name: "Notifications, 1 unread" }).click();
    await page.getByText("online").waitFor();
    expect(await page.title()).toBe("(1) Shop");
    await page.evaluate(`document.querySelector("signal-inbox").itemLink = () => "/orders/7"; window.isSame = true`);
    await page.getByRole("link", { name: /number 0/ }).first().click();
    await page.getByRole("heading", { name: "/orders/7" }).waitFor();
    expect(await page.evaluate("window.isSame"), "the page was not loaded again").toBe(true);
    expect(said).toEqual([]);
    await page.context().close();
  });

  test.skipIf(!executable)("vue: the component holds the open state", async () => {
    const { page, said } = await open("vue", true);
    await gateway.notify(["17"], 2);
    await page.getByRole("button", { name: "2 new" }).click();
    await page.getByRole("dialog").getByText("number 1").first().waitFor();
    await page.getByRole("link", { name: "Settings" }).waitFor();
    await page.keyboard.press("Tab");
    await bell(page).click();
    await expect.poll(() => page.getByRole("dialog").count()).toBe(0);
    await bell(page).click();
    await page.keyboard.press("Escape");
    await expect.poll(() => page.getByRole("dialog").count()).toBe(0);
    expect(said).toEqual([]);
    await page.context().close();
  });

  test("node: prints each notification once, also what came while it was away", async () => {
    await gateway.notify(["17"], 2);
    await until("they are stored", async () => (await gateway.inbox("17")).unreadCount === 2);
    const lines = ({ printed }: Started): string[] => printed.trim().split("\n").filter(Boolean).map((line) => (JSON.parse(line) as { title: string }).title);
    const first = start("node");
    await until("it printed them", () => lines(first).length >= 2);
    await gateway.notify(["17"]);
    await until("it printed the next one", () => lines(first).length >= 3);
    await until("all are read", async () => (await gateway.inbox("17")).unreadCount === 0);
    expect(lines(first)).toEqual(["number 0", "number 1", "number 0"]);
    process.kill(-first.child.pid!, "SIGTERM");
    started.length = 0;
    await gateway.notify(["17"]);
    await until("it is stored", async () => (await gateway.inbox("17")).unreadCount === 1);
    const second = start("node");
    await until("it printed what was new", () => lines(second).length >= 1);
    await until("it is read", async () => (await gateway.inbox("17")).unreadCount === 0);
    expect(lines(second)).toEqual(["number 0"]);
  });
});
