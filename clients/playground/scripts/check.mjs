// Fails where the page that the gateway embeds is not what the sources give: builds it twice elsewhere, and compares.

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const embedded = fileURLToPath(new URL("../../../gateway/src/dev/playground/page", import.meta.url));
const filesOf = (folder) => new Map(readdirSync(folder).sort().map((name) => [name, readFileSync(join(folder, name), "utf8")]));
const known = filesOf(embedded);
let isSame = true;
for (const attempt of ["first", "second"]) {
  const folder = mkdtempSync(join(tmpdir(), "signal-playground-"));
  try {
    const built = spawnSync("npx", ["--no-install", "vite", "build"], { env: { ...process.env, PLAYGROUND_OUT: folder }, stdio: "inherit" });
    if (built.status !== 0) process.exit(built.status ?? 1);
    const files = filesOf(folder);
    for (const name of new Set([...known.keys(), ...files.keys()])) {
      if (files.get(name) === known.get(name)) continue;
      isSame = false;
      console.error(`the ${attempt} build gives another ${name} than the gateway embeds: run \`npm run build -w playground\` and commit`);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
process.exitCode = isSame ? 0 : 1;
