// Clauses are those of docs/protocol.md.

import { describe, expect, test } from "vitest";
import { defaultBackoff } from "../../src/backoff.js";
import type { Clock } from "../../src/clock.js";
import { Connection, type ConnectionOptions, type ConnectionState } from "../../src/connection.js";
import type { SignalError } from "../../src/errors.js";
import { CLOSE_REASONS } from "../../src/generated/events.js";
import type { Envelope } from "../../src/session.js";
import { type TokenSource, Tokens } from "../../src/tokens.js";
import { FakeClock, FakePage, FakeSocket, Sockets, seeded, settle } from "./fakes.js";

class Bench {
  readonly clock = new FakeClock();
  readonly page = new FakePage();
  readonly sockets = new Sockets();
  readonly errors: SignalError[] = [];
  readonly events: Envelope[] = [];
  readonly states: ConnectionState[] = [];
  tokensAsked = 0;
  lost = 0;
  readonly connection: Connection;

  constructor(token?: TokenSource, options: Partial<ConnectionOptions> = {}) {
    const source: TokenSource = async () => {
      this.tokensAsked++;
      return token ? token() : `token-${this.tokensAsked}`;
    };
    this.connection = new Connection(
      {
        url: "ws://gateway/stream",
        encryption: "off",
        socket: this.sockets.make,
        clock: this.clock,
        page: this.page,
        backoff: defaultBackoff,
        connectTimeoutMs: 20_000,
        probeMs: 60_000,
        parse: JSON.parse as (text: string) => unknown,
        ...options,
      },
      new Tokens(source, this.clock),
      {
        changed: (state) => this.states.push(state),
        connected: () => {},
        event: (envelope) => this.events.push(envelope),
        lost: () => void this.lost++,
        error: (error) => this.errors.push(error),
      },
    );
  }

  get state(): ConnectionState {
    return this.connection.state;
  }

  get socket(): FakeSocket {
    return this.sockets.last;
  }

  /** Connects and is authenticated. */
  async online(): Promise<this> {
    if (this.state.status !== "waiting") this.connection.connect();
    await settle();
    this.admit();
    return this;
  }

  admit(): void {
    this.socket.open();
    this.socket.push("connected", { id: "1KbZ0dT9Xa4", userId: "17", time: "2026-11-23T08:00:00.000Z" });
  }

  /** Waits for the next attempt. */
  async next(): Promise<number> {
    const at = this.clock.now();
    const before = this.sockets.all.length;
    for (let guard = 0; this.sockets.all.length === before && guard < 50; guard++) await this.clock.advance(this.clock.nextIn);
    return this.clock.now() - at;
  }

  tokenSent(): string {
    return this.socket.sent.find(({ event }) => event === "authenticate")?.data.token as string;
  }
}

test("a token is asked for before every connect, and sent at once when the socket is open (4.1)", async () => {
  const bench = await new Bench().online();
  expect(bench.tokenSent()).toBe("token-1");
  expect(bench.state).toMatchObject({ status: "online", clientId: "1KbZ0dT9Xa4", userId: "17", encrypted: false, error: null });
  bench.socket.end(1006);
  await bench.next();
  bench.admit();
  expect(bench.tokenSent()).toBe("token-2");
  expect(bench.tokensAsked).toBe(2);
  expect(bench.lost).toBe(1);
});

describe("each close code does what the table of section 7 says", () => {
  const rows: Record<number, { stops?: true; longest?: number; error: string; refusesToken?: true }> = {
    1000: { longest: 3_000, error: "server_closed" },
    1001: { longest: 3_000, error: "server_closed" },
    1002: { stops: true, error: "protocol" },
    1007: { stops: true, error: "protocol" },
    1009: { stops: true, error: "protocol" },
    1011: { longest: 3_000, error: "server_closed" },
    4001: { longest: 3_000, error: "timeout" },
    4002: { longest: 3_000, error: "connection_lost" },
    4003: { longest: 3_000, error: "token_unverified" },
    4004: { stops: true, error: "encryption" },
    4005: { longest: 3_000, error: "token_expired", refusesToken: true },
    4006: { longest: 3_000, error: "revoked", refusesToken: true },
    4007: { stops: true, error: "disconnected" },
    4008: { longest: 3_000, error: "connection_lost" },
    4009: { longest: 1_000, error: "server_closed" },
    4010: { longest: 12_000, error: "limit" },
    // No code of the gateway's: by range.
    1012: { longest: 3_000, error: "server_closed" },
    1013: { longest: 12_000, error: "server_closed" },
    1015: { longest: 3_000, error: "connection_lost" },
    3456: { longest: 3_000, error: "server_closed" },
    4999: { longest: 3_000, error: "server_closed" },
  };
  test("the table has every code that the gateway sends", () => {
    expect(Object.keys(rows)).toEqual(expect.arrayContaining(Object.keys(CLOSE_REASONS)));
  });
  for (const [code, { stops, longest = 0, error, refusesToken }] of Object.entries(rows)) {
    test(`${code}: ${stops ? "stops" : `connects again within ${longest} ms`}`, async () => {
      let token = "the first";
      const bench = await new Bench(() => token).online();
      await bench.clock.advance(60_000);
      bench.socket.end(Number(code));
      expect(bench.errors.at(-1)).toMatchObject({ code: error, closeCode: Number(code) });
      expect(bench.errors.at(-1)!.advice).not.toBe("");
      if (stops) {
        expect(bench.state.status).toBe("closed");
        expect(bench.clock.pending).toBe(0);
        return;
      }
      expect(bench.state.status).toBe("waiting");
      expect(bench.state.retryAt! - bench.clock.now()).toBe(longest / 2);
      if (refusesToken) {
        await bench.clock.advance(longest);
        expect(bench.sockets.all.length, "the token of the connection that ended is not used again").toBe(1);
        token = "another";
        await bench.next();
        bench.admit();
        expect(bench.tokenSent()).toBe("another");
      } else {
        await bench.clock.advance(longest / 2);
        expect(bench.sockets.all.length).toBe(2);
      }
    });
  }
});

test("a token that was refused is never sent again, however often token() gives it (4.4)", async () => {
  let token = "old";
  const bench = new Bench(() => token);
  bench.connection.connect();
  await settle();
  bench.socket.open();
  bench.socket.push("error", { message: "Authentication failed" });
  bench.socket.end(4003, "Authentication failed");
  expect(bench.errors.at(-1)).toMatchObject({ code: "token_refused", serverText: "Authentication failed" });
  await bench.clock.advance(300_000);
  expect(bench.sockets.all.length).toBe(1);
  expect(bench.tokensAsked).toBeGreaterThan(5);
  token = "new";
  await bench.next();
  bench.socket.open();
  expect(bench.tokenSent()).toBe("new");
});

test("a token that could not be verified may be used again (4.5)", async () => {
  const bench = new Bench(() => "the only one");
  bench.connection.connect();
  await settle();
  bench.socket.open();
  bench.socket.push("error", { message: "Authentication error" });
  bench.socket.end(4003);
  expect(bench.errors.at(-1)).toMatchObject({ code: "token_unverified" });
  await bench.next();
  bench.admit();
  expect(bench.state.status).toBe("online");
});

test("where token() gives null nobody is signed in: nothing is tried until connect()", async () => {
  let token: string | null = null;
  const bench = new Bench(() => token);
  bench.connection.connect();
  await bench.clock.advance(600_000);
  expect(bench.state).toMatchObject({ status: "closed", error: { code: "signed_out" } });
  expect(bench.tokensAsked).toBe(1);
  token = "mine";
  await bench.online();
  expect(bench.state.status).toBe("online");
});

test("a token() that fails or does not answer is asked again in growing windows", async () => {
  let mode = "throws";
  const bench = new Bench(() => (mode === "throws" ? Promise.reject(new Error("no network")) : mode === "hangs" ? new Promise(() => {}) : "mine"));
  bench.connection.connect();
  await settle();
  expect(bench.errors.at(-1)).toMatchObject({ code: "token_unavailable", message: "no network" });
  mode = "hangs";
  await bench.clock.advance(60_000);
  expect(bench.errors.at(-1)!.message).toBe("token() did not answer in time");
  mode = "works";
  await bench.next();
  bench.admit();
  expect(bench.state.status).toBe("online");
});

test("at expiring another token is offered, and the one in use is not offered again (4.9, 4.10)", async () => {
  let token = "first";
  const bench = await new Bench(() => token).online();
  bench.socket.push("expiring", { expiresAt: "2026-11-23T09:00:00.000Z", seconds: 60 });
  await bench.clock.advance(20_000);
  expect(bench.socket.names()).not.toContain("refresh");
  expect(bench.errors.at(-1)).toMatchObject({ code: "token_expired" });
  token = "second";
  await bench.clock.advance(10_000);
  expect(bench.socket.sent.at(-1)).toEqual({ event: "refresh", data: { token: "second", type: "Bearer" } });
  bench.socket.push("refreshed", { expiresAt: null });
  const sent = bench.socket.sent.length;
  await bench.clock.advance(50_000);
  expect(bench.socket.sent.length).toBe(sent);
});

test("a refresh that is refused is followed by another token, never by the same", async () => {
  let token = "first";
  const bench = await new Bench(() => token).online();
  token = "of somebody else";
  bench.socket.push("expiring", { expiresAt: "2026-11-23T09:00:00.000Z", seconds: 60 });
  await bench.clock.advance(20_000);
  bench.socket.push("error", { message: "Refresh refused" });
  await bench.clock.advance(20_000);
  token = "mine";
  await bench.clock.advance(10_000);
  const offered = bench.socket.sent.filter(({ event }) => event === "refresh").map(({ data }) => data.token as string);
  expect(offered).toEqual(["of somebody else", "mine"]);
});

test("many clients whose trust is withdrawn at one moment do not ask the issuer at one moment (4.11)", async () => {
  const bench = await new Bench().online();
  bench.socket.push("expiring", { expiresAt: "2026-11-23T09:00:00.000Z", seconds: 60 });
  await bench.clock.advance(8_000);
  expect(bench.tokensAsked).toBe(1);
  await bench.clock.advance(2_000);
  expect(bench.tokensAsked).toBe(2);
});

test("a gateway that says how long to wait is asked after exactly that time (1.3)", async () => {
  const bench = new Bench();
  bench.connection.connect();
  await settle();
  bench.socket.refuse(7_000);
  expect(bench.state.retryAt).toBe(bench.clock.now() + 7_000);
  await bench.clock.advance(6_999);
  expect(bench.sockets.all.length).toBe(1);
  await bench.clock.advance(1);
  expect(bench.sockets.all.length).toBe(2);
});

test("a gateway that does not answer the opening is left after the time of the options", async () => {
  const bench = new Bench();
  bench.connection.connect();
  await settle();
  bench.socket.open();
  await bench.clock.advance(20_000);
  expect(bench.socket.closedWith).toBe(1000);
  expect(bench.state).toMatchObject({ status: "waiting", error: { code: "timeout" } });
});

test("a page that comes back cuts the wait short, but not twice within five seconds", async () => {
  const bench = new Bench();
  bench.connection.connect();
  await settle();
  for (let failures = 0; failures < 6; failures++) {
    bench.socket.refuse();
    await bench.next();
  }
  bench.socket.refuse();
  const attempts = bench.sockets.all.length;
  for (let n = 0; n < 20; n++) bench.page.back();
  await bench.clock.advance(1_000);
  expect(bench.sockets.all.length).toBe(attempts);
  await bench.clock.advance(4_000);
  bench.page.back();
  await bench.clock.advance(1_000);
  expect(bench.sockets.all.length).toBe(attempts + 1);
  expect(bench.tokensAsked, "with a token of its own").toBe(attempts + 1);
});

test("a page that comes back does not open what was closed", async () => {
  const bench = await new Bench().online();
  bench.connection.close();
  bench.page.back();
  await bench.clock.advance(600_000);
  expect([bench.sockets.all.length, bench.page.watchers, bench.clock.pending]).toEqual([1, 0, 0]);
});

test("a hidden page waits in the longest windows, with one timer", async () => {
  const bench = await new Bench().online();
  bench.page.hidden = true;
  bench.socket.end(1006);
  expect(bench.state.retryAt! - bench.clock.now()).toBe(15_000);
  expect(bench.clock.pending).toBe(1);
  await bench.clock.advance(5_000);
  bench.page.back();
  await bench.clock.advance(1_000);
  expect(bench.sockets.all.length).toBe(2);
});

test("a silent gateway is asked whether it is there, and left when it does not answer", async () => {
  const bench = await new Bench().online();
  await bench.clock.advance(60_000);
  expect(bench.socket.sent.at(-1)).toEqual({ event: "authenticate" });
  bench.socket.push("error", { message: "Already authenticated" });
  expect(bench.events, "the answer is nobody else's").toEqual([]);
  await bench.clock.advance(60_000);
  expect(bench.state.status).toBe("online");
  await bench.clock.advance(10_000);
  expect(bench.state).toMatchObject({ status: "waiting", error: { code: "connection_lost" } });
});

test("a page that slept asks at once when it is back, and does not wait for a socket that only looks open", async () => {
  const bench = await new Bench().online();
  bench.page.back();
  expect(bench.socket.names().at(-1)).toBe("authenticate");
  await bench.clock.advance(10_000);
  expect(bench.state.status).toBe("waiting");
});

test("a busy connection is never asked", async () => {
  const bench = await new Bench().online();
  for (let n = 0; n < 20; n++) {
    await bench.clock.advance(30_000);
    bench.socket.push("order:updated", { n });
  }
  expect(bench.socket.names()).toEqual(["authenticate"]);
});

test("close() while a token is being asked for opens nothing", async () => {
  let answer: (token: string) => void = () => {};
  const bench = new Bench(() => new Promise((resolve) => (answer = resolve)));
  bench.connection.connect();
  await settle();
  bench.connection.close();
  answer("late");
  await bench.clock.advance(60_000);
  expect([bench.sockets.all.length, bench.state.status]).toEqual([0, "closed"]);
});

/** A clock for many: timers in slots of 10 ms, one turn of the loop for each. */
class SlotClock implements Clock {
  time = 0;
  readonly random = seeded(7);
  #slots = new Map<number, Set<() => void>>();

  now(): number {
    return this.time;
  }

  after(ms: number, run: () => void): () => void {
    const slot = Math.max(Math.ceil((this.time + ms) / 10), this.time / 10 + 1);
    const runs = this.#slots.get(slot) ?? new Set();
    this.#slots.set(slot, runs.add(run));
    return () => void runs.delete(run);
  }

  async advance(ms: number): Promise<void> {
    for (const until = this.time + ms; this.time < until; ) {
      this.time += 10;
      const runs = this.#slots.get(this.time / 10);
      this.#slots.delete(this.time / 10);
      if (!runs?.size) continue;
      for (const run of runs) run();
      await settle(1);
    }
  }
}

test("10,000 connections whose gateway dies and comes back: no second holds more than 1.5 times its share", { timeout: 60_000 }, async () => {
  const clock = new SlotClock();
  const opened: number[] = [];
  let isUp = true;
  const live = new Set<FakeSocket>();
  const page = new FakePage();
  page.watch = () => () => {};
  const connections = Array.from({ length: 10_000 }, () => {
    const socket = (url: string): FakeSocket => {
      const made = new FakeSocket(url);
      opened.push(clock.now());
      queueMicrotask(() => {
        if (!isUp) return made.end(1006);
        live.add(made);
        made.open();
        made.push("connected", { id: "x", userId: "17", time: "" });
      });
      return made;
    };
    const hooks = { changed() {}, connected() {}, event() {}, lost() {}, error() {} };
    const options = { url: "ws://gateway/", encryption: "off", socket, clock, page, backoff: defaultBackoff, connectTimeoutMs: 20_000, probeMs: Number.POSITIVE_INFINITY, parse: JSON.parse } as const;
    return new Connection(options, new Tokens(() => "token", clock), hooks);
  });
  for (const connection of connections) connection.connect();
  await clock.advance(60_000);
  expect(live.size).toBe(10_000);
  // Killed, and back after 40 s.
  const died = clock.now();
  opened.length = 0;
  isUp = false;
  for (const socket of live) socket.end(1006);
  live.clear();
  await clock.advance(40_000);
  isUp = true;
  await clock.advance(80_000);
  expect(live.size).toBe(10_000);
  const attempts = new Map<number, number>();
  for (const at of opened) {
    const second = Math.floor((at - died) / 1000);
    attempts.set(second, (attempts.get(second) ?? 0) + 1);
  }
  for (const [second, number] of attempts) {
    // 3 s, 6 s, 12 s, 24 s, then 30 s each.
    const window = second < 3 ? 3 : second < 9 ? 6 : second < 21 ? 12 : second < 45 ? 24 : 30;
    expect(number, `second ${second}`).toBeLessThanOrEqual((1.5 * 10_000) / window);
  }
});
