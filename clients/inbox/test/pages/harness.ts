// Pages of a real Chromium with the built packages, and an inbox that a test fills by itself.

import { existsSync, readFileSync } from "node:fs";
import { type Server, createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { type Browser, type BrowserContext, type BrowserContextOptions, type Page, chromium } from "playwright-core";

export const executable = process.env["SIGNAL_TEST_CHROMIUM"] ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync) ?? "";
if (!executable) console.log("skipped: clients: inbox: no Chromium is installed");

const packages = fileURLToPath(new URL("../../..", import.meta.url));
const MODULES = /^\/(client|inbox)\/dist\/[\w/-]+\.js$/;
const IMPORTS = JSON.stringify({ imports: { "@signal/client": "/client/dist/index.js", "@signal/inbox": "/inbox/dist/index.js", "@signal/inbox/element": "/inbox/dist/element.js" } });

/** An inbox that a test fills by itself. */
export const FAKE = fileURLToPath(new URL("fake.js", import.meta.url));

export interface Site {
  readonly origin: string;
  readonly browser: Browser;
  /** Opens a page with this body. */
  open(body: string, options?: BrowserContextOptions & { readonly html?: string; readonly head?: string }): Promise<{ page: Page; context: BrowserContext }>;
  close(): Promise<void>;
}

/** Serves the packages and the pages that tests ask for; `routes` answers what else a page asks of its server. */
export async function site(routes: Readonly<Record<string, (query: URLSearchParams) => string>> = {}): Promise<Site> {
  const pages = new Map<string, string>();
  const server: Server = createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
    const route = routes[pathname];
    if (route) {
      response.setHeader("content-type", pathname.endsWith(".js") ? "text/javascript" : "text/plain");
      return void response.end(route(searchParams));
    }
    if (MODULES.test(pathname)) {
      response.setHeader("content-type", "text/javascript");
      return void response.end(readFileSync(packages + pathname));
    }
    if (pathname === "/fake.js") {
      response.setHeader("content-type", "text/javascript");
      return void response.end(readFileSync(FAKE));
    }
    // No inline script of a page and no style by attribute is needed by the element: what a strict policy forbids, it does not do.
    response.setHeader("content-security-policy", "default-src 'self'; connect-src *; style-src 'self'; script-src 'self' 'nonce-test'");
    response.setHeader("content-type", "text/html; charset=utf-8");
    response.end(pages.get(pathname) ?? "<!doctype html><title>elsewhere</title>");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const origin = `http://127.0.0.1:${(server.address() as { port: number }).port}`;
  const browser = await chromium.launch({ executablePath: executable, args: ["--no-sandbox"] });
  let last = 0;
  return {
    origin,
    browser,
    async open(body, { html = 'lang="en"', head = "", ...options } = {}) {
      const path = `/page-${++last}`;
      pages.set(path, `<!doctype html><html ${html}><head><title>Test</title><meta name="viewport" content="width=device-width"><script type="importmap" nonce="test">${IMPORTS}</script>${head}</head><body>${body}</body></html>`);
      const context = await browser.newContext({ viewport: { width: 900, height: 700 }, ...options });
      const page = await context.newPage();
      page.on("pageerror", (error) => console.error("page:", error));
      page.on("console", (message) => message.type() === "error" && console.error("console:", message.text()));
      await page.goto(origin + path);
      return { page, context };
    },
    async close() {
      await browser.close();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
