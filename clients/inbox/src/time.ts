// When something was, as people say it: "now", "5 min. ago", and the date after a week.

const STEPS = [
  ["second", 45, 1],
  ["minute", 3_600, 60],
  ["hour", 86_400, 3_600],
  ["day", 604_800, 86_400],
] as const;

export class Times {
  readonly #relative: Intl.RelativeTimeFormat;
  readonly #day: Intl.DateTimeFormat;
  readonly #year: Intl.DateTimeFormat;
  readonly #full: Intl.DateTimeFormat;

  constructor(locale: string) {
    this.#relative = new Intl.RelativeTimeFormat(locale, { numeric: "auto", style: "short" });
    this.#day = new Intl.DateTimeFormat(locale, { day: "numeric", month: "short" });
    this.#year = new Intl.DateTimeFormat(locale, { day: "numeric", month: "short", year: "numeric" });
    this.#full = new Intl.DateTimeFormat(locale, { dateStyle: "full", timeStyle: "short" });
  }

  /** `at` and `now` in milliseconds. What lies ahead, by a clock that is wrong, is now. */
  relative(at: number, now: number): string {
    const seconds = Math.max(0, (now - at) / 1_000);
    for (const [unit, below, size] of STEPS) {
      if (seconds >= below) continue;
      // The word for now in each language.
      if (unit === "second") return this.#relative.format(0, "second");
      return this.#relative.format(-Math.max(1, Math.floor(seconds / size)), unit);
    }
    const isThisYear = new Date(at).getFullYear() === new Date(now).getFullYear();
    return (isThisYear ? this.#day : this.#year).format(at);
  }

  full(at: number): string {
    return this.#full.format(at);
  }
}
