// Clauses are those of docs/protocol.md.

import { expect, test } from "vitest";
import type { Ended } from "../../src/close.js";
import type { SignalError } from "../../src/errors.js";
import { type Cipher, KeyPair } from "../../src/seal.js";
import { type Encryption, Session, type TracedFrame, checkLength } from "../../src/session.js";
import { FakeClock, FakeSocket, settle } from "./fakes.js";

class Bench {
  socket!: FakeSocket;
  readonly events: string[] = [];
  readonly problems: SignalError[] = [];
  encrypted: boolean | undefined;
  ended: Ended | undefined;
  cipher!: Cipher;
  readonly session: Session;

  constructor(encryption: Encryption, trace?: (frame: TracedFrame) => void) {
    const socket = (url: string): FakeSocket => (this.socket = new FakeSocket(url));
    this.session = new Session(
      { url: "ws://gateway/stream", token: "t", encryption, socket, clock: new FakeClock(), connectTimeoutMs: 20_000, parse: JSON.parse as (text: string) => unknown, trace },
      {
        connected: (_, encrypted) => {
          this.encrypted = encrypted;
          this.events.push("connected");
        },
        event: ({ event }) => this.events.push(event),
        problem: (error) => this.problems.push(error),
        ended: (ended) => (this.ended = ended),
      },
    );
  }

  async open(): Promise<this> {
    void this.session.open();
    await until(() => this.socket !== undefined);
    this.socket.open();
    return this;
  }

  /** The gateway's half of the handshake. */
  async agree(): Promise<this> {
    await this.open();
    const keys = await KeyPair.generate();
    const salt = Buffer.alloc(32, 3).toString("base64");
    this.cipher = await keys.agree(this.socket.sent[0]!.data.clientPublicKey as string, salt);
    this.socket.push("connected", { id: "c", userId: "17", time: "", serverPublicKey: keys.publicKey, salt });
    return this;
  }

  async seal(event: string, data?: unknown): Promise<string> {
    return JSON.stringify({ event: "encrypted", data: await this.cipher.seal(JSON.stringify({ event, data })) });
  }
}

async function until(isSo: () => boolean): Promise<void> {
  for (const end = Date.now() + 10_000; !isSo() && Date.now() < end; ) await settle(1);
}

test("sealed messages are delivered in the order in which they came, however long each takes to open (6.5)", async () => {
  const bench = await new Bench("required").agree();
  const names = Array.from({ length: 40 }, (_, n) => `event-${n}`);
  // Those in front are much longer.
  const frames = await Promise.all(names.map((name, n) => bench.seal(name, "x".repeat(n % 2 ? 10 : 90_000))));
  for (const frame of frames) bench.socket.pushText(frame);
  bench.socket.end(1001, "Server shutting down");
  await until(() => bench.ended !== undefined);
  expect(bench.events).toEqual(["connected", ...names]);
  expect(bench.ended).toMatchObject({ code: 1001, reason: "Server shutting down" });
});

test("an event that is not sealed on an encrypted connection is dropped: it is not the gateway's (6.5)", async () => {
  const bench = await new Bench("optional").agree();
  bench.socket.push("notification:created", {});
  bench.socket.pushText(await bench.seal("real"));
  await until(() => bench.events.includes("real"));
  expect(bench.events).toEqual(["connected", "real"]);
  expect(bench.problems).toMatchObject([{ code: "encryption" }]);
});

test("a sealed message that does not open ends the connection, so that a sync brings what it was", async () => {
  const bench = await new Bench("required").agree();
  bench.socket.push("encrypted", { iv: "AAAAAAAAAAAAAAAA", ct: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==" });
  await until(() => bench.ended !== undefined);
  expect(bench.ended).toMatchObject({ code: 1006, error: { code: "encryption" } });
});

test("what is sent on an encrypted connection is sealed, in its order (6.6)", async () => {
  const bench = await new Bench("required").agree();
  for (let n = 0; n < 10; n++) bench.session.send({ event: `e${n}`, data: "x".repeat(1000 * (10 - n)) });
  await until(() => bench.socket.sent.length === 11);
  const opened = await Promise.all(bench.socket.sent.slice(1).map(({ event, data }) => (event === "encrypted" ? bench.cipher.open(data as never) : "clear")));
  expect(opened.map((text) => (JSON.parse(text) as { event: string }).event)).toEqual(Array.from({ length: 10 }, (_, n) => `e${n}`));
});

test("where encryption is required, a gateway that does not agree is left; where it is optional, the connection is in the clear (6.7)", async () => {
  for (const [encryption, expected] of [["required", undefined], ["optional", false], ["off", false]] as const) {
    const bench = await new Bench(encryption).open();
    bench.socket.push("connected", { id: "c", userId: "17", time: "" });
    expect([encryption, bench.encrypted]).toEqual([encryption, expected]);
    expect(bench.ended?.error?.code).toBe(encryption === "required" ? "encryption" : undefined);
    expect("clientPublicKey" in (bench.socket.sent[0]!.data as object)).toBe(encryption !== "off");
  }
});

test("what is no envelope is reported and changes nothing", async () => {
  const bench = await new Bench("off").open();
  for (const text of ["{", "[]", "null", '{"event":7}', '"text"']) bench.socket.pushText(text);
  bench.socket.push("real");
  expect(bench.events).toEqual(["real"]);
  expect(bench.problems.length).toBe(5);
});

test("a message that the gateway would close the connection for is refused before it is sent (1.4)", () => {
  checkLength({ event: "e", data: "x".repeat(90_000) });
  expect(() => checkLength({ event: "e", data: "đ".repeat(60_000) })).toThrow("too long");
});

test("each message is traced in its order, as it travels and as it reads", async () => {
  const frames: TracedFrame[] = [];
  const bench = await new Bench("required", (frame) => frames.push(frame)).agree();
  await until(() => bench.events.length === 1);
  const sealed = await bench.seal("hi", { n: 1 });
  bench.socket.pushText(sealed);
  bench.session.send({ event: "mine", data: 2 });
  await until(() => frames.length === 4);
  expect(frames.map(({ direction, clear }) => [direction, (JSON.parse(clear) as { event: string }).event])).toEqual([
    ["out", "authenticate"],
    ["in", "connected"],
    ...(frames[2]!.direction === "in" ? [["in", "hi"], ["out", "mine"]] : [["out", "mine"], ["in", "hi"]]),
  ]);
  expect(frames[0]!.wire).toBe(frames[0]!.clear);
  const received = frames.find(({ clear }) => clear.includes('"hi"'))!;
  expect(received).toEqual({ direction: "in", wire: sealed, clear: '{"event":"hi","data":{"n":1}}' });
  const sent = frames.find(({ clear }) => clear.includes('"mine"'))!;
  expect(await bench.cipher.open((JSON.parse(sent.wire) as { data: { iv: string; ct: string } }).data)).toBe(sent.clear);
});
