// Names of what travels, from the gateway's documents.

export type { Notification, NotificationPage, NotificationsRead, Problem, Code } from "./generated/rest.js";
export type { ClientEvents, Connected, Expiring, NotificationCreated, NotificationSkipped, NotificationsDeleted, ServerEvents, Synced } from "./generated/events.js";
