// `npm run chaos -w client -- --minutes 10`: the chaos run for as long as one likes, with 50 clients in Node and 3 pages of a Chromium.
//
// It needs SIGNAL_TEST_GATEWAY (the binary), SIGNAL_TEST_KAFKA (host:port), SIGNAL_TEST_POSTGRES (a URL whose user may create databases), SIGNAL_TEST_REDIS (a URL), and psql.

import { spawnSync } from "node:child_process";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  options: { minutes: { type: "string", default: "10" }, clients: { type: "string", default: "50" }, tabs: { type: "string", default: "3" }, seed: { type: "string" } },
});
const environment = {
  ...process.env,
  SIGNAL_CHAOS_SECONDS: String(Number(values.minutes) * 60),
  SIGNAL_CHAOS_CLIENTS: values.clients,
  SIGNAL_CHAOS_TABS: values.tabs,
  ...(values.seed && { SIGNAL_CHAOS_SEED: values.seed }),
};
const run = spawnSync("npx", ["--no-install", "vitest", "run", "--project", "conformance", "test/conformance/chaos.test.ts"], { env: environment, stdio: "inherit" });
process.exitCode = run.status ?? 1;
