// The client in Bun, with Bun's own WebSocket and WebCrypto. Bun comes with the packages; SIGNAL_TEST_BUN names another one.

import { spawn } from "node:child_process";
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { test } from "vitest";
import { Gateway, binary, until } from "./gateway.js";

const file = (name: string): string => fileURLToPath(new URL(`../../${name}`, import.meta.url));
const bun = process.env["SIGNAL_TEST_BUN"] ?? ["node_modules/.bin/bun", "../node_modules/.bin/bun"].map(file).find(existsSync) ?? "";
if (binary && !bun) console.log("skipped: clients: bun: it is not installed");

test.skipIf(!binary || !bun)("Bun connects, seals, shows what comes, and comes back after a cut", async () => {
  const gateway = await Gateway.start();
  const script = file("dist/bun-example.mjs");
  writeFileSync(
    script,
    `import { createClient } from "./index.js";
if (!process.versions.bun) throw new Error("this is not Bun");
const client = createClient({ url: ${JSON.stringify(`ws://127.0.0.1:${gateway.proxy.port}`)}, token: () => ${JSON.stringify(gateway.token("17"))}, encryption: "required", backoff: { firstMs: 300, maxMs: 1000 } });
client.connection.subscribe(() => console.log(JSON.stringify(client.connection.getSnapshot())));
client.inbox.subscribe(() => console.log(client.inbox.getSnapshot().items.length + " shown"));
`,
  );
  const child = spawn(bun, [script]);
  let printed = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (bytes: Buffer) => (printed += bytes.toString()));
  const prints = (what: string): Promise<unknown> =>
    until(what, () => printed.includes(what) || (child.exitCode !== null && Promise.reject(new Error(`it ended:\n${printed}`)))).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${printed}`);
    });
  try {
    await prints('"encrypted":true');
    await gateway.notify(["17"], 2);
    await prints("2 shown");
    gateway.proxy.cut();
    await prints('"status":"waiting"');
    await gateway.notify(["17"]);
    await prints("3 shown");
  } finally {
    child.kill();
    rmSync(script, { force: true });
    await gateway.close();
  }
});
