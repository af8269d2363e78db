// Generated from docs/asyncapi.json by scripts/generate.mjs. Do not edit.

import type { Epoch, Id, Notification, NotificationsRead } from "./rest.js";

/** Data of `connected`. */
export type Connected = {
  /** The client id. */
  readonly id: Id;
  /** The salt of an encrypted connection, base64. */
  readonly salt?: string | null;
  /** The server's public key of an encrypted connection, base64. */
  readonly serverPublicKey?: string | null;
  /** When, RFC 3339 in UTC. */
  readonly time: string;
  /** The subject of the token. */
  readonly userId: string;
};

/** Data of `error`. */
export type ErrorText = {
  /** One of the texts in [`message`]. */
  readonly message: string;
};

/** Data of `expiring`. */
export type Expiring = {
  /** When the token ends, RFC 3339 in UTC. */
  readonly expiresAt: string;
  /** Seconds until then. */
  readonly seconds: number;
};

/** Data of `notification:created`. */
export type NotificationCreated = {
  /** The notification. */
  readonly notification: Notification;
  /** The `seq` before it in this inbox. A client that has not everything up to it has missed a notification, or gets it in a moment. */
  readonly previousSeq: number;
  /** How many notifications are unread. */
  readonly unreadCount: number;
  /** Grows with every change of the inbox: of two counts the one with the higher version is newer. */
  readonly version: number;
};

/** Data of `notification:skipped`. */
export type NotificationSkipped = {
  /** The notification: REST has it. */
  readonly id: Id;
  /** The `seq` before it in this inbox. */
  readonly previousSeq: number;
  /** Its place in the inbox. */
  readonly seq: number;
  /** How many notifications are unread. */
  readonly unreadCount: number;
  /** Grows with every change of the inbox: of two counts the one with the higher version is newer. */
  readonly version: number;
};

/** Data of `notification:deleted`. */
export type NotificationsDeleted = {
  /** Those that were removed. */
  readonly ids: readonly (Id)[];
  /** How many notifications are unread. */
  readonly unreadCount: number;
  /** Grows with every change of the inbox: of two counts the one with the higher version is newer. */
  readonly version: number;
};

/** Data of `refreshed`. */
export type Refreshed = {
  /** When the new token ends, RFC 3339 in UTC; null for a token without an end. */
  readonly expiresAt: string | null;
};

/** Data of `resync`. */
export type Resync = {
  /** For logs. */
  readonly reason: string;
};

/** Data of `joined`. */
export type RoomsJoined = {
  /** The others. */
  readonly refused: readonly (string)[];
  /** Those of the rooms that were asked for that the client is in now. */
  readonly rooms: readonly (string)[];
};

/** Data of `notification:synced`. */
export type Synced = {
  /** How many notifications were sent before. */
  readonly count: number;
  /** `seq` of the last one, or where the client stood. */
  readonly cursor: number;
  /** Which history of the inbox this is. */
  readonly epoch: Epoch;
  /** Whether the client is to sync again from `cursor`. */
  readonly more: boolean;
  /** How many notifications are unread. */
  readonly unreadCount: number;
  /** Grows with every change of the inbox: of two counts the one with the higher version is newer. */
  readonly version: number;
};

/** Data of each event from the gateway. */
export interface ServerEvents {
  /** The connection is authenticated; never encrypted. `serverPublicKey` and `salt` are present on an encrypted connection. */
  readonly "connected": Connected;
  /** An encrypted envelope: the plaintext is the JSON of the inner envelope. */
  readonly "encrypted": {
    /** Ciphertext and 16-byte tag, standard base64 */
    readonly ct: string;
    /** 12 bytes, standard base64 */
    readonly iv: string;
  };
  /** The newer token is in use; `expiresAt` is null for a token without an end. */
  readonly "refreshed": Refreshed;
  /** The token ends soon; without `refresh` the connection is closed with 4005. */
  readonly "expiring": Expiring;
  /** Answers a `join` that had an `id`, and repeats it: the rooms that the client is in now, and those that it may not join. */
  readonly "joined": RoomsJoined;
  /** The gateway did not accept what the client sent. */
  readonly "error": ErrorText;
  /** Pushes may have been missed: send `notification:sync`. */
  readonly "resync": Resync;
  /** A notification was stored. It may come again with the same `id`, and it may be missed: then the `previousSeq` of the next one is higher than the last contiguous `seq` of the client, and `notification:sync` closes the gap. */
  readonly "notification:created": NotificationCreated;
  /** Notifications became read; sent to every connection of the user. `ids` holds the newest 1000 of `total`. */
  readonly "notification:read": NotificationsRead;
  /** Notifications were deleted over REST; sent to every connection of the user. */
  readonly "notification:deleted": NotificationsDeleted;
  /** Ends a sync: the missed `notification:created` events came before it, in order. Another `epoch` than the client knows: it starts over. */
  readonly "notification:synced": Synced;
  /** A notification is longer than a message may be (`limits.message_bytes`); it stands for its `notification:created`. REST has the notification. */
  readonly "notification:skipped": NotificationSkipped;
}

/** Data of each event to the gateway. */
export interface ClientEvents {
  /** The first event of a connection, due within 5 s. A client key asks for encryption (P-256 ECDH, HKDF-SHA-256, AES-256-GCM); `publicKey` is another name of `clientPublicKey`. */
  readonly "authenticate": {
    /** Raw P-256 point, uncompressed or compressed, standard base64 */
    readonly clientPublicKey?: string;
    readonly token: string;
    /** `Bearer` or `JWT` in any case; may be absent */
    readonly type?: string | null;
  };
  /** An encrypted envelope: the plaintext is the JSON of the inner envelope. */
  readonly "encrypted": {
    /** Ciphertext and 16-byte tag, standard base64 */
    readonly ct: string;
    /** 12 bytes, standard base64 */
    readonly iv: string;
  };
  /** Replaces the token with a newer one of the same subject. */
  readonly "refresh": {
    readonly token: string;
    /** `Bearer` or `JWT` in any case; may be absent */
    readonly type?: string | null;
  };
  /** Asks for rooms. The client joins those that the rules allow; the others are left out. With an `id` it is answered with `joined`. */
  readonly "join": {
    readonly rooms: readonly (string)[];
  };
  /** Leaves rooms. */
  readonly "leave": {
    readonly rooms: readonly (string)[];
  };
  /** Shows that the client is alive; not answered. A Pong frame does the same. */
  readonly "heartbeat": undefined;
  /** Marks notifications as read; ids of other users' notifications are ignored. */
  readonly "notification:read": ({
    readonly ids: readonly (Id)[];
  }) | ({
    /** `seq` of a notification */
    readonly upTo: number;
  });
  /** Asks for the notifications that were stored after `after`. */
  readonly "notification:sync": {
    /** `seq` of a notification */
    readonly after: number;
    readonly limit?: number;
  };
}

/** The reason of each close code. */
export const CLOSE_REASONS = {
  1000: "",
  1001: "Server shutting down",
  1002: "Protocol error",
  1007: "Invalid payload",
  1009: "Message too big",
  1011: "Internal error",
  4001: "Authentication timeout",
  4002: "Heartbeat timeout",
  4003: "Authentication failed",
  4004: "Encryption required",
  4005: "Token expired",
  4006: "Revoked",
  4007: "Disconnected by administrator",
  4008: "Slow consumer",
  4009: "Rebalanced",
  4010: "Limit exceeded",
} as const;
