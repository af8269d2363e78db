// The application's server: the page, the packages, and a token of who is signed in.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";

const url = process.env.SIGNAL_URL ?? "http://127.0.0.1:8080";
const tokenFile = process.env.SIGNAL_TOKEN_FILE ?? new URL("../../../.signal-dev/user-17.token", import.meta.url);
const packages = { client: import.meta.resolve("@signal/client"), inbox: import.meta.resolve("@signal/inbox") };

const server = createServer(async ({ url: path }, answer) => {
  const send = (type, body) => answer.setHeader("content-type", type).end(body);
  try {
    const module = /^\/(client|inbox)\/([\w/-]+\.js)$/.exec(path);
    if (module) send("text/javascript", await readFile(new URL(module[2], packages[module[1]])));
    else if (path === "/config") send("application/json", JSON.stringify({ url }));
    else if (path === "/token") send("text/plain", (await readFile(tokenFile, "utf8")).trim());
    else send("text/html; charset=utf-8", await readFile(new URL("index.html", import.meta.url)));
  } catch (error) {
    answer.writeHead(500).end(String(error));
  }
});
server.listen(Number(process.env.PORT ?? 5173), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));
