// Every fault there is, with many clients at once: in Node and in pages of a Chromium. `npm run chaos -w client -- --minutes 10` is the long form.

import { existsSync, readFileSync } from "node:fs";
import { type Server, createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { type Browser, type Page, chromium } from "playwright-core";
import { afterAll, describe, expect, test } from "vitest";
import { Chaos, Watch } from "./chaos.js";
import { Cluster, missing } from "./cluster.js";
import { until } from "./gateway.js";

const executable = process.env["SIGNAL_TEST_CHROMIUM"] ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync) ?? "";
if (missing) console.log(`skipped: clients: chaos: ${missing}`);

const seconds = Number(process.env["SIGNAL_CHAOS_SECONDS"] ?? 30);
const devices = Number(process.env["SIGNAL_CHAOS_CLIENTS"] ?? 12);
const tabs = executable ? Number(process.env["SIGNAL_CHAOS_TABS"] ?? 1) : 0;
const seed = Number(process.env["SIGNAL_CHAOS_SEED"] ?? Math.floor(Math.random() * 1e9));

/** mulberry32: the same faults for the same seed. */
function seeded(start: number): () => number {
  let state = start;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const HTML = `<!doctype html><title>chaos</title><script type="module">
import { createClient, indexedDbStorage, sharedTabs } from "/dist/index.js";
const { user, url } = Object.fromEntries(new URLSearchParams(location.search));
window.client = createClient({
  url, user, encryption: "required",
  token: () => fetch("/token?user=" + user).then((answer) => answer.text()),
  storage: indexedDbStorage(), tabs: sharedTabs(), backoff: { firstMs: 500, maxMs: 2000, stableMs: 1000 }, probeMs: 3000,
});
window.states = [];
client.inbox.subscribe(() => {
  const { status, items, unreadCount } = client.inbox.getSnapshot();
  states.push({ status, unreadCount, items: items.map(({ id, seq, isRead }) => ({ id, seq, isRead })) });
});
</script>`;

/** Pages of one browser, of one person: they share a connection. */
class Tabs {
  readonly #pages: Page[] = [];
  readonly #watches: Watch[] = [];
  #server!: Server;
  #browser!: Browser;

  constructor(readonly user: string) {}

  async open(cluster: Cluster, count: number, life: () => number): Promise<void> {
    this.#server = createServer((request, response) => {
      const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
      if (pathname === "/token") return void response.end(cluster.token(searchParams.get("user") ?? "", life()));
      const isScript = /^\/dist\/[\w/-]+\.js$/.test(pathname);
      response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
      response.end(isScript ? readFileSync(fileURLToPath(new URL(`../..${pathname}`, import.meta.url))) : HTML);
    });
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.#browser = await chromium.launch({ executablePath: executable, args: ["--no-sandbox"] });
    const context = await this.#browser.newContext();
    const { port } = this.#server.address() as { port: number };
    for (let number = 0; number < count; number++) {
      const page = await context.newPage();
      await page.goto(`http://127.0.0.1:${port}/?user=${this.user}&url=${encodeURIComponent(`ws://127.0.0.1:${cluster.balancer.port}`)}`);
      this.#pages.push(page);
      this.#watches.push(new Watch(`tab ${number}`, true));
    }
  }

  async check(cluster: Cluster): Promise<void> {
    for (const [number, page] of this.#pages.entries()) {
      let last = "";
      await until(
        `tab ${number} shows what the database has`,
        async () => {
          const { items, unreadCount } = await cluster.inbox(this.user);
          const shown = await page.evaluate(async () => {
            const { inbox } = (globalThis as any).client;
            while (inbox.getSnapshot().hasMore) await inbox.loadMore();
            return inbox.getSnapshot();
          });
          last = `${shown.status}: ${shown.unreadCount} unread of ${shown.items.length}, the database has ${unreadCount} of ${items.length}`;
          return shown.unreadCount === unreadCount && JSON.stringify(shown.items) === JSON.stringify(items);
        },
        60_000,
      ).catch((error: unknown) => {
        throw new Error(`${String(error)}; ${last}`);
      });
      const states = await page.evaluate(() => (globalThis as any).states as Parameters<Watch["look"]>[0][]);
      for (const state of states) this.#watches[number]!.look(state);
    }
    expect(this.#watches.flatMap(({ problems }) => problems)).toEqual([]);
  }

  async close(): Promise<void> {
    await this.#browser?.close();
    this.#server?.close();
  }
}

describe.skipIf(missing !== "")(`chaos, seed ${seed}`, () => {
  const ends: (() => Promise<void> | void)[] = [];
  afterAll(async () => {
    for (const end of ends.reverse()) await end();
  });

  test(`${devices} clients and ${tabs} tabs for ${seconds} s: each shows what the database has, nothing twice, and no count flickers`, { timeout: (seconds + 240) * 1000 }, async () => {
    const cluster = await Cluster.start(3);
    ends.push(() => cluster.close());
    const pages = new Tabs("2000");
    ends.push(() => pages.close());
    const chaos = new Chaos(cluster, devices, tabs > 0 ? [pages.user] : [], seeded(seed));
    ends.push(() => chaos.close());
    if (tabs > 0) await pages.open(cluster, tabs, () => chaos.life());
    const report = await chaos.run(seconds);
    console.log(`clients: chaos: seed ${seed}: ${JSON.stringify(report)}`);
    await chaos.check();
    if (tabs > 0) await pages.check(cluster);
    expect(report.records).toBeGreaterThan(seconds);
  });
});
