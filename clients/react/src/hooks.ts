"use client";
// What a component reads and does, without a look. Each hook renders its component again when its own value changed, and not otherwise.

import type { ConnectionState, InboxState, InboxStore, SignalError, Store } from "@signal/client";
import { useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { type AnyClient, useClient } from "./provider.js";

/** On a server, while a page is hydrated, and until there is a client. */
const NO_INBOX: InboxState = { status: "loading", items: [], unreadCount: 0, hasMore: false, error: null };
const NO_CONNECTION: ConnectionState = { status: "idle", clientId: null, userId: null, encrypted: false, retryAt: null, error: null };

const nothing = (): void => {};
const never = (): (() => void) => nothing;

function useStore<T, Selected>(store: Store<T> | undefined, none: T, select: (value: T) => Selected): Selected {
  return useSyncExternalStore(
    store?.subscribe ?? never,
    () => select(store ? store.getSnapshot() : none),
    () => select(none),
  );
}

const same = <T>(value: T): T => value;

export type Notifications = InboxState & Pick<InboxStore, "read" | "readAll" | "readUpTo" | "remove" | "loadMore">;

/** The inbox, and what changes it. The functions stay the same as long as the client does. */
export function useNotifications(): Notifications {
  const client = useClient();
  const state = useStore(client?.inbox, NO_INBOX, same);
  const actions = useMemo(() => {
    const inbox = client?.inbox;
    const ask = async (run: (inbox: InboxStore) => Promise<void>): Promise<void> => {
      if (!inbox) throw new Error("there is no client yet");
      await run(inbox);
    };
    return {
      read: (ids: readonly string[]) => ask((to) => to.read(ids)),
      readAll: () => ask((to) => to.readAll()),
      readUpTo: (seq: number) => ask((to) => to.readUpTo(seq)),
      remove: (id: string) => ask((to) => to.remove(id)),
      loadMore: () => ask((to) => to.loadMore()),
    };
  }, [client]);
  return useMemo(() => ({ ...state, ...actions }), [state, actions]);
}

/** How many notifications of the whole inbox are unread. */
export function useUnreadCount(): number {
  return useStore(useClient()?.inbox, NO_INBOX, ({ unreadCount }) => unreadCount);
}

/** The state of the connection. */
export function useConnection(): ConnectionState {
  return useStore(useClient()?.connection, NO_CONNECTION, same);
}

/** Calls `handler`, always the one of the last render, with the data of each event of this name. */
export function useSignalEvent<Data = unknown>(event: string, handler: (data: Data) => void): void {
  const client = useClient();
  const latest = useRef(handler);
  useEffect(() => {
    latest.current = handler;
  });
  useEffect(() => client?.on(event, (data) => latest.current(data as Data)), [client, event]);
}

export interface RoomState {
  /** `idle` without a room or a client; `joined` also where the gateway does not answer joins. */
  readonly status: "idle" | "joining" | "joined" | "refused" | "failed";
  /** Why it failed. */
  readonly error: SignalError | null;
}

const IDLE: RoomState = { status: "idle", error: null };
const JOINING: RoomState = { status: "joining", error: null };
const JOINED: RoomState = { status: "joined", error: null };
const REFUSED: RoomState = { status: "refused", error: null };

/** Is in a room while the component is there; several may ask for the same one. */
export function useRoom(room: string | null | undefined): RoomState {
  const client = useClient();
  const [state, setState] = useState<RoomState>(IDLE);
  useEffect(() => {
    if (!client || !room) {
      setState(IDLE);
      return;
    }
    let isGone = false;
    setState(JOINING);
    join(client, room).then(
      ({ refused }) => void (isGone || setState(refused.includes(room) ? REFUSED : JOINED)),
      (error: SignalError) => void (isGone || setState({ status: "failed", error })),
    );
    return () => {
      isGone = true;
      leave(client, room);
    };
  }, [client, room]);
  return state;
}

/** How many components are in a room, by client. */
const rooms = new WeakMap<AnyClient, Map<string, number>>();

function join(client: AnyClient, room: string): ReturnType<AnyClient["join"]> {
  const counts = rooms.get(client) ?? new Map<string, number>();
  rooms.set(client, counts);
  counts.set(room, (counts.get(room) ?? 0) + 1);
  return client.join(room);
}

function leave(client: AnyClient, room: string): void {
  const counts = rooms.get(client)!;
  counts.set(room, counts.get(room)! - 1);
  // Strict mode, and a list in another order, leave and join in one turn: the gateway sees nothing of it.
  setTimeout(() => {
    if (counts.get(room) !== 0) return;
    counts.delete(room);
    client.leave(room).catch(nothing);
  });
}
