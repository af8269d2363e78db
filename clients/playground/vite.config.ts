// Builds the page into the gateway, which embeds it. The same sources give the same bytes: no hashes, no dates, no paths.
// The packages are taken from their sources, so that a change of them is a change of the page.

import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const file = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig({
  root: file("src"),
  base: "/",
  logLevel: "warn",
  resolve: { alias: { "@signal/client": file("../client/src/index.ts"), "@signal/inbox/element": file("../inbox/src/element.ts") } },
  build: {
    outDir: process.env["PLAYGROUND_OUT"] ?? file("../../gateway/src/dev/playground/page"),
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    cssCodeSplit: false,
    assetsInlineLimit: 0,
    rollupOptions: { output: { entryFileNames: "playground.js", assetFileNames: "playground.[ext]", codeSplitting: false } },
  },
  test: { root: file("."), include: ["test/**/*.test.ts"], testTimeout: 60_000, hookTimeout: 30_000, fileParallelism: false },
});
