"use client";
// The package's public names.

export { type AnyClient, SignalProvider, type SignalProviderProps, useClient } from "./provider.js";
export { type Notifications, type RoomState, useConnection, useNotifications, useRoom, useSignalEvent, useUnreadCount } from "./hooks.js";
export { Inbox, type InboxProps } from "./inbox.js";
