"use client";
// The client that the components below use.

import type { Client } from "@signal/client";
import { type ReactNode, createContext, createElement, useContext, useEffect, useRef, useState } from "react";

/** A client of any application events. */
export type AnyClient = Client<any>;

export interface SignalProviderProps {
  /** Makes the client, once the page is there: never on a server. It is closed with the provider. For another person give the provider another `key`. */
  readonly create?: () => AnyClient;
  /** A client that the application made and closes; null where there is none, such as on a server. */
  readonly client?: AnyClient | null;
  readonly children?: ReactNode;
}

const Context = createContext<AnyClient | null | undefined>(undefined);

/** Gives a client to the hooks and the inbox below. */
export function SignalProvider({ create, client, children }: SignalProviderProps): ReactNode {
  const [created, setCreated] = useState<AnyClient | null>(null);
  const latest = useRef(create);
  useEffect(() => {
    latest.current = create;
  });
  const isOwn = create !== undefined;
  useEffect(() => {
    const own = isOwn ? latest.current?.() : undefined;
    if (!own) return;
    setCreated(own);
    // Strict mode mounts twice: the first client ends before the second begins.
    return () => {
      setCreated(null);
      own.close();
    };
  }, [isOwn]);
  return createElement(Context.Provider, { value: client ?? created }, children);
}

/** The client of the provider; null on a server, and until the provider has made it. */
export function useClient<Events extends object = Record<string, unknown>>(): Client<Events> | null {
  const client = useContext(Context);
  if (client === undefined) throw new Error("no <SignalProvider> is around this component");
  return client as Client<Events> | null;
}
