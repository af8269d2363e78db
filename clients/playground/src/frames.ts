// The list of messages, newest first: as they read, and as they travel. At most a few hundred are kept.

import type { TracedFrame } from "@signal/client";
import { find, make } from "./dom.js";
import type { About } from "./person.js";

const MOST = 300;

export class Frames {
  readonly #list = find("frames");
  readonly #filter = find("filter");
  #shown = "";

  constructor(people: readonly About[]) {
    for (const { user, name } of [{ user: "", name: "Both" }, ...people]) {
      const choice = make("button", "", name);
      choice.type = "button";
      choice.dataset["user"] = user;
      choice.addEventListener("click", () => this.#show(user));
      this.#filter.append(choice);
    }
    this.#show("");
    find("clear").addEventListener("click", () => this.clear());
    this.clear();
  }

  clear(): void {
    this.#list.replaceChildren(make("p", "empty", "Nothing yet."));
  }

  add(about: About, { direction, wire, clear }: TracedFrame): void {
    const { event } = JSON.parse(clear) as { event: string };
    const isSealed = wire !== clear;
    const row = make(
      "button",
      `row ${direction}`,
      make("span", "time", time()),
      make("span", about.color, about.name),
      make("span", "event", `${direction === "in" ? "↓" : "↑"} ${event}`),
      make("span", "clear", dataOf(withoutTokens(clear))),
      make("span", "wire", isSealed ? wire : "the same: it is not sealed"),
    );
    row.type = "button";
    row.dataset["event"] = event;
    row.dataset["sealed"] = String(isSealed);
    row.setAttribute("aria-expanded", "false");
    row.addEventListener("click", () => row.setAttribute("aria-expanded", String(row.getAttribute("aria-expanded") === "false")));
    this.#put(about, row);
  }

  /** A line that is no message. */
  note(about: About, text: string): void {
    this.#put(about, make("div", "row note", make("span", "time", time()), make("span", about.color, about.name), make("span", "", text)));
  }

  #put({ user }: About, row: HTMLElement): void {
    row.dataset["user"] = user;
    row.hidden = this.#shown !== "" && this.#shown !== user;
    this.#list.querySelector(".empty")?.remove();
    this.#list.prepend(row);
    while (this.#list.childElementCount > MOST) this.#list.lastElementChild?.remove();
  }

  #show(user: string): void {
    this.#shown = user;
    for (const choice of this.#filter.children as HTMLCollectionOf<HTMLElement>) choice.setAttribute("aria-pressed", String(choice.dataset["user"] === user));
    for (const row of this.#list.children as HTMLCollectionOf<HTMLElement>) row.hidden = user !== "" && row.dataset["user"] !== undefined && row.dataset["user"] !== user;
  }
}

function time(): string {
  return new Date().toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });
}

/** The event has a column of its own. */
function dataOf(json: string): string {
  return json.replace(/^\{"event":"[^"]*"(?:,"data":)?(.*)\}$/s, "$1") || "no data";
}

/** A screenshot of this page is no way to lose a token. */
function withoutTokens(json: string): string {
  return json.replace(/"(eyJ[\w-]{8})[\w-]*\.[\w-]+\.[\w-]+"/g, '"$1…"');
}
