import { createClient } from "@signal/client";
import { Inbox, type InboxProps, SignalProvider, useConnection, useNotifications } from "@signal/react";
import { useEffect, useState } from "react";

declare const SIGNAL_URL: string;

const connect = () => createClient({ url: SIGNAL_URL, token: () => fetch("/api/signal-token").then((answer) => answer.text()) });

export function App() {
  const [path, setPath] = useState(location.pathname);
  useEffect(() => {
    const back = (): void => setPath(location.pathname);
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);

  // A link of a notification is the router's, where it leads to this application in this tab.
  const follow: InboxProps["onItemClick"] = (event) => {
    const { href, originalEvent } = event.detail;
    if (!href || originalEvent.ctrlKey || originalEvent.metaKey || originalEvent.shiftKey) return;
    const { origin, pathname } = new URL(href);
    if (origin !== location.origin) return;
    event.preventDefault();
    history.pushState(null, "", pathname);
    setPath(pathname);
  };

  return (
    <SignalProvider create={connect}>
      <header style={{ display: "flex", justifyContent: "space-between", alignItems: "center" }}>
        <strong>Shop</strong>
        <Inbox style={{ "--signal-accent": "#0f766e" }} onItemClick={follow} onCount={(count) => void (document.title = count ? `(${count}) Shop` : "Shop")} footer={<Connection />} />
      </header>
      <main>
        <h1>{path}</h1>
        <Newest />
      </main>
    </SignalProvider>
  );
}

function Connection() {
  return <small>{useConnection().status}</small>;
}

/** The hooks alone: a list of its own. */
function Newest() {
  const { items, status, read } = useNotifications();
  if (status === "loading") return <p>Loading</p>;
  return (
    <ul aria-label="Newest">
      {items.slice(0, 3).map(({ id, title, isRead }) => (
        <li key={id}>
          {title} {!isRead && <button onClick={() => void read([id])}>seen</button>}
        </li>
      ))}
    </ul>
  );
}
