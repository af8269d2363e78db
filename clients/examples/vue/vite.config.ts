import { readFile } from "node:fs/promises";
import vue from "@vitejs/plugin-vue";
import { type Plugin, defineConfig } from "vite";

const tokenFile = process.env["SIGNAL_TOKEN_FILE"] ?? new URL("../../../.signal-dev/user-17.token", import.meta.url);

/** In the place of the application's server: a token of who is signed in. */
const token: Plugin = {
  name: "token",
  configureServer({ middlewares }) {
    middlewares.use("/api/signal-token", async (_, answer) => answer.end((await readFile(tokenFile, "utf8")).trim()));
  },
};

export default defineConfig({
  // Vue leaves the element to the browser.
  plugins: [vue({ template: { compilerOptions: { isCustomElement: (tag) => tag === "signal-inbox" } } }), token],
  define: { SIGNAL_URL: JSON.stringify(process.env["SIGNAL_URL"] ?? "http://127.0.0.1:8080") },
});
