// Prints each notification of user 17 as a line of JSON, once, and marks it as read: also those that came while it did not run.

import { readFile } from "node:fs/promises";
import { createClient, fromWs } from "@signal/client";
import WebSocket from "ws";

const tokenFile = process.env.SIGNAL_TOKEN_FILE ?? new URL("../../../.signal-dev/user-17.token", import.meta.url);

const client = createClient({
  url: process.env.SIGNAL_URL ?? "http://127.0.0.1:8080",
  token: async () => (await readFile(tokenFile, "utf8")).trim(),
  // Only Node before 22 needs the package ws.
  socket: fromWs(WebSocket),
});
client.onError(({ code, message, advice }) => console.error(`${code}: ${message}. ${advice}`));

// What is printed becomes read, so the next start begins behind it.
const printed = new Set();
client.inbox.subscribe(async () => {
  const { items, unreadCount, hasMore } = client.inbox.getSnapshot();
  const fresh = items.filter(({ id, isRead }) => !isRead && !printed.has(id)).reverse();
  for (const { id, type, title, createdAt } of fresh) {
    printed.add(id);
    console.log(JSON.stringify({ id, type, title, createdAt }));
  }
  try {
    if (fresh.length > 0) await client.inbox.read(fresh.map(({ id }) => id));
    else if (unreadCount > 0 && hasMore) await client.inbox.loadMore();
  } catch (error) {
    console.error(`not marked: ${error.message}`);
  }
});

for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => client.close());
