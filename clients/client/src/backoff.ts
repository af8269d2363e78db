// When to try again. The delays are full jitter without the waves that it makes when a whole site comes back.
//
// Each attempt has a window, and the windows follow each other without a gap: 3 s, 6 s, 12 s, ... An attempt is at a uniformly random
// moment of its window. So of clients that lost their server at one moment each second of a window gets the same share, whenever the
// server comes back. Waiting a random time after each failure would give the first second after the return twice its share.

/** Bounds of the delays between attempts, in milliseconds. */
export interface BackoffBounds {
  /** The first window: the longest wait after a connection that worked. Default 3,000. */
  readonly firstMs: number;
  /** The longest window. Default 30,000. */
  readonly maxMs: number;
  /** The shortest wait between two attempts. Default 250. */
  readonly minMs: number;
  /** A connection that lived so long worked: the windows begin with the first one. Default 30,000. */
  readonly stableMs: number;
}

export const defaultBackoff: BackoffBounds = { firstMs: 3_000, maxMs: 30_000, minMs: 250, stableMs: 30_000 };

export class Backoff {
  #failures = 0;
  #windowEnd = 0;

  constructor(readonly bounds: BackoffBounds) {}

  /** How many attempts failed in succession. */
  get failures(): number {
    return this.#failures;
  }

  /** A connection worked. */
  reset(): void {
    this.#failures = 0;
    this.#windowEnd = 0;
  }

  /** The time of the next attempt. `atLeast` is the number of failures that this one counts as, so that some begin with longer windows. */
  next(now: number, random: number, atLeast = 0): number {
    const { firstMs, maxMs, minMs } = this.bounds;
    const power = Math.max(this.#failures, atLeast);
    // A window ends at most so far ahead, unless a clock stepped back.
    const start = Math.max(now, Math.min(this.#windowEnd, now + maxMs));
    const window = Math.min(maxMs, firstMs * 2 ** Math.min(power, 30));
    this.#failures = power + 1;
    this.#windowEnd = start + window;
    return Math.max(start + random * window, now + minMs);
  }
}
