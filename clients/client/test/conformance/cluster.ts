// Several gateways as in production, on real Kafka, PostgreSQL and Redis, each behind a proxy that can lose it, with a balancer in front of the gateways.
//
// SIGNAL_TEST_KAFKA, SIGNAL_TEST_POSTGRES and SIGNAL_TEST_REDIS name the servers; `cargo xtask test` starts them. Each cluster has a database, a topic and a prefix of its own.

import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { type KeyObject, generateKeyPairSync, randomBytes, randomUUID, sign } from "node:crypto";
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Kafka, type Producer, logLevel } from "kafkajs";
import { Proxy, type StoredInbox, binary, pause, until, wholeInbox } from "./gateway.js";

const kafka = process.env["SIGNAL_TEST_KAFKA"] ?? "";
const postgres = process.env["SIGNAL_TEST_POSTGRES"] ?? "";
const redis = process.env["SIGNAL_TEST_REDIS"] ?? "";
/** Why there can be no cluster, or empty. */
export const missing = !binary
  ? "SIGNAL_TEST_GATEWAY is not set"
  : !kafka || !postgres || !redis
    ? "SIGNAL_TEST_KAFKA, SIGNAL_TEST_POSTGRES and SIGNAL_TEST_REDIS are not set"
    : spawnSync("psql", ["--version"]).status !== 0
      ? "psql is not installed"
      : "";

/** A debug build on a busy machine needs its time. */
const READY_MS = 120_000;
/** Who may revoke tokens. */
const ADMIN = "1";
const PLATFORM = fileURLToPath(new URL("../../../../deploy/compose/platform.sql", import.meta.url));

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** One gateway, which can be ended and started again. */
export class Instance {
  #process: ChildProcess | undefined;

  constructor(
    readonly name: string,
    readonly port: number,
    readonly adminPort: number,
    readonly folder: string,
  ) {}

  get isRunning(): boolean {
    return this.#process !== undefined && this.#process.exitCode === null;
  }

  start(): void {
    const child = spawn(binary, ["serve", "--config", join(this.folder, `${this.name}.toml`)], { stdio: ["ignore", "pipe", "pipe"] });
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (bytes: Buffer) => appendFileSync(join(this.folder, `${this.name}.log`), bytes));
    this.#process = child;
  }

  async ready(): Promise<void> {
    let last = "";
    const isReady = async (): Promise<boolean> => {
      if (!this.isRunning) throw new Error("it ended");
      const answer = await fetch(`http://127.0.0.1:${this.adminPort}/readyz?verbose`).catch(() => undefined);
      last = (await answer?.text().catch(() => "")) ?? "no answer";
      return answer?.ok ?? false;
    };
    try {
      await until(`${this.name} is ready`, isReady, READY_MS);
    } catch (error) {
      throw new Error(`${String(error)}; ${last}\n${readFileSync(join(this.folder, `${this.name}.log`), "utf8").slice(-3_000)}`);
    }
  }

  async end(signal: "SIGKILL" | "SIGTERM"): Promise<void> {
    const child = this.#process;
    this.#process = undefined;
    if (!child || child.exitCode !== null) return;
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    await ended;
  }

  async admin(method: string, path: string, body?: unknown): Promise<void> {
    const headers = { authorization: `Bearer ${readFileSync(join(this.folder, "admin.token"), "utf8")}`, "content-type": "application/json" };
    await fetch(`http://127.0.0.1:${this.adminPort}${path}`, { method, headers, ...(body !== undefined && { body: JSON.stringify(body) }) });
  }
}

export class Cluster {
  readonly folder = mkdtempSync(join(tmpdir(), "signal-cluster-"));
  readonly name = `chaos_${randomBytes(5).toString("hex")}`;
  readonly instances: Instance[] = [];
  readonly database = new Proxy(() => new URL(postgres));
  readonly redis = new Proxy(() => new URL(redis));
  /** Clients come through this, each to a gateway that runs. */
  readonly balancer = new Proxy(() => this.#next());
  readonly #keys: KeyObject;
  #producer!: Producer;
  #turn = 0;

  private constructor() {
    const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    this.#keys = privateKey;
    writeFileSync(join(this.folder, "keys.json"), JSON.stringify({ keys: [{ ...publicKey.export({ format: "jwk" }), kid: "chaos", use: "sig", alg: "ES256" }] }));
    writeFileSync(join(this.folder, "admin.token"), randomUUID());
  }

  static async start(count: number): Promise<Cluster> {
    const cluster = new Cluster();
    await Promise.all([cluster.database.listen(), cluster.redis.listen(), cluster.balancer.listen()]);
    cluster.#sql("postgres", "-c", `CREATE DATABASE ${cluster.name}`);
    cluster.#sql(cluster.name, "-f", PLATFORM);
    const client = new Kafka({ brokers: [kafka], logLevel: logLevel.NOTHING });
    const admin = client.admin();
    await admin.connect();
    await admin.createTopics({ topics: [{ topic: cluster.name, numPartitions: 6 }] });
    await admin.disconnect();
    cluster.#producer = client.producer();
    await cluster.#producer.connect();
    for (let number = 1; number <= count; number++) {
      const instance = new Instance(`gateway-${number}`, await freePort(), await freePort(), cluster.folder);
      cluster.#write(instance);
      cluster.instances.push(instance);
      instance.start();
    }
    await Promise.all(cluster.instances.map((instance) => instance.ready()));
    return cluster;
  }

  async close(): Promise<void> {
    await this.#producer?.disconnect().catch(() => {});
    await Promise.all(this.instances.map((instance) => instance.end("SIGKILL")));
    for (const proxy of [this.database, this.redis, this.balancer]) proxy.close();
    this.#sql("postgres", "-c", `DROP DATABASE ${this.name} WITH (FORCE)`);
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** Ends what was broken. */
  async mend(): Promise<void> {
    for (const proxy of [this.database, this.redis, this.balancer]) proxy.mode = "open";
    for (const instance of this.instances) {
      if (!instance.isRunning) instance.start();
      await instance.ready().catch(() => {});
      await instance.admin("DELETE", "/drain");
    }
    await Promise.all(this.instances.map((instance) => instance.ready()));
  }

  token(user: string, seconds: number): string {
    const base64 = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString("base64url");
    const now = Math.floor(Date.now() / 1000);
    const text = `${base64({ alg: "ES256", kid: "chaos", typ: "JWT" })}.${base64({ iss: "chaos", aud: "signal", sub: user, jti: randomUUID(), iat: now, exp: now + seconds })}`;
    return `${text}.${sign("sha256", Buffer.from(text), { key: this.#keys, dsaEncoding: "ieee-p1363" }).toString("base64url")}`;
  }

  /** One record for these people. */
  async notify(users: readonly string[], title: string): Promise<void> {
    const value = JSON.stringify({ type: "CHAOS", recipientType: "users", recipientIds: users, title, content: "text", data: {} });
    await this.#producer.send({ topic: this.name, messages: [{ key: users[0] ?? "", value }] });
  }

  /** Revokes every token that the person has. */
  async revoke(user: string): Promise<void> {
    await this.#rest(ADMIN, "POST", "/socket/websocket/revocations", { userId: user }).catch(() => {});
  }

  /** Asked again where an instance cannot answer: a connection of its pool may be one that a fault has cut. */
  async inbox(user: string): Promise<StoredInbox> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await wholeInbox((path) => this.#rest(user, "GET", path));
      } catch (error) {
        if (attempt === 10) throw error;
        console.log(`clients: chaos: the inbox of ${user} is asked for again: ${String(error)}`);
        await pause(500);
      }
    }
  }

  #rest(user: string, method: string, path: string, body?: unknown): Promise<Response> {
    const headers = { authorization: `Bearer ${this.token(user, 600)}`, "content-type": "application/json" };
    return fetch(`http://127.0.0.1:${this.#next().port}${path}`, { method, headers, ...(body !== undefined && { body: JSON.stringify(body) }) });
  }

  #next(): URL {
    const running = this.instances.filter((instance) => instance.isRunning);
    const { port } = running[this.#turn++ % running.length] ?? this.instances[0]!;
    return new URL(`http://127.0.0.1:${port}`);
  }

  #sql(database: string, ...what: string[]): void {
    const url = new URL(postgres);
    url.pathname = `/${database}`;
    const done = spawnSync("psql", ["-q", "-v", "ON_ERROR_STOP=1", "-d", url.href, ...what], { encoding: "utf8" });
    if (done.status !== 0) throw new Error(`psql: ${done.stderr || String(done.error)}`);
  }

  #write({ name, port, adminPort }: Instance): void {
    const url = new URL(postgres);
    url.host = `127.0.0.1:${this.database.port}`;
    url.pathname = `/${this.name}`;
    const file = (of: string): string => JSON.stringify(join(this.folder, of));
    writeFileSync(
      join(this.folder, `${name}.toml`),
      `live_file = ${file("live.toml")}
server = { public_address = "127.0.0.1:${port}", admin_address = "127.0.0.1:${adminPort}", admin_token_file = ${file("admin.token")}, instance_name = "${name}" }
redis = { mode = "standalone", nodes = ["127.0.0.1:${this.redis.port}"], channel_prefix = "${this.name}:", self_ping_interval_ms = 1000, stalled_after_ms = 3000 }
kafka = { enabled = true, brokers = ["${kafka}"], topics = ["${this.name}"], group_id = "${this.name}", session_timeout_ms = 6000, retry_max_ms = 1000 }
database = { url = "${url.href}", max_connections = 8, acquire_timeout_ms = 2000 }
drain = { endpoint_propagation_ms = 0, window_ms = 500, batch_interval_ms = 50, flush_ms = 1000 }
workers = { shards = 1, control_threads = 1 }
`,
    );
    writeFileSync(
      join(this.folder, "live.toml"),
      `allowed_origins = ["loopback"]
[[jwks.sources]]
name = "chaos"
issuer = "chaos"
keys_file = ${file("keys.json")}
audiences = ["signal"]
algorithms = ["ES256"]
`,
    );
  }
}
