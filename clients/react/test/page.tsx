// What the tests of pages load: they render and hydrate the application by hand.

import { type ReactNode, createElement, startTransition, useState, useTransition, version } from "react";
import { createRoot, hydrateRoot } from "react-dom/client";
// @ts-expect-error: a script without types.
import { fakeClient, notification } from "../../inbox/test/pages/fake.js";
import { SignalProvider, useSignalEvent, useUnreadCount } from "../src/index.js";
import { App, Room, renders } from "./app.js";

/** Each of many slow components shows the count: if two of them ever differ in one commit, the page is torn. */
function Slow(): ReactNode {
  const end = performance.now() + 2;
  while (performance.now() < end);
  return <i className="slow">{useUnreadCount()}</i>;
}

export function Torn({ client }: { readonly client: any }): ReactNode {
  const [rounds, setRounds] = useState(0);
  const [isPending, start] = useTransition();
  return (
    <SignalProvider client={client}>
      <button id="start" data-pending={isPending} onClick={() => start(() => setRounds(rounds + 1))}>start</button>
      {rounds > 0 && Array.from({ length: 60 }, (_, index) => <Slow key={`${rounds}-${index}`} />)}
    </SignalProvider>
  );
}

export function Rooms({ client, names }: { readonly client: any; readonly names: readonly string[] }): ReactNode {
  return <SignalProvider client={client}>{names.map((name, index) => <Room key={index} name={name} />)}</SignalProvider>;
}

function Listener({ prefix }: { readonly prefix: string }): ReactNode {
  const [last, setLast] = useState("");
  useSignalEvent<string>("order:updated", (data) => setLast(prefix + data));
  return <output id="event">{last}</output>;
}

export function Events({ client, prefix }: { readonly client: any; readonly prefix: string }): ReactNode {
  return <SignalProvider client={client}><Listener prefix={prefix} /></SignalProvider>;
}

Object.assign(globalThis, { Events, App, Rooms, Torn, createElement, createRoot, fakeClient, hydrateRoot, notification, renders, startTransition, version, isReady: true });
