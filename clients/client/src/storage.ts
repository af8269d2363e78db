// The cursor and the newest page of an inbox across reloads of the page: what is shown before the connection is there, and where the
// first sync begins. It is a cache: a record that is missing or old costs a request and changes nothing else.

import type { Saved } from "./inbox/ledger.js";

export interface InboxRecord {
  /** Whose inbox it is. */
  readonly userId: string;
  readonly inbox: Saved;
}

/** Where records are kept. Whatever a method throws is reported, and the client goes on without it. */
export interface InboxStorage {
  load(key: string): Promise<InboxRecord | null>;
  save(key: string, record: InboxRecord): Promise<void>;
  clear(key: string): Promise<void>;
}

/** Of another format, a record is not read. */
const FORMAT = 1;
const STORE = "inboxes";

/** Keeps records in IndexedDB, one for each gateway and user. Other pages of the same origin can read them. */
export function indexedDbStorage(name = "signal-client"): InboxStorage {
  let opened: Promise<IDBDatabase> | undefined;

  const open = (): Promise<IDBDatabase> => {
    opened ??= new Promise<IDBDatabase>((resolve, reject) => {
      const request = indexedDB.open(name, FORMAT);
      request.onupgradeneeded = () => {
        const { result } = request;
        for (const old of [...result.objectStoreNames]) result.deleteObjectStore(old);
        result.createObjectStore(STORE);
      };
      request.onerror = () => reject(request.error);
      request.onblocked = () => reject(new Error("another page holds an older version open"));
      request.onsuccess = () => {
        const { result } = request;
        // Another page wants a newer version, or the browser took the database away: the next call opens it again.
        result.onversionchange = () => {
          result.close();
          opened = undefined;
        };
        result.onclose = () => {
          opened = undefined;
        };
        resolve(result);
      };
    }).catch((error: unknown) => {
      opened = undefined;
      throw error;
    });
    return opened;
  };

  const run = async <T>(mode: IDBTransactionMode, ask: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> => {
    const database = await open();
    return new Promise<T>((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = ask(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error ?? request.error);
    });
  };

  return {
    load: async (key) => ((await run("readonly", (store) => store.get(key))) as InboxRecord | undefined) ?? null,
    save: async (key, record) => void (await run("readwrite", (store) => store.put(record, key))),
    clear: async (key) => void (await run("readwrite", (store) => store.delete(key))),
  };
}
