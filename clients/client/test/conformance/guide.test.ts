// docs/websocket.md is true: its client runs in a real Chromium against a real gateway, its vectors hold, its frames look like those of a real connection.

import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { type Server, createServer } from "node:http";
import { fileURLToPath, pathToFileURL } from "node:url";
import { chromium } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import WebSocket from "ws";
import { Gateway, binary, pause, until } from "./gateway.js";

const executable = process.env["SIGNAL_TEST_CHROMIUM"] ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync) ?? "";
const guide = readFileSync(fileURLToPath(new URL("../../../../docs/websocket.md", import.meta.url)), "utf8");
const blocks = [...guide.matchAll(/```(\w*)\n(.*?)```/gs)].map(([, language, text]) => ({ language, text: text! }));
const source = blocks.find(({ language, text }) => language === "js" && text.includes("export function watch"))!.text;
const example = blocks.find(({ language, text }) => language === "js" && text.includes('from "./watch.js"'))!.text;
const frames = blocks
  .flatMap(({ text }) => text.split("\n"))
  .filter((line) => /^[<>] /.test(line))
  .map((line) => ({ isSent: line.startsWith(">"), ...(JSON.parse(line.slice(2)) as { event: string; data: any; id?: string }) }));

const page = `<!doctype html><title>guide</title><script type="module">
console.log = (title) => (window.titles ??= []).push(title);
${example.replace(/"ws:[^"]*"/, "new URLSearchParams(location.search).get('url')").replace('"./watch.js"', '"/watch.js"').replace('"/my-token"', '"/my-token" + location.search')}
</script>`;

test("the client of the guide has 40 lines", () => {
  expect(source.trimEnd().split("\n").length).toBeLessThanOrEqual(40);
});

test("the vectors of the guide hold for the functions of the guide (protocol.md 6.3, 6.4)", async () => {
  const file = fileURLToPath(new URL("../../dist/guide-example.mjs", import.meta.url));
  writeFileSync(file, source);
  try {
    const { agree, open } = (await import(pathToFileURL(file).href)) as { agree(key: CryptoKey, data: unknown): Promise<CryptoKey>; open(key: CryptoKey, data: unknown): Promise<string> };
    const of = (event: string, member: string): any => frames.find((frame) => frame.event === event && member in frame.data)!.data;
    const point = Buffer.from(of("authenticate", "clientPublicKey").clientPublicKey as string, "base64");
    const url = (part: Uint8Array): string => Buffer.from(part).toString("base64url");
    const jwk = { kty: "EC", crv: "P-256", d: url(new Uint8Array(32).fill(7)), x: url(point.subarray(1, 33)), y: url(point.subarray(33)) };
    const privateKey = await crypto.subtle.importKey("jwk", jwk, { name: "ECDH", namedCurve: "P-256" }, false, ["deriveBits"]);
    const key = await agree(privateKey, of("connected", "salt"));
    const opened = await open(key, of("encrypted", "ct"));
    expect(guide).toContain(`opens to \`${opened}\``);
    expect(JSON.parse(opened)).toEqual({ event: "hi", data: null });
    // The named steps between them.
    const server = Buffer.from(of("connected", "salt").serverPublicKey as string, "base64");
    const peer = await crypto.subtle.importKey("raw", server, { name: "ECDH", namedCurve: "P-256" }, false, []);
    const secret = await crypto.subtle.deriveBits({ name: "ECDH", public: peer }, privateKey, 256);
    expect(guide).toContain(`\`${Buffer.from(secret).toString("hex")}\``);
  } finally {
    rmSync(file, { force: true });
  }
});

describe.skipIf(!binary)("against a gateway", () => {
  let gateway: Gateway;
  beforeAll(async () => {
    gateway = await Gateway.start();
  });
  afterAll(() => gateway?.close());

  test("the frames look as the guide shows them", async () => {
    const socket = new WebSocket(gateway.addresses.rest.replace("http", "ws") + "/stream");
    const seen: { event: string; data: any; id?: string }[] = [];
    socket.on("message", (text: Buffer) => seen.push(JSON.parse(text.toString()) as (typeof seen)[number]));
    await until("it is open", () => socket.readyState === 1);
    const [authenticate, ...others] = frames.filter(({ isSent, data }) => isSent && !("clientPublicKey" in data));
    const send = ({ event, data, id }: { event: string; data: unknown; id?: string }): void => socket.send(JSON.stringify({ event, data, ...(id && { id }) }));
    send({ ...authenticate!, data: { ...authenticate!.data, token: gateway.token("17") } });
    const after = (event: string): Promise<unknown> => until(event, () => seen.some((frame) => frame.event === event));
    await after("connected");
    send(others[0]!);
    await after("notification:synced");
    await gateway.notify(["17"]);
    await after("notification:created");
    for (const frame of others.slice(1)) send(frame);
    await after("notification:read");
    await after("joined");
    socket.close();
    const shape = (value: unknown): unknown =>
      value !== null && typeof value === "object" && !Array.isArray(value) ? Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, shape(inner)])) : Array.isArray(value) ? "list" : typeof value;
    for (const { isSent, ...shown } of frames) {
      if (isSent || "salt" in shown.data || shown.event === "encrypted") continue;
      const real = seen.find(({ event }) => event === shown.event)!;
      // What depends on the record: its own data, and members that are there where they are known.
      for (const { data } of [shown, real]) {
        if (!data.notification) continue;
        data.notification = Object.fromEntries(Object.entries(data.notification as object).filter(([name]) => !["data", "actorId", "merchantId", "organizerId", "occurredAt"].includes(name)));
      }
      expect(shape(shown), shown.event).toEqual(shape(real));
    }
  });

  test("a fresh device begins with the newest page, and a sync brings what came after it", async () => {
    await gateway.notify(["18"], 3);
    await until("they are stored", async () => (await gateway.count("18")) === 3);
    const first = (await (await gateway.rest("18", "GET", "/notifications?limit=50")).json()) as Record<string, any>;
    for (const member of ["data", "next", "unreadCount", "version", "epoch"]) expect(first).toHaveProperty(member);
    const { seq } = first["data"][0];
    expect(seq).toBe(Math.max(...first["data"].map((one: { seq: number }) => one.seq)));
    await gateway.notify(["18"], 2);
    await until("they are stored", async () => (await gateway.count("18")) === 5);
    const socket = new WebSocket(gateway.addresses.rest.replace("http", "ws") + "/stream");
    const seen: { event: string; data: any }[] = [];
    socket.on("message", (text: Buffer) => seen.push(JSON.parse(text.toString()) as (typeof seen)[number]));
    await until("it is open", () => socket.readyState === 1);
    socket.send(JSON.stringify({ event: "authenticate", data: { token: gateway.token("18") } }));
    await until("it is connected", () => seen.some(({ event }) => event === "connected"));
    socket.send(JSON.stringify({ event: "notification:sync", data: { after: seq } }));
    const { data } = await until("it is synced", () => seen.find(({ event }) => event === "notification:synced"));
    expect(data).toMatchObject({ count: 2, epoch: first["epoch"], more: false });
    socket.close();
  });

  test.skipIf(!executable)("its client, in a browser: shows everything once and in order, through cuts and a restart, sealed", async () => {
    const me = "user-of-the-guide";
    const server: Server = createServer((request, response) => {
      const { pathname } = new URL(request.url ?? "/", "http://localhost");
      if (pathname === "/my-token") return void response.end(gateway.token(me));
      response.setHeader("content-type", pathname === "/watch.js" ? "text/javascript" : "text/html");
      response.end(pathname === "/watch.js" ? source : page);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const browser = await chromium.launch({ executablePath: executable, args: ["--no-sandbox"] });
    try {
      await gateway.notify([me], 2);
      await until("they are stored", async () => (await gateway.count(me)) === 2);
      const tab = await browser.newPage();
      const events: string[] = [];
      tab.on("websocket", (socket) => socket.on("framereceived", ({ payload }) => events.push((JSON.parse(String(payload)) as { event: string }).event)));
      const address = `http://127.0.0.1:${(server.address() as { port: number }).port}`;
      await tab.goto(`${address}/?url=${encodeURIComponent(`ws://127.0.0.1:${gateway.proxy.port}/stream`)}`);
      const titles = (): Promise<string[]> => tab.evaluate(() => (globalThis as any).titles ?? []);
      const shows = (count: number): Promise<unknown> => until(`it shows ${count}`, async () => (await titles()).length >= count);
      await shows(2);
      await gateway.notify([me], 2);
      await shows(4);
      gateway.proxy.cut("refused");
      await gateway.notify([me], 300);
      await until("they are stored", async () => (await gateway.count(me)) === 304);
      gateway.proxy.mode = "open";
      await shows(304);
      await gateway.end("SIGTERM");
      await gateway.run();
      await gateway.notify([me]);
      await shows(305);
      await pause(500);
      const stored = (await gateway.inbox(me)).items.map(({ title }) => title).reverse();
      expect(await titles()).toEqual(stored);
      expect(new Set(events)).toEqual(new Set(["connected", "encrypted"]));
    } finally {
      await browser.close();
      server.close();
    }
  });
});
