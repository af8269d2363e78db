import { expect, test } from "vitest";
import { Backoff, defaultBackoff } from "../../src/backoff.js";
import { seeded } from "./fakes.js";

const bounds = { firstMs: 1_000, maxMs: 4_000, minMs: 100, stableMs: 0 };

test("windows follow each other, double, and end at the longest", () => {
  const backoff = new Backoff(bounds);
  // At the end of each window, so that the next one begins there.
  const times = [];
  for (let now = 0, n = 0; n < 5; n++) times.push((now = backoff.next(now, 1)));
  expect(times).toEqual([1_000, 3_000, 7_000, 11_000, 15_000]);
});

test("an attempt is at a random moment of its window, and the next window begins where this one ends", () => {
  const backoff = new Backoff(bounds);
  expect(backoff.next(0, 0.25)).toBe(250);
  expect(backoff.next(250, 0.5)).toBe(1_000 + 1_000);
});

test("two attempts are never closer than the shortest wait", () => {
  const backoff = new Backoff(bounds);
  backoff.next(0, 0.999);
  expect(backoff.next(999, 0)).toBe(1_099);
});

test("after a reset the windows begin with the first one", () => {
  const backoff = new Backoff(bounds);
  backoff.next(0, 1);
  backoff.next(1_000, 1);
  backoff.reset();
  expect(backoff.failures).toBe(0);
  expect(backoff.next(50_000, 1)).toBe(51_000);
});

test("a clock that stepped back delays nothing by more than two windows", () => {
  const backoff = new Backoff(bounds);
  backoff.next(3_600_000, 1);
  expect(backoff.next(0, 1)).toBeLessThanOrEqual(2 * bounds.maxMs);
});

test("10,000 clients that lost one server: no second holds more than 1.5 times its share, whenever the server comes back", () => {
  for (const [seed, outageMs] of [[1, 0], [2, 2_500], [3, 20_000], [4, 45_000], [5, 300_000]] as const) {
    const random = seeded(seed);
    const attempts = new Map<number, number>();
    const returns = new Map<number, number>();
    const count = (seconds: Map<number, number>, at: number): void => {
      const second = Math.floor(at / 1000);
      seconds.set(second, (seconds.get(second) ?? 0) + 1);
    };
    for (let client = 0; client < 10_000; client++) {
      const backoff = new Backoff(defaultBackoff);
      let now = 0;
      do count(attempts, (now = backoff.next(now, random())));
      while (now < outageMs);
      count(returns, now);
    }
    // The window in which a second lies, and so the share of each of its seconds.
    for (const [second, number] of attempts) {
      let [begin, window] = [0, defaultBackoff.firstMs];
      while (begin + window <= second * 1000) [begin, window] = [begin + window, Math.min(defaultBackoff.maxMs, window * 2)];
      const share = 10_000 / (window / 1000);
      expect(number, `attempts in second ${second} of an outage of ${outageMs} ms`).toBeLessThanOrEqual(1.5 * share);
      expect(returns.get(second) ?? 0).toBeLessThanOrEqual(1.5 * share);
    }
    expect([...returns.values()].reduce((sum, number) => sum + number)).toBe(10_000);
  }
});
