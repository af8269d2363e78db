// The shape that frameworks read: a value that is replaced and never changed, and a subscription. React's `useSyncExternalStore` takes
// both functions as they are.

export interface Store<T> {
  /** Calls `listener` after each change. Returns what ends that. */
  readonly subscribe: (listener: () => void) => () => void;
  /** The value. The same object until something changes. */
  readonly getSnapshot: () => T;
}

export class Value<T> implements Store<T> {
  #value: T;
  #listeners = new Set<() => void>();

  constructor(value: T) {
    this.#value = value;
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    // A function of its own, so that one listener that subscribes twice is called twice.
    const own = (): void => listener();
    this.#listeners.add(own);
    return () => void this.#listeners.delete(own);
  };

  readonly getSnapshot = (): T => this.#value;

  set(value: T): void {
    if (Object.is(value, this.#value)) return;
    this.#value = value;
    for (const listener of [...this.#listeners]) guard(listener);
  }
}

/** Calls a function of the application: what it throws is reported, and breaks nothing here. */
export function guard(call: () => void): void {
  try {
    call();
  } catch (error) {
    const { reportError } = globalThis as { reportError?: (error: unknown) => void };
    if (reportError) reportError(error);
    else queueMicrotask(() => { throw error; });
  }
}
