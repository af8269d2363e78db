// An application with every hook and the inbox, for tests on a server and in a page.

import { type ReactNode, StrictMode, useState } from "react";
import { type AnyClient, Inbox, type InboxProps, SignalProvider, type SignalProviderProps, useConnection, useNotifications, useRoom, useUnreadCount } from "../src/index.js";

/** How often each component was rendered. */
export const renders: Record<string, number> = {};
const count = (name: string): void => void (renders[name] = (renders[name] ?? 0) + 1);

function Count(): ReactNode {
  count("count");
  return <output id="count">{useUnreadCount()}</output>;
}

function Status(): ReactNode {
  return <output id="status">{useConnection().status}</output>;
}

function List(): ReactNode {
  const { items, status, read, remove } = useNotifications();
  return (
    <ul id="list" data-status={status}>
      {items.slice(0, 5).map(({ id, title, isRead }) => (
        <li key={id} data-read={isRead}>
          <button onClick={() => void read([id])}>{title}</button>
          <button onClick={() => void remove(id)}>delete {title}</button>
        </li>
      ))}
    </ul>
  );
}

export function Room({ name }: { readonly name: string }): ReactNode {
  return <output className="room">{useRoom(name).status}</output>;
}

export interface AppProps extends SignalProviderProps {
  readonly inbox?: InboxProps;
}

export function App({ inbox, ...provider }: AppProps): ReactNode {
  const [isOpen, setOpen] = useState(false);
  return (
    <StrictMode>
      <SignalProvider {...provider}>
        <Count />
        <Status />
        <List />
        <Room name="merchant:1" />
        <Room name="secret:1" />
        <button id="toggle" onClick={() => setOpen(!isOpen)}>toggle</button>
        <Inbox id="inbox" className="corner" theme="dark" open={isOpen} onOpenChange={setOpen} footer={<a href="/settings">Settings</a>} {...inbox} />
      </SignalProvider>
    </StrictMode>
  );
}

export type { AnyClient };
