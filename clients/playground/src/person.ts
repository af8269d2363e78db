// One of the two people: a client of their own, a bell, an inbox, and buttons that break their connection.

import { type Client, type ConnectionState, type TracedFrame, createClient } from "@signal/client";
import type { SignalInbox } from "@signal/inbox/element";
import { button, make } from "./dom.js";
import type { Frames } from "./frames.js";
import { token } from "./server.js";

/** Seconds that a token lives which is about to end: `expiring` comes at once, and the client must be quick. */
const SHORT_SECONDS = 5;
const RING_MS = 900;

export interface About {
  readonly user: string;
  readonly name: string;
  readonly color: string;
}

export class Person {
  readonly element: HTMLElement;
  readonly client: Client;
  #socket: WebSocket | undefined;
  #ringTimer = 0;

  constructor(
    readonly about: About,
    private readonly frames: Frames,
    arrived: (person: Person) => void,
  ) {
    const { user, name } = about;
    this.client = createClient({
      url: new URL("/stream", location.href).href,
      user,
      token: () => token(user),
      encryption: "required",
      // Nobody waits for a page to come back who looks at it.
      backoff: { firstMs: 1_000, maxMs: 3_000, stableMs: 1_000 },
      socket: (url) => (this.#socket = new WebSocket(url)),
      trace: (frame) => this.#trace(frame),
    });
    const bell = document.createElement("signal-inbox") as SignalInbox;
    bell.className = "bell";
    bell.client = this.client;
    const inbox = document.createElement("signal-inbox") as SignalInbox;
    inbox.className = "inline";
    inbox.mode = "inline";
    inbox.client = this.client;
    for (const one of [bell, inbox]) {
      one.theme = "page";
      one.locale = "en";
      one.messages = { title: `${name}'s notifications` };
    }
    const status = make("p", "");
    this.element = make(
      "article",
      "person",
      make("header", "", make("span", "avatar", name[0]!), make("div", "who", make("h3", "", name), status), bell),
      inbox,
      make(
        "div",
        "actions",
        button("Drop the socket", "Ends the connection without a word, as a lost network does", () => this.drop()),
        button("Expire the token", `Gives the connection a token that ends in ${SHORT_SECONDS} s: the client must bring another one`, () => this.expire()),
      ),
    );
    this.element.dataset["user"] = user;
    const showStatus = (): void => {
      const state = this.client.connection.getSnapshot();
      this.element.dataset["status"] = state.status;
      status.replaceChildren(make("span", "state"), describe(user, state));
    };
    this.client.connection.subscribe(showStatus);
    showStatus();
    this.client.on("notification:created", () => {
      this.#ring();
      arrived(this);
    });
    this.client.onError((error) => frames.note(about, `${error.code}: ${error.message}`));
  }

  /** The connection ends for the client at once. The gateway learns of it as it would from a network: by the end of the socket. */
  drop(): void {
    const socket = this.#socket;
    if (socket?.readyState !== WebSocket.OPEN) return;
    socket.onclose?.(new CloseEvent("close", { code: 1006 }));
  }

  async expire(): Promise<void> {
    const socket = this.#socket;
    if (socket?.readyState !== WebSocket.OPEN) return;
    const wire = JSON.stringify({ event: "refresh", data: { token: await token(this.about.user, SHORT_SECONDS), type: "Bearer" } });
    // The page sends this itself, clear, which a gateway takes unless it is told to refuse it (protocol.md 6.6).
    socket.send(wire);
    this.#trace({ direction: "out", wire, clear: wire });
    this.frames.note(this.about, `the token of this connection ends in ${SHORT_SECONDS} s; the client will be told, and bring another one`);
  }

  #trace(frame: TracedFrame): void {
    this.frames.add(this.about, frame);
  }

  #ring(): void {
    clearTimeout(this.#ringTimer);
    this.element.classList.remove("rang");
    // The animation begins again only after a layout without it.
    void this.element.offsetWidth;
    this.element.classList.add("rang");
    this.#ringTimer = window.setTimeout(() => this.element.classList.remove("rang"), RING_MS);
  }
}

function describe(user: string, { status, encrypted, error }: ConnectionState): string {
  const who = `user ${user}`;
  if (status === "online") return `${who} · online${encrypted ? ", sealed" : ""}`;
  if (status === "waiting") return `${who} · connecting again${error ? `: ${error.message}` : ""}`;
  return `${who} · ${status}`;
}
