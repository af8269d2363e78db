// A client whose inbox a test fills by itself, in a page: the shape of `@signal/client`'s stores, without a connection.

function value(first) {
  let now = first;
  const listeners = new Set();
  return {
    subscribe: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    getSnapshot: () => now,
    set(next) {
      now = { ...now, ...next };
      for (const listener of [...listeners]) listener();
    },
  };
}

export function notification(seq, more = {}) {
  const id = `n${seq}`;
  const createdAt = new Date(Date.now() - (more.age ?? 0)).toISOString();
  const { age, ...rest } = more;
  return { id, seq, type: "TEST", title: `Title ${seq}`, content: `Content ${seq}`, data: {}, actorId: null, recipientId: "17", locale: "en", createdAt, isRead: false, readAt: null, ...rest };
}

export function fakeClient(items = [], more = {}) {
  const connection = value({ status: "online", clientId: "c", userId: "17", encrypted: false, retryAt: null, error: null });
  const store = value({ status: "ready", items, unreadCount: items.filter(({ isRead }) => !isRead).length, hasMore: false, error: null, ...more });
  const calls = [];
  const handlers = new Set();
  let refused = null;
  const change = (name, argument, next) => {
    calls.push([name, argument]);
    if (refused) return Promise.reject(refused);
    const before = store.getSnapshot();
    const items = next(before.items);
    store.set({ items, unreadCount: items.filter(({ isRead }) => !isRead).length });
    return Promise.resolve();
  };
  const read = (is) => (items) => items.map((item) => (is(item) && !item.isRead ? { ...item, isRead: true, readAt: new Date().toISOString() } : item));
  return {
    calls,
    connection,
    store,
    refuse: (error) => (refused = error),
    connect: () => void calls.push(["connect"]),
    close: () => void calls.push(["close"]),
    on(event, handler) {
      calls.push(["on", event]);
      handlers.add(handler);
      return () => handlers.delete(handler);
    },
    emit: (data) => handlers.forEach((handler) => handler(data)),
    join(...rooms) {
      calls.push(["join", ...rooms]);
      return Promise.resolve({ rooms, refused: rooms.filter((room) => room.startsWith("secret")), acknowledged: true });
    },
    leave(...rooms) {
      calls.push(["leave", ...rooms]);
      return Promise.resolve();
    },
    add(...more) {
      const items = [...more, ...store.getSnapshot().items];
      store.set({ items, unreadCount: items.filter(({ isRead }) => !isRead).length });
    },
    inbox: {
      subscribe: store.subscribe,
      getSnapshot: store.getSnapshot,
      read: (ids) => change("read", ids, read(({ id }) => ids.includes(id))),
      readAll: () => change("readAll", null, read(() => true)),
      remove: (id) => change("remove", id, (items) => items.filter((item) => item.id !== id)),
      loadMore: () => {
        calls.push(["loadMore"]);
        return refused ? Promise.reject(refused) : (globalThis.more?.() ?? Promise.resolve());
      },
    },
  };
}
