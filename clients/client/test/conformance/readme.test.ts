// The first example of the README runs as it stands, but for the address and the folder.

import { spawn } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { Gateway, binary, until } from "./gateway.js";

const file = (name: string): string => fileURLToPath(new URL(`../../${name}`, import.meta.url));

test.skipIf(!binary)("the first example of the README prints what comes", async () => {
  const example = /```js\n(.*?)```/s.exec(readFileSync(file("README.md"), "utf8"))?.[1];
  expect(example).toContain("createClient");
  const gateway = await Gateway.start();
  // In the package, where its own name and ws are found.
  const script = file("dist/readme-example.mjs");
  try {
    writeFileSync(script, example!.replace("http://127.0.0.1:8080", gateway.addresses.rest).replace(".signal-dev", gateway.folder));
    const child = spawn(process.execPath, [script]);
    let printed = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (bytes: Buffer) => (printed += bytes.toString()));
    try {
      await until("it shows the empty inbox", () => printed.includes("0 unread; the newest: none") || (child.exitCode !== null && printed));
      await gateway.notify(["17"]);
      await until("it shows the new one", () => printed.includes("1 unread; the newest: number 0"), 10_000);
    } catch (error) {
      throw new Error(`${String(error)}\n${printed}`);
    } finally {
      child.kill();
    }
  } finally {
    rmSync(script, { force: true });
    await gateway.close();
  }
});
