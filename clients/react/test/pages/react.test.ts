// The hooks and the component in a real Chromium, in strict mode, hydrated and not, with each React that the package takes.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { createElement } from "react";
import { renderToString } from "react-dom/server";
import type { Page } from "playwright-core";
import { build } from "vite";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Site, executable, site } from "../../../inbox/test/pages/harness.js";
import { App } from "../app.js";
import { react18 } from "../react18.js";

/** Bundles the page, in development mode: there React warns. */
async function bundle(alias: typeof react18, input = fileURLToPath(new URL("../page.tsx", import.meta.url))): Promise<string> {
  const result = await build({
    configFile: false,
    root: fileURLToPath(new URL("..", import.meta.url)),
    mode: "development",
    logLevel: "error",
    define: { "process.env.NODE_ENV": '"development"' },
    resolve: { alias },
    build: { write: false, minify: false, modulePreload: false, rollupOptions: { input, output: { entryFileNames: "page.js", codeSplitting: false } } },
  });
  const { output } = (Array.isArray(result) ? result[0] : result) as { output: { type: string; code?: string }[] };
  return output.find(({ type }) => type === "chunk")!.code!;
}

const run = (page: Page, code: string): Promise<any> => page.evaluate(`(async () => { ${code} })()`);
const when = (page: Page, condition: string): Promise<void> => expect.poll(() => page.evaluate(condition), { timeout: 10_000 }).toBe(true);
const ITEMS = `[notification(3), notification(2, { data: { url: "/page-1" } }), notification(1, { isRead: true })]`;

describe.skipIf(!executable).each([["18", react18], ["19", []]] as const)("React %s in a page", (major, alias) => {
  let pages: Site;
  let said: string[];
  beforeAll(async () => {
    const code = await bundle([...alias]);
    pages = await site({ "/page.js": () => code });
  });
  afterAll(async () => pages?.close());

  async function open(root = ""): Promise<Page> {
    const { page } = await pages.open(`<div id="root">${root}</div><script type="module" src="/page.js"></script>`);
    said = [];
    page.on("console", (message) => ["error", "warning"].includes(message.type()) && said.push(message.text()));
    page.on("pageerror", (error) => said.push(String(error)));
    await when(page, "globalThis.isReady === true");
    expect(await page.evaluate("version")).toMatch(new RegExp(`^${major}`));
    return page;
  }

  async function close(page: Page): Promise<void> {
    expect(said, "React says nothing").toEqual([]);
    await page.context().close();
  }

  test("hydrates what a server rendered, and shows the inbox then", async () => {
    // The markup is the same for both.
    const page = await open(renderToString(createElement(App, { client: null })));
    await run(page, `globalThis.client = fakeClient(${ITEMS}); globalThis.recovered = [];
      globalThis.server = document.querySelector("signal-inbox");
      hydrateRoot(document.querySelector("#root"), createElement(App, { client }), { onRecoverableError: (error) => recovered.push(String(error)) });`);
    await when(page, `document.querySelector("#count").textContent === "2"`);
    expect(await page.evaluate("recovered")).toEqual([]);
    expect(await page.evaluate(`server === document.querySelector("signal-inbox")`), "the server's element is kept").toBe(true);
    expect(await page.locator("#list li").count()).toBe(3);
    await page.getByRole("button", { name: "Notifications, 2 unread" }).waitFor();
    await close(page);
  });

  test("reads, deletes, and renders again only what changed", async () => {
    const page = await open();
    await run(page, `globalThis.client = fakeClient(${ITEMS}); createRoot(document.querySelector("#root")).render(createElement(App, { client }));`);
    await page.getByRole("button", { name: "Title 3", exact: true }).click();
    await when(page, `document.querySelector("#count").textContent === "1"`);
    await page.getByRole("button", { name: "delete Title 3" }).click();
    await when(page, `document.querySelectorAll("#list li").length === 2`);
    const before = await page.evaluate("renders.count");
    await run(page, `client.add(notification(4, { isRead: true }));`);
    await when(page, `document.querySelectorAll("#list li").length === 3`);
    expect(await page.evaluate("renders.count"), "the count is the same").toBe(before);
    await run(page, `client.connection.set({ status: "waiting" });`);
    await when(page, `document.querySelector("#status").textContent === "waiting"`);
    await close(page);
  });

  test("a client that the provider makes is made when it mounts, and closed", async () => {
    const page = await open();
    await run(page, `globalThis.made = []; const root = createRoot(document.querySelector("#root")); globalThis.root = root;
      root.render(createElement(App, { create: () => { const client = fakeClient(${ITEMS}); made.push(client); return client; } }));`);
    await when(page, `document.querySelector("#count").textContent === "2"`);
    const open_ = `made.filter(({ calls }) => !calls.some(([name]) => name === "close")).length`;
    expect(await page.evaluate(open_), "of those that strict mode makes one is left").toBe(1);
    await run(page, `root.unmount()`);
    expect(await page.evaluate(open_)).toBe(0);
    await close(page);
  });

  test("the application holds the open state, and its nodes are in the panel", async () => {
    const page = await open();
    await run(page, `globalThis.client = fakeClient(${ITEMS}); globalThis.asked = []; createRoot(document.querySelector("#root")).render(createElement(App, { client }));`);
    const isOpen = (): Promise<boolean> => page.evaluate(`document.querySelector("signal-inbox").open`);
    await page.getByRole("button", { name: /^Notifications/ }).click();
    await page.getByRole("link", { name: "Settings" }).waitFor();
    await page.keyboard.press("Escape");
    await expect.poll(isOpen).toBe(false);
    await page.locator("#toggle").click();
    await expect.poll(isOpen).toBe(true);
    expect(await page.evaluate(`document.querySelector("signal-inbox").className`)).toBe("corner");
    await close(page);
    const other = await open();
    await run(other, `globalThis.client = fakeClient(${ITEMS}); createRoot(document.querySelector("#root")).render(createElement(App, { client, inbox: { open: false, onOpenChange: undefined } }));`);
    await other.getByRole("button", { name: /^Notifications/ }).click();
    await other.waitForTimeout(100);
    expect(await other.evaluate(`document.querySelector("signal-inbox").open`), "the application says no").toBe(false);
    await close(other);
  });

  test("rows that React renders are styled and clicked as parts of the page", async () => {
    const page = await open();
    await run(page, `globalThis.client = fakeClient(Array.from({ length: 200 }, (_, index) => notification(200 - index))); globalThis.clicks = [];
      createRoot(document.querySelector("#root")).render(createElement(App, { client, inbox: { mode: "inline",
        renderItem: ({ id, title, isRead }) => createElement("div", { className: "own" }, title, isRead ? " (read)" : "", createElement("button", { onClick: () => clicks.push(id) }, "more about " + title)),
        onItemClick: ({ detail }) => clicks.push("item " + detail.notification.id) } }));`);
    await page.getByRole("button", { name: "more about Title 200" }).click();
    expect(await page.evaluate("clicks")).toEqual(["n200"]);
    await page.locator(".own", { hasText: "Title 199" }).first().click({ position: { x: 4, y: 4 } });
    await page.locator(".own", { hasText: "Title 199 (read)" }).waitFor();
    expect(await page.evaluate("clicks")).toEqual(["n200", "item n199"]);
    expect(await page.locator(".own").count()).toBeLessThan(40);
    await run(page, `document.querySelector("signal-inbox").shadowRoot.querySelector(".scroller").scrollTop = 1e6;`);
    await page.locator(".own", { hasText: /^Title 1more/ }).waitFor();
    await expect.poll(() => page.locator(".own", { hasText: "Title 200" }).count(), { message: "those out of sight are gone" }).toBe(0);
    await close(page);
  });

  test("a count that changes in the middle of a slow render is the same everywhere", async () => {
    const page = await open();
    await run(page, `globalThis.client = fakeClient(${ITEMS}); globalThis.torn = 0;
      createRoot(document.querySelector("#root")).render(createElement(Torn, { client }));
      new MutationObserver(() => { if (new Set([...document.querySelectorAll(".slow")].map((node) => node.textContent)).size > 1) torn++; }).observe(document.querySelector("#root"), { subtree: true, childList: true, characterData: true });
      globalThis.seq = 10;`);
    for (let round = 0; round < 3; round++) {
      await run(page, "for (let at = 1; at < 6; at++) setTimeout(() => client.add(notification(seq++)), at * 40);");
      await page.locator("#start").click();
      await when(page, `document.querySelectorAll(".slow").length === 60 && document.querySelector("#start").dataset.pending === "false"`);
    }
    await when(page, `document.querySelector(".slow").textContent === "17"`);
    expect(await page.evaluate("torn")).toBe(0);
    await close(page);
  });

  test("an event reaches the handler of the last render, once", async () => {
    const page = await open();
    await run(page, `globalThis.client = fakeClient([]); globalThis.root = createRoot(document.querySelector("#root"));
      globalThis.show = (prefix) => root.render(createElement(Events, { client, prefix })); show("a");`);
    const shown = (): Promise<string | null> => page.locator("#event").textContent();
    await expect.poll(() => page.evaluate(`client.calls.length`)).toBe(1);
    await run(page, `client.emit("1")`);
    await expect.poll(shown).toBe("a1");
    await run(page, `show("b")`);
    await page.waitForTimeout(50);
    await run(page, `client.emit("2")`);
    await expect.poll(shown).toBe("b2");
    expect(await page.evaluate(`client.calls`), "it subscribed once").toEqual([["on", "order:updated"]]);
    await run(page, `root.unmount(); client.emit("3")`);
    await close(page);
  });

  test("a room is left when its last component is gone", async () => {
    const page = await open();
    await run(page, `globalThis.client = fakeClient([]); globalThis.root = createRoot(document.querySelector("#root"));
      globalThis.show = (...names) => root.render(createElement(Rooms, { client, names })); show("a", "a", "secret:b");`);
    await expect.poll(() => page.locator(".room").allTextContents()).toEqual(["joined", "joined", "refused"]);
    const left = (): Promise<string[]> => page.evaluate(`client.calls.filter(([name]) => name === "leave").map(([, room]) => room)`);
    await run(page, `show("a")`);
    await expect.poll(left).toEqual(["secret:b"]);
    await run(page, `show("c")`);
    await expect.poll(left).toEqual(["secret:b", "a"]);
    await close(page);
  });
});

test.skipIf(!executable)("the first example of the README shows a bell, and asks for a token", async () => {
  const example = /```tsx\n(.*?)```/s.exec(readFileSync(new URL("../../README.md", import.meta.url), "utf8"))![1]!;
  const folder = fileURLToPath(new URL("../../node_modules/.readme", import.meta.url));
  mkdirSync(folder, { recursive: true });
  writeFileSync(`${folder}/app.tsx`, `${example.replace('"https://signal.example.com"', "location.origin")}
    import { createRoot } from "react-dom/client";
    createRoot(document.querySelector("#root")!).render(<App />);`);
  const code = await bundle([], `${folder}/app.tsx`);
  let asked = 0;
  const pages = await site({ "/page.js": () => code, "/api/signal-token": () => `token ${++asked}` });
  const { page } = await pages.open(`<div id="root"></div><script type="module" src="/page.js"></script>`);
  await page.getByRole("button", { name: "Notifications" }).click();
  await page.getByRole("dialog").waitFor();
  await expect.poll(() => asked).toBeGreaterThan(0);
  await pages.close();
});
