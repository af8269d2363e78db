#!/usr/bin/env node
// `npx @signal/client soak URL --tokens FILE`: many clients at once, for as long as one likes. It changes nothing: it connects, watches, and at
// the end compares what each client shows with what REST has.

import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { createClient, fromWs } from "../dist/index.js";

const HELP = `Many clients at once against a gateway.

Usage: signal-client soak URL --tokens FILE [--clients N] [--seconds N] [--encryption off|optional|required]

  --tokens FILE   one token a line; clients take them in turn. The file is read again before every connect. A gateway allows a user
                  20 connections by default
  --clients N     how many (default 200)
  --seconds N     for how long (default 60)
  --encryption    default optional

Each second it prints how many are online; at the end a report as JSON. The exit code is 1 where a client shows something else than REST has.
Node before 22 needs the package ws beside this one.
`;

async function socketMaker() {
  if (globalThis.WebSocket) return undefined;
  return fromWs((await import("ws")).default);
}

/** Everything in an inbox, as REST has it, and as the client shows it. */
async function compare(client, base, token) {
  const { inbox } = client;
  const items = [];
  let unreadCount = 0;
  for (let cursor = ""; cursor !== null; ) {
    const answer = await fetch(`${base}/notifications?limit=100${cursor && `&cursor=${cursor}`}`, { headers: { authorization: `Bearer ${token}` } });
    if (!answer.ok) throw new Error(`REST answered ${answer.status}`);
    const page = await answer.json();
    items.push(...page.data);
    ({ unreadCount } = page);
    cursor = page.next;
  }
  while (inbox.getSnapshot().hasMore) await inbox.loadMore();
  const shown = inbox.getSnapshot();
  return shown.status === "ready" && shown.unreadCount === unreadCount && JSON.stringify(shown.items) === JSON.stringify(items);
}

async function isEqual(client, base, token) {
  for (let attempt = 0; attempt < 20; attempt++) {
    if (await compare(client, base, token).catch(() => false)) return true;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  return false;
}

function percentile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? null;
}

async function soak(url, { tokens: file, clients: count, seconds, encryption }) {
  const readTokens = async () => (await readFile(file, "utf8")).split("\n").filter(Boolean);
  const tokenOf = async (number) => {
    const tokens = await readTokens();
    return tokens[number % tokens.length] ?? null;
  };
  const socket = await socketMaker();
  const report = { clients: count, seconds, connects: 0, lost: 0, connectMs: {}, events: 0, errors: {}, different: 0 };
  const connectMs = [];
  const clients = Array.from({ length: count }, (_, number) => {
    const client = createClient({ url, token: () => tokenOf(number), encryption, ...(socket && { socket }) });
    let status = "connecting";
    let since = performance.now();
    client.connection.subscribe(() => {
      const { status: now } = client.connection.getSnapshot();
      if (now === status) return;
      if (now === "online") {
        report.connects++;
        connectMs.push(Math.round(performance.now() - since));
      } else if (status === "online") {
        report.lost++;
        since = performance.now();
      }
      status = now;
    });
    client.on("notification:created", () => report.events++);
    client.onError(({ code }) => (report.errors[code] = (report.errors[code] ?? 0) + 1));
    return client;
  });
  const online = () => clients.filter((client) => client.connection.getSnapshot().status === "online").length;
  for (let second = 1; second <= seconds; second++) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    console.error(`${second} s: ${online()} of ${count} online, ${report.events} events, ${report.lost} lost`);
  }
  const { origin } = new URL(url);
  const base = origin.replace(/^ws/, "http");
  // A few at a time: it is no test of REST.
  const waiting = clients.entries();
  await Promise.all(
    Array.from({ length: 8 }, async () => {
      for (const [number, client] of waiting) if (!(await isEqual(client, base, await tokenOf(number)))) report.different++;
    }),
  );
  report.connectMs = { p50: percentile(connectMs, 0.5), p99: percentile(connectMs, 0.99), max: percentile(connectMs, 1) };
  // Before they are closed, which is no loss.
  console.log(JSON.stringify(report, null, 2));
  for (const client of clients) client.close();
  return report.different === 0 ? 0 : 1;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { tokens: { type: "string" }, clients: { type: "string", default: "200" }, seconds: { type: "string", default: "60" }, encryption: { type: "string", default: "optional" }, help: { type: "boolean", short: "h" } },
});
const [command, url] = positionals;
const [clients, seconds] = [Number(values.clients), Number(values.seconds)];
if (values.help || command !== "soak" || !url || !values.tokens || !(clients > 0) || !(seconds > 0)) {
  console.error(HELP);
  process.exitCode = values.help ? 0 : 2;
} else {
  process.exitCode = await soak(url, { ...values, clients, seconds });
}
