// Rooms: what the application wants to be in, asked for on every connection.

import type { Clock } from "./clock.js";
import { SignalError } from "./errors.js";
import type { Envelope } from "./session.js";

/** What became of a `join`. */
export interface JoinAnswer {
  /** False where the gateway does not answer joins, or did not in time: then nobody knows. */
  readonly acknowledged: boolean;
  /** The rooms that were joined; where nobody knows, those that were asked for. */
  readonly rooms: readonly string[];
  /** The rooms that this user has no right to; they are not asked for again. */
  readonly refused: readonly string[];
}

/** 5.1: of one event so many names count. */
const MOST_NAMES = 1_024;
const ANSWER_MS = 3_000;

interface Waiting {
  readonly names: readonly string[];
  readonly resolve: (answer: JoinAnswer) => void;
  readonly cancel: () => void;
}

export class Rooms {
  /** Who wants to be in a room: this page, and in a shared connection other pages. */
  #wanted = new Map<string, Set<string>>();
  #waiting = new Map<string, Waiting>();
  #lastId = 0;

  constructor(
    readonly clock: Clock,
    readonly send: (envelope: Envelope) => boolean,
  ) {}

  /** A connection began: it is in no room yet. */
  connected(): void {
    const names = [...this.#wanted.keys()];
    for (let at = 0; at < names.length; at += MOST_NAMES) this.#ask(names.slice(at, at + MOST_NAMES));
  }

  /** Joins rooms, on this connection and on every later one. */
  join(names: readonly string[], owner: string): Promise<JoinAnswer> {
    checkRooms(names);
    for (const name of names) {
      const owners = this.#wanted.get(name) ?? new Set();
      this.#wanted.set(name, owners.add(owner));
    }
    return new Promise((resolve) => this.#ask(names, resolve));
  }

  leave(names: readonly string[], owner: string): void {
    const left = names.filter((name) => {
      const owners = this.#wanted.get(name);
      owners?.delete(owner);
      return owners?.size === 0 && this.#wanted.delete(name);
    });
    if (left.length > 0) this.send({ event: "leave", data: { rooms: left } });
  }

  /** This page is gone. */
  forget(owner: string): void {
    this.leave([...this.#wanted.keys()], owner);
  }

  /** Takes `joined`, or the `error` that came in its place (5.8). Returns whether nobody else needs to see it. */
  event({ event, data, id }: Envelope): boolean {
    const names = id === undefined ? undefined : this.#waiting.get(id)?.names;
    if (!names || id === undefined) return false;
    if (event === "error") {
      this.#answer(id, { acknowledged: false, rooms: names, refused: [] });
      this.clock.after(ANSWER_MS, () => this.#ask(names.filter((name) => this.#wanted.has(name))));
    }
    if (event !== "joined") return false;
    const { rooms = [], refused = [] } = (data ?? {}) as Partial<JoinAnswer>;
    for (const name of refused) this.#wanted.delete(name);
    this.#answer(id, { acknowledged: true, rooms, refused });
    return true;
  }

  /** Nobody answers any more. */
  close(): void {
    for (const [id, { names }] of [...this.#waiting]) this.#answer(id, { acknowledged: false, rooms: names, refused: [] });
  }

  #ask(rooms: readonly string[], resolve: (answer: JoinAnswer) => void = () => {}): void {
    const id = `join-${++this.#lastId}`;
    if (rooms.length > 0) this.send({ event: "join", data: { rooms }, id });
    const nobody: JoinAnswer = { acknowledged: false, rooms, refused: [] };
    const cancel = this.clock.after(ANSWER_MS, () => this.#answer(id, nobody));
    this.#waiting.set(id, { names: rooms, resolve, cancel });
  }

  #answer(id: string, answer: JoinAnswer): void {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    waiting?.cancel();
    waiting?.resolve(answer);
  }
}

/** 5.1: the gateway drops other names without a word, and takes so many at once. */
export function checkRooms(names: readonly string[]): void {
  if (names.length > MOST_NAMES) throw new SignalError("invalid", `more than ${MOST_NAMES} rooms at once`);
  for (const name of names) {
    if (typeof name !== "string" || !name || name.length > 256 || name.startsWith("ws:")) {
      throw new SignalError("invalid", `a room's name has 1 to 256 characters and does not begin with "ws:": ${JSON.stringify(name)}`);
    }
  }
}
