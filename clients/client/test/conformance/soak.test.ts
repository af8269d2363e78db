// `npx @signal/client soak`, as it is published, with 200 clients.

import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { Gateway, binary, pause } from "./gateway.js";

test.skipIf(!binary)("200 clients at once show what the database has after the gateway was killed", async () => {
  const gateway = await Gateway.start();
  try {
    const users = Array.from({ length: 20 }, (_, n) => String(700 + n));
    const tokens = join(gateway.folder, "soak.tokens");
    writeFileSync(tokens, users.map((user) => gateway.token(user)).join("\n"));
    const program = fileURLToPath(new URL("../../bin/signal-client.mjs", import.meta.url));
    const child = spawn(process.execPath, [program, "soak", `ws://127.0.0.1:${gateway.proxy.port}`, "--tokens", tokens, "--seconds", "12"]);
    let [report, log] = ["", ""];
    child.stdout.on("data", (bytes: Buffer) => (report += bytes.toString()));
    child.stderr.on("data", (bytes: Buffer) => (log += bytes.toString()));
    const ended = new Promise<number | null>((resolve) => child.once("exit", resolve));
    await pause(3_000);
    await gateway.notify(users, 5);
    await pause(500);
    await gateway.end("SIGKILL");
    await gateway.run();
    await gateway.notify(users, 5);
    expect(await ended, log).toBe(0);
    const { connects, lost, events, different } = JSON.parse(report) as Record<string, number>;
    expect({ lost, different }).toEqual({ lost: 200, different: 0 });
    expect(connects, log).toBe(400);
    expect(events).toBeGreaterThan(0);
  } finally {
    await gateway.close();
  }
});
