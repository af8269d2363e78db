import { readFile } from "node:fs/promises";
import react from "@vitejs/plugin-react";
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
  plugins: [react(), token],
  define: { SIGNAL_URL: JSON.stringify(process.env["SIGNAL_URL"] ?? "http://127.0.0.1:8080") },
});
