// Time and chance, as arguments: tests hand in a clock of their own.

/** Reads time, waits, and draws random numbers. */
export interface Clock {
  /** Milliseconds since 1970. It never steps back. */
  now(): number;
  /** A number from 0 up to, not including, 1. */
  random(): number;
  /** Calls `run` once after `ms` milliseconds. Returns what takes that back. */
  after(ms: number, run: () => void): () => void;
}

export const systemClock: Clock = {
  // Somebody sets the machine's clock; this one goes on as it went.
  now: () => performance.timeOrigin + performance.now(),
  random: () => Math.random(),
  after(ms, run) {
    const timer = setTimeout(run, ms);
    return () => clearTimeout(timer);
  },
};

/** One timer that can be set again. */
export class Timer {
  #cancel: (() => void) | undefined;

  constructor(readonly clock: Clock) {}

  get isSet(): boolean {
    return this.#cancel !== undefined;
  }

  set(ms: number, run: () => void): void {
    this.clear();
    this.#cancel = this.clock.after(ms, () => {
      this.#cancel = undefined;
      run();
    });
  }

  clear(): void {
    this.#cancel?.();
    this.#cancel = undefined;
  }
}
