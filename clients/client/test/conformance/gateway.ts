// A real gateway in dev mode, the network in front of it, and its issuer's key: what the tests break.
//
// SIGNAL_TEST_GATEWAY names the binary. Without it the tests are skipped by name.

import { type ChildProcess, spawn } from "node:child_process";
import { createPrivateKey, randomUUID, sign } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { type Server, type Socket, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Kafka, type Producer, logLevel } from "kafkajs";
import WebSocket from "ws";
import { type Client, type ClientOptions, type Notification, createClient, fromWs } from "../../src/index.js";
import type { NotificationPage } from "../../src/wire.js";

export const binary = process.env["SIGNAL_TEST_GATEWAY"] ?? "";

export async function until<T>(what: string, find: () => T | Promise<T>, ms = 30_000): Promise<NonNullable<T>> {
  const end = Date.now() + ms;
  for (;;) {
    const found = await find();
    if (found) return found;
    if (Date.now() > end) throw new Error(`not within ${ms} ms: ${what}`);
    await pause(20);
  }
}

export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

interface Addresses {
  readonly rest: string;
  readonly admin: string;
  readonly kafka: string;
  readonly topic: string;
}

/** Listens on a port of its own and passes bytes to the gateway, until it is told to break something. */
export class Proxy {
  port = 0;
  /** `open` passes, `refused` closes whoever comes, `silent` takes bytes and passes none, as a network does that lost one side. */
  mode: "open" | "refused" | "silent" = "open";
  #sockets = new Set<Socket>();
  #server!: Server;

  constructor(readonly target: () => URL) {}

  async listen(): Promise<void> {
    this.#server = createServer((near) => {
      if (this.mode === "refused") {
        near.destroy();
        return;
      }
      const { hostname, port } = this.target();
      const far = connect(Number(port), hostname);
      for (const [from, to] of [[near, far], [far, near]] as const) {
        this.#sockets.add(from);
        from.on("data", (bytes) => this.mode !== "silent" && to.write(bytes));
        from.on("error", () => {});
        from.on("close", () => {
          this.#sockets.delete(from);
          if (this.mode !== "silent") to.destroy();
        });
      }
    });
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.port = (this.#server.address() as { port: number }).port;
  }

  cut(mode: Proxy["mode"] = "open"): void {
    this.mode = mode;
    for (const socket of this.#sockets) socket.destroy();
  }

  close(): void {
    this.cut("refused");
    this.#server.close();
  }
}

export class Gateway {
  readonly folder = mkdtempSync(join(tmpdir(), "signal-client-"));
  readonly proxy = new Proxy(() => new URL(this.addresses.rest));
  addresses!: Addresses;
  #process: ChildProcess | undefined;
  #producer: Producer | undefined;
  #ports = ["0", "0", "0", "0"];
  #log = "";

  constructor(readonly environment: Record<string, string> = {}) {}

  static async start(environment: Record<string, string> = {}): Promise<Gateway> {
    const gateway = new Gateway(environment);
    await gateway.run();
    await gateway.proxy.listen();
    return gateway;
  }

  /** Starts it, on the ports that it had. */
  async run(): Promise<void> {
    const [publicPort, admin, kafka, issuer] = this.#ports as [string, string, string, string];
    const args = ["dev", "--data-dir", this.folder, "--public", `127.0.0.1:${publicPort}`, "--admin", `127.0.0.1:${admin}`, "--kafka-port", kafka, "--issuer-port", issuer];
    const child = spawn(binary, args, { env: { ...process.env, ...this.environment }, stdio: ["ignore", "pipe", "pipe"] });
    this.#process = child;
    this.#log = "";
    const take = (bytes: Buffer): void => {
      this.#log += bytes.toString();
    };
    child.stdout.on("data", take);
    child.stderr.on("data", take);
    await until("the gateway is ready", () => {
      if (child.exitCode !== null) throw new Error(`the gateway ended:\n${this.#log}`);
      return this.#log.includes("Signal is ready");
    });
    this.addresses = JSON.parse(readFileSync(join(this.folder, "addresses.json"), "utf8")) as Addresses;
    const { rest, admin: adminAt, kafka: kafkaAt } = this.addresses;
    const certs = (this.addresses as unknown as { certs: string }).certs;
    this.#ports = [new URL(rest).port, new URL(adminAt).port, kafkaAt.split(":")[1]!, new URL(certs).port];
    await until("it is ready", async () => (await fetch(`${adminAt}/readyz`)).ok);
  }

  /** Ends it: at once, or after a drain. */
  async end(signal: "SIGKILL" | "SIGTERM"): Promise<void> {
    const child = this.#process;
    this.#process = undefined;
    await this.#producer?.disconnect().catch(() => {});
    this.#producer = undefined;
    if (!child || child.exitCode !== null) return;
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    await ended;
  }

  async close(): Promise<void> {
    await this.end("SIGKILL");
    this.proxy.close();
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** Adds to the live settings; the gateway reads them within two seconds. */
  set(toml: string): void {
    const file = join(this.folder, "live.toml");
    writeFileSync(file, `${readFileSync(file, "utf8")}\n${toml}\n`);
  }

  token(user: string, seconds = 3_600): string {
    const base64 = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString("base64url");
    const example = readFileSync(join(this.folder, "user-17.token"), "utf8").split(".");
    const [header, claims] = example.slice(0, 2).map((part) => JSON.parse(Buffer.from(part, "base64url").toString()) as Record<string, unknown>);
    const now = Math.floor(Date.now() / 1000);
    const text = `${base64(header)}.${base64({ ...claims, sub: user, jti: randomUUID(), iat: now, exp: now + seconds })}`;
    const key = createPrivateKey({ key: readFileSync(join(this.folder, "issuer-key.pk8")), format: "der", type: "pkcs8" });
    return `${text}.${sign("sha256", Buffer.from(text), { key, dsaEncoding: "ieee-p1363" }).toString("base64url")}`;
  }

  /** Notifications for these users, one for each. */
  async notify(users: readonly string[], count = 1): Promise<void> {
    this.#producer ??= await this.#produce();
    const messages = Array.from({ length: count }, (_, n) => ({
      key: "42",
      value: JSON.stringify({ type: "PAYMENT_SUCCESS", recipientType: "users", recipientIds: users, title: `number ${n}`, content: "text", data: {} }),
    }));
    for (let at = 0; at < count; at += 200) await this.#producer.send({ topic: this.addresses.topic, messages: messages.slice(at, at + 200) });
  }

  async #produce(): Promise<Producer> {
    const kafka = new Kafka({ brokers: [this.addresses.kafka], logLevel: logLevel.NOTHING, retry: { retries: 2 } });
    const producer = kafka.producer();
    await producer.connect();
    return producer;
  }

  async rest(user: string, method: string, path: string, body?: unknown): Promise<Response> {
    const headers = { authorization: `Bearer ${this.token(user)}`, "content-type": "application/json" };
    return fetch(this.addresses.rest + path, { method, headers, ...(body !== undefined && { body: JSON.stringify(body) }) });
  }

  async admin(method: string, path: string, body?: unknown): Promise<Response> {
    const token = readFileSync(join(this.folder, "admin-listener.token"), "utf8").trim();
    const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
    return fetch(this.addresses.admin + path, { method, headers, ...(body !== undefined && { body: JSON.stringify(body) }) });
  }

  inbox(user: string): Promise<StoredInbox> {
    return wholeInbox((path) => this.rest(user, "GET", path));
  }

  /** How many notifications this user has. */
  async count(user: string): Promise<number> {
    return (await this.inbox(user)).items.length;
  }

  client(user: string, options: Partial<ClientOptions> = {}): Client {
    return createClient({
      url: `ws://127.0.0.1:${this.proxy.port}`,
      // What the client asks of REST goes through the same network.
      token: () => this.token(user),
      encryption: "required",
      socket: fromWs(WebSocket),
      backoff: { firstMs: 300, maxMs: 1_000, stableMs: 1_000 },
      ...options,
    });
  }
}

export interface StoredInbox {
  readonly items: Notification[];
  readonly unreadCount: number;
}

/** The whole inbox, as REST has it. */
export async function wholeInbox(get: (path: string) => Promise<Response>): Promise<StoredInbox> {
  const items: Notification[] = [];
  for (let cursor = ""; ; ) {
    const answer = await get(`/notifications?limit=100${cursor && `&cursor=${cursor}`}`);
    if (!answer.ok) throw new Error(`REST answered ${answer.status}: ${await answer.text()}`);
    const page = (await answer.json()) as NotificationPage;
    items.push(...page.data);
    if (page.next === null) return { items, unreadCount: page.unreadCount };
    cursor = page.next;
  }
}

/** Waits until the client shows exactly what the database has, to the end of the list. */
export async function equals(gateway: Pick<Gateway, "inbox">, client: Client, user: string, ms = 30_000): Promise<void> {
  const { inbox } = client;
  let last = "";
  try {
    await until(
      "the client shows what the database has",
      async () => {
        const { items, unreadCount } = await gateway.inbox(user);
        while (inbox.getSnapshot().hasMore) await inbox.loadMore();
        const shown = inbox.getSnapshot();
        last = `${shown.status}: ${shown.unreadCount} unread of ${shown.items.length}, the database has ${unreadCount} of ${items.length}`;
        return shown.unreadCount === unreadCount && JSON.stringify(shown.items) === JSON.stringify(items);
      },
      ms,
    );
  } catch (error) {
    throw new Error(`${String(error)}; ${last}; ${JSON.stringify(client.connection.getSnapshot())}`);
  }
}

export async function online(client: Client): Promise<string> {
  return until("the client is online", () => client.connection.getSnapshot().clientId);
}
