// The page: two people, a form, and the messages between them and the gateway.

import { SignalInbox } from "@signal/inbox/element";
import { find } from "./dom.js";
import { ActivityForm } from "./form.js";
import { Frames } from "./frames.js";
import { type About, Person } from "./person.js";
import { drain, facts } from "./server.js";

customElements.define("signal-inbox", SignalInbox);

const PEOPLE: readonly About[] = [
  { user: "17", name: "Lan", color: "lan" },
  { user: "18", name: "Minh", color: "minh" },
];
const DRAIN_SECONDS = 3;

async function start(): Promise<void> {
  const { topic, version } = await facts();
  find("version").textContent = version;
  const frames = new Frames(PEOPLE);
  const form = new ActivityForm(topic);
  const people = PEOPLE.map((about) => new Person(about, frames, () => form.arrived(about.name)));
  find("people").append(...people.map(({ element }) => element));
  find("drain").addEventListener("click", () => {
    drain(DRAIN_SECONDS).catch((error: unknown) => frames.note(PEOPLE[0]!, String(error)));
  });
}

// Another key in the address is another dev mode.
addEventListener("hashchange", () => location.reload());
start().catch((error: unknown) => {
  const notice = find("notice");
  notice.textContent = error instanceof Error ? error.message : String(error);
  notice.hidden = false;
  for (const element of document.querySelectorAll<HTMLButtonElement>("main button")) element.disabled = true;
});
