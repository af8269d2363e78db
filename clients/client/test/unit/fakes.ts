// A clock that only moves when it is told to, a socket whose other end is the test, and a page.

import type { Clock } from "../../src/clock.js";
import type { Page } from "../../src/page.js";
import type { WebSocketLike } from "../../src/session.js";

/** Lets everything run that waits for no time. WebCrypto answers on another thread, so one turn of the loop is not enough for it. */
export async function settle(turns = 3): Promise<void> {
  for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** Numbers like random ones, the same in each run. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

interface Due {
  readonly at: number;
  readonly order: number;
  readonly run: () => void;
}

export class FakeClock implements Clock {
  time = 1_800_000_000_000;
  #due = new Map<number, Due>();
  #order = 0;

  constructor(readonly random: () => number = () => 0.5) {}

  now(): number {
    return this.time;
  }

  after(ms: number, run: () => void): () => void {
    const order = ++this.#order;
    this.#due.set(order, { at: this.time + ms, order, run });
    return () => void this.#due.delete(order);
  }

  get pending(): number {
    return this.#due.size;
  }

  /** How long until the next timer. */
  get nextIn(): number {
    return Math.min(...[...this.#due.values()].map(({ at }) => at)) - this.time;
  }

  async advance(ms: number): Promise<void> {
    const until = this.time + ms;
    await settle();
    for (;;) {
      const [next] = [...this.#due.values()].filter(({ at }) => at <= until).sort((a, b) => a.at - b.at || a.order - b.order);
      if (!next) break;
      this.#due.delete(next.order);
      this.time = Math.max(this.time, next.at);
      next.run();
      await settle();
    }
    this.time = until;
    await settle();
  }
}

export interface Sent {
  readonly event: string;
  readonly data?: any;
  readonly id?: string;
}

export class FakeSocket implements WebSocketLike {
  readyState = 0;
  onopen: ((event: unknown) => void) | null = null;
  onmessage: ((event: unknown) => void) | null = null;
  onclose: ((event: unknown) => void) | null = null;
  onerror: ((event: unknown) => void) | null = null;
  readonly sent: Sent[] = [];
  closedWith: number | undefined;

  constructor(readonly url: string) {}

  open(): void {
    this.readyState = 1;
    this.onopen?.({});
  }

  send(data: string): void {
    this.sent.push(JSON.parse(data) as Sent);
  }

  close(code = 1000): void {
    this.readyState = 3;
    this.closedWith ??= code;
  }

  /** The gateway sends an event. */
  push(event: string, data?: unknown, id?: string): void {
    this.onmessage?.({ data: JSON.stringify({ event, data, id }) });
  }

  pushText(data: string): void {
    this.onmessage?.({ data });
  }

  /** The gateway closes. */
  end(code: number, reason = ""): void {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  /** The opening handshake is refused. */
  refuse(retryAfterMs?: number): void {
    this.onerror?.(retryAfterMs === undefined ? {} : { retryAfterMs });
    this.end(1006);
  }

  names(): string[] {
    return this.sent.map(({ event }) => event);
  }
}

/** Every socket that was made. */
export class Sockets {
  readonly all: FakeSocket[] = [];

  readonly make = (url: string): FakeSocket => {
    const socket = new FakeSocket(url);
    this.all.push(socket);
    return socket;
  };

  get last(): FakeSocket {
    const socket = this.all.at(-1);
    if (!socket) throw new Error("no socket was made");
    return socket;
  }
}

export class FakePage implements Page {
  hidden = false;
  #back = new Set<() => void>();

  isHidden(): boolean {
    return this.hidden;
  }

  watch(back: () => void): () => void {
    this.#back.add(back);
    return () => void this.#back.delete(back);
  }

  get watchers(): number {
    return this.#back.size;
  }

  back(): void {
    this.hidden = false;
    for (const back of [...this.#back]) back();
  }
}
