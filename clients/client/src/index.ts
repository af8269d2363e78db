// The package's public names.

export { type Client, type ClientOptions, type InboxStore, type WatchedEvents, createClient } from "./client.js";
export { type ErrorCode, type ErrorDetails, SignalError } from "./errors.js";
export { fromWs } from "./node.js";
export { type InboxRecord, type InboxStorage, indexedDbStorage } from "./storage.js";
export { type Tabs, type TabsOptions, sharedTabs } from "./tabs.js";
export type { BackoffBounds } from "./backoff.js";
export type { Clock } from "./clock.js";
export type { ConnectionState, ConnectionStatus } from "./connection.js";
export type { InboxState } from "./inbox/inbox.js";
export type { Page } from "./page.js";
export type { JoinAnswer } from "./rooms.js";
export type { Encryption, TracedFrame, WebSocketLike } from "./session.js";
export type { Store } from "./store.js";
export type { TokenSource } from "./tokens.js";
export type * from "./generated/rest.js";
export type { ClientEvents, ServerEvents } from "./generated/events.js";
