import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";
import { react18 } from "./test/react18.js";

const unit = { include: ["test/unit/**/*.test.ts"], env: { NODE_ENV: "development" } };
// Sources, not what a build left behind.
const at = (name: string): string => fileURLToPath(new URL(`../inbox/src/${name}.ts`, import.meta.url));
const inbox = [{ find: /^@signal\/inbox$/, replacement: at("index") }, { find: /^@signal\/inbox\/element$/, replacement: at("element") }];

export default defineConfig({
  test: {
    projects: [
      { resolve: { alias: inbox }, test: { ...unit, name: "unit" } },
      { resolve: { alias: [...inbox, ...react18] }, test: { ...unit, name: "unit-react-18" } },
      {
        test: {
          name: "pages",
          include: ["test/pages/**/*.test.ts"],
          testTimeout: 60_000,
          hookTimeout: 60_000,
          fileParallelism: false,
        },
      },
    ],
  },
});
