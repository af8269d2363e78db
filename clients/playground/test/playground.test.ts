// The first message in a browser: start the binary, open the address that it prints, send the form, and the bell rings.
//
// SIGNAL_TEST_GATEWAY names the binary, SIGNAL_TEST_SCREENSHOTS a folder for a picture of the page.

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { type Server, createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Browser, type Page, chromium } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const binary = process.env["SIGNAL_TEST_GATEWAY"] ?? "";
const executable = process.env["SIGNAL_TEST_CHROMIUM"] ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync) ?? "";
const screenshots = process.env["SIGNAL_TEST_SCREENSHOTS"] ?? "";
if (binary && !executable) console.log("skipped: clients: playground: no Chromium is installed");

const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

/** What is asked for; a test machine may be busy. */
const LIMIT_MS = 5_000;
const BUSY_LIMIT_MS = 20_000;

describe.skipIf(!binary || !executable)("the playground", () => {
  const folder = mkdtempSync(join(tmpdir(), "signal-playground-"));
  let gateway: ChildProcess;
  let browser: Browser;
  let page: Page;
  let address = "";
  let startedAt = 0;
  const problems: string[] = [];

  beforeAll(async () => {
    browser = await chromium.launch({ executablePath: executable, args: ["--no-sandbox"] });
    page = await browser.newPage({ viewport: { width: 1440, height: 1240 } });
    page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
    page.on("pageerror", (error) => problems.push(error.message));
    startedAt = performance.now();
    gateway = spawn(binary, ["dev", "--data-dir", folder, "--public", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--kafka-port", "0", "--issuer-port", "0"]);
    let printed = "";
    address = await new Promise<string>((resolve, reject) => {
      const take = (bytes: Buffer): void => {
        printed += bytes.toString();
        const found = /^ {2}(http:\/\/127\.0\.0\.1:\d+\/#\S+)$/m.exec(printed)?.[1];
        if (found) resolve(found);
      };
      gateway.stdout!.on("data", take);
      gateway.stderr!.on("data", take);
      gateway.once("exit", () => reject(new Error(`the gateway ended:\n${printed}`)));
    });
  });
  afterAll(async () => {
    await browser?.close();
    if (gateway?.exitCode === null) {
      const ended = new Promise((resolve) => gateway.once("exit", resolve));
      gateway.kill("SIGKILL");
      await ended;
    }
    rmSync(folder, { recursive: true, force: true });
  });

  const online = (user: string): Promise<void> => page.locator(`[data-user="${user}"][data-status="online"]`).waitFor();
  const badge = (user: string, count: number): Promise<void> => page.locator(`[data-user="${user}"] signal-inbox.bell [part~="badge"]`, { hasText: new RegExp(`^${count}$`) }).waitFor();
  const event = (name: string, user: string): Promise<void> => page.locator(`#frames [data-event="${name}"][data-user="${user}"]`).first().waitFor();

  test("open the printed address, send the form, and both bells ring", async () => {
    await page.goto(address);
    await page.click("#send");
    await Promise.race([badge("17", 1), badge("18", 1)]);
    const ms = Math.round(performance.now() - startedAt);
    console.log(`clients: playground: ${ms} ms from the start of the binary to the first notification${ms > LIMIT_MS ? `, more than ${LIMIT_MS}` : ""}`);
    await Promise.all([badge("17", 1), badge("18", 1)]);
    expect(ms).toBeLessThan(BUSY_LIMIT_MS);
    expect(await page.textContent("#record")).toContain('"type": "PAYMENT_SUCCESS"');
    expect(await page.textContent("#preview")).toContain("Payment received");
    await page.getByText(/bell rang after \d+ ms/).waitFor();
    // The same text is stored.
    await page.locator('[data-user="18"] .inline').getByText("Order DH-1001 has been paid: 150,000 VND.").waitFor();
  });

  test("messages are shown as they read and as they travel, and tokens are not", async () => {
    const created = page.locator('#frames [data-event="notification:created"]').first();
    expect(await created.locator(".clear").textContent()).toContain("Payment received");
    expect(await created.locator(".wire").textContent()).toMatch(/^\{"event":"encrypted","data":\{"iv":"[\w+/=]+","ct":"/);
    const frames = (await page.textContent("#frames")) ?? "";
    expect(frames).not.toMatch(/eyJ[\w-]{9,}\./);
  });

  test("a preview says what the record becomes, and a record that becomes nothing says why", async () => {
    await page.selectOption("[name=locale]", "vi");
    await page.getByText("Thanh toán thành công").first().waitFor();
    await page.selectOption("[name=locale]", "en");
    await page.fill("[name=amount]", "1e999");
    await page.locator("#preview", { hasText: "dead letter: " }).or(page.locator("#preview", { hasText: "Payment received" })).waitFor();
    await page.fill("[name=amount]", "150000");
  });

  test("a dropped socket, a token that ends and a drain: each is mended without anybody", async () => {
    await page.click('[data-user="17"] .actions button:nth-child(1)');
    await page.locator('[data-user="17"]:not([data-status="online"])').first().waitFor();
    await online("17");
    await page.click('[data-user="18"] .actions button:nth-child(2)');
    await event("expiring", "18");
    await event("refreshed", "18");
    await page.click("#drain");
    await page.locator('article.person:not([data-status="online"])').first().waitFor();
    await online("17");
    await online("18");
    await page.selectOption("[name=audience]", "users:17");
    await page.selectOption("[name=type]", "custom");
    await page.click("#send");
    await badge("17", 2);
    await badge("18", 1);
  });

  test("reading in the panel takes the number from the bell", async () => {
    await page.locator('[data-user="18"] .inline').getByText("Payment received").first().click();
    await page.locator('[data-user="18"] signal-inbox.bell [part~="badge"]').waitFor({ state: "hidden" });
    // A refused socket while the gateway drained is the only thing that a browser complains of.
    expect(problems.filter((text) => !/WebSocket connection .* failed/.test(text))).toEqual([]);
    if (screenshots) await page.screenshot({ path: join(screenshots, "playground.png") });
  });

  test("it has no fault that axe finds, light and dark", async () => {
    const context = await browser.newContext({ viewport: { width: 1440, height: 1240 }, bypassCSP: true });
    const other = await context.newPage();
    await other.goto(address);
    await other.locator('[data-user="18"][data-status="online"]').waitFor();
    await other.addScriptTag({ path: axe });
    for (const colorScheme of ["light", "dark"] as const) {
      // Colours that are still on their way to the others are no fault.
      await other.emulateMedia({ colorScheme, reducedMotion: "reduce" });
      await other.waitForTimeout(300);
      const violations = await other.evaluate(async () => (await (globalThis as any).axe.run()).violations.map(({ id, nodes }: any) => `${id}: ${nodes[0].target}`));
      expect(violations, colorScheme).toEqual([]);
    }
    await context.close();
  });

  test("without the key of the printed address the page says what to open", async () => {
    const other = await browser.newPage();
    await other.goto(new URL("/", address).href);
    await other.getByText("open the address that the terminal printed").waitFor();
    await other.close();
  });

  test("a page of another origin can neither ask for tokens nor drain, although it knows the key", async () => {
    const server: Server = createServer((_, response) => response.setHeader("content-type", "text/html").end("<!doctype html><title>foreign</title>"));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      const foreign = await browser.newPage();
      await foreign.goto(`http://127.0.0.1:${(server.address() as { port: number }).port}/`);
      const results = await foreign.evaluate(async (to) => {
        const { origin, hash } = new URL(to);
        const headers = { "content-type": "application/json", "x-playground-key": hash.slice(1) };
        const ask = (path: string, init: RequestInit): Promise<string> => fetch(origin + path, init).then((answer) => `${answer.type} ${answer.status}`, () => "refused");
        return [
          await ask("/playground/token", { method: "POST", headers, body: '{"user":"17"}' }),
          await ask("/playground/drain", { method: "POST", mode: "no-cors", body: '{"seconds":30}' }),
          await ask("/", {}),
        ];
      }, address);
      // Without CORS the answer to the second is opaque; that nothing drained is seen by the page.
      expect(results).toEqual(["refused", "opaque 0", "refused"]);
      await foreign.close();
      expect(await page.locator('article.person[data-status="online"]').count()).toBe(2);
    } finally {
      server.close();
    }
  });
});
