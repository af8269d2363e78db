// The form: makes the record, shows what becomes of it, and produces it.

import { find, make, showJson } from "./dom.js";
import { type Produced, preview, produce } from "./server.js";

/** So long after the last key a preview is asked for. */
const PREVIEW_MS = 120;

export class ActivityForm {
  readonly #form = find<HTMLFormElement>("form");
  readonly #sent = find<HTMLOutputElement>("sent");
  #timer = 0;
  #asked = 0;
  #order = 1001;
  /** When the last record was sent, until it has been shown. */
  #sentAt: number | null = null;
  #text = "";

  constructor(topic: string) {
    find("target").textContent = topic;
    this.#form.addEventListener("input", () => this.#changed());
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#send();
    });
    this.#changed();
  }

  /** A notification came to somebody. */
  arrived(name: string): void {
    if (this.#sentAt === null) return;
    const ms = Math.round(performance.now() - this.#sentAt);
    this.#sentAt = null;
    this.#say(`${this.#text}. ${name}'s bell rang after ${ms} ms`);
  }

  #value(name: string): string {
    return String(new FormData(this.#form).get(name) ?? "");
  }

  #record(): { key: string; value: string } {
    const [kind, id] = this.#value("audience").split(":") as [string, string];
    const audience = kind === "org" ? { organizerId: id } : kind === "merchant" ? { merchantId: id } : { recipientIds: [id] };
    const isCustom = this.#value("type") === "custom";
    const amount = Number(this.#value("amount"));
    const what = isCustom
      ? { title: this.#value("title"), content: this.#value("content"), data: {} }
      : { data: { amount: Number.isFinite(amount) ? amount : this.#value("amount"), currency: this.#value("currency"), orderId: this.#value("orderId") } };
    const record = { type: isCustom ? "MESSAGE" : this.#value("type"), actorId: "1", recipientType: kind, ...audience, locale: this.#value("locale"), ...what };
    return { key: id, value: JSON.stringify(record, null, 2) };
  }

  #changed(): void {
    const isCustom = this.#value("type") === "custom";
    for (const label of this.#form.querySelectorAll<HTMLElement>(".custom, .payment")) label.hidden = label.classList.contains("custom") !== isCustom;
    showJson(find("record"), this.#record().value);
    clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => void this.#preview(), PREVIEW_MS);
  }

  async #preview(): Promise<void> {
    const asked = ++this.#asked;
    const element = find("preview");
    try {
      const { audience, title, content, dropped } = await preview(this.#record().value);
      if (asked !== this.#asked) return;
      const left = dropped.length > 0 ? `; not understood and left out: ${dropped.join(", ")}` : "";
      element.replaceChildren(make("b", "", title), make("span", "", content), make("small", "", `for ${audience}, stored once for each${left}`));
      element.classList.remove("failed");
    } catch (error) {
      if (asked !== this.#asked) return;
      element.replaceChildren(`dead letter: ${text(error)}`);
      element.classList.add("failed");
    }
  }

  async #send(): Promise<void> {
    const { key, value } = this.#record();
    this.#sentAt = performance.now();
    this.#text = "produced";
    try {
      const { partition, offset } = await produce(key, value);
      this.#produced({ topic: "", partition, offset });
    } catch (error) {
      this.#sentAt = null;
      this.#say(text(error), true);
    }
  }

  #produced({ partition, offset }: Produced): void {
    this.#text = `partition ${partition}, offset ${offset}`;
    // The bell may have rung before the broker's answer came here.
    if (this.#sentAt === null) this.#say(this.#sent.value.replace(/^produced/, this.#text));
    else this.#say(this.#text);
    const order = this.#form.elements.namedItem("orderId") as HTMLInputElement;
    if (this.#value("type") !== "custom" && order.value === `DH-${this.#order}`) order.value = `DH-${++this.#order}`;
    this.#changed();
  }

  #say(words: string, isFailure = false): void {
    this.#sent.value = words;
    this.#sent.classList.toggle("failed", isFailure);
  }
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
