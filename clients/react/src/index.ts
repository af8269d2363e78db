"use client";
// The package's public names.

export { type AnyClient, SignalProvider, type SignalProviderProps, useClient } from "./provider.js";
export { type Notifications, type RoomState, useConnection, useNotifications, useRoom, useSignalEvent, useUnreadCount } from "./hooks.js";
export { Inbox, type InboxProps } from "./inbox.js";
export { type InboxEvents, type InboxTab, type Messages, type OpenReason, type Placement, type SignalInbox, addMessages } from "@signal/inbox/element";
