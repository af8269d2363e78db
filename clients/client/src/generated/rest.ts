// Generated from docs/openapi.json by scripts/generate.mjs. Do not edit.

/** Where a message went. Delivery is best effort. */
export type Accepted = {
  /** How many connections of the answering instance it was given to. */
  readonly local: number;
  /** Whether it was published to other instances; false for a client of this instance, and while Redis is not available. */
  readonly published: boolean;
};

/** An id of this gateway (a Snowflake in base62), or of another server, such as a UUID. */
export type AnyId = string;

/** A message to everyone. */
export type BroadcastMessage = {
  /** The envelope's data; where it is left out, the envelope has none. */
  readonly data?: unknown;
  readonly event: EventName;
  /** Client ids that do not receive it. */
  readonly exclude?: readonly (AnyId)[] | null;
};

/** A live connection. */
export type Client = {
  /** The address it connected from. */
  readonly address: string | null;
  /** When it connected. */
  readonly connectedAt: string;
  /** Whether its messages are encrypted. */
  readonly encrypted: boolean;
  /** Client id. */
  readonly id: Id;
  /** The instance that holds it. */
  readonly instance: string;
  /** When its last frame arrived. */
  readonly lastSeenAt: string;
  /** The rooms it is in, without the room of its own id. */
  readonly rooms: readonly (string)[];
  /** `connecting`, `authenticating`, `authenticated` or `encrypted`. */
  readonly state: string;
  /** The user, once authenticated. */
  readonly userId: string | null;
};

/** A page of connections, in the order of their ids' text. */
export type ClientPage = {
  /** The connections. */
  readonly data: readonly (Client)[];
  /** Live instances that did not answer in time: their connections are not in `data`. */
  readonly missing: readonly (string)[];
  /** `cursor` of the next page; null at the end. */
  readonly next: string | null;
};

/** How many connections were closed. */
export type Closed = {
  /** On all instances that answered. */
  readonly closed: number;
  /** Live instances that did not answer in time: their connections may still be open. */
  readonly missing: readonly (string)[];
};

/** What programs compare. More may be added:
 * - `invalid_request` (400): The request contradicts itself
 * - `invalid_path` (400): A part of the path is not valid
 * - `invalid_query` (400): A query parameter is not valid
 * - `invalid_json` (400): The body is not JSON
 * - `invalid_body` (400): The body does not have the expected form
 * - `reserved_event` (400): The event name belongs to the protocol
 * - `refused_value` (400): A value cannot be stored or compared
 * - `credentials_missing` (401): Credentials are needed
 * - `credentials_refused` (401): The credentials are refused
 * - `forbidden` (403): The permission is missing
 * - `no_inbox` (403): Basic users have no inbox
 * - `origin_refused` (403): The origin is not on the list
 * - `admin_disabled` (403): No administration token is configured
 * - `not_found` (404): There is no such thing
 * - `no_route` (404): There is no such route
 * - `method_not_allowed` (405): The route does not have this method
 * - `ending` (409): The process drains in order to end
 * - `body_timeout` (408): The body did not arrive in time
 * - `body_too_large` (413): The body is too large
 * - `message_too_large` (413): The message is too large for clients
 * - `unsupported_media_type` (415): The body must be JSON
 * - `too_many_attempts` (429): Too many failed attempts
 * - `internal` (500): The gateway failed
 * - `keys_unavailable` (503): Tokens cannot be verified right now
 * - `store_unavailable` (503): The database cannot be used right now
 * - `bus_unavailable` (503): Other instances cannot be reached right now
 * - `instances_silent` (503): Some instances did not answer
 * - `not_ready` (503): The gateway is not ready */
export type Code = string;

/** Another one says that the database went back in time: forget every `seq` and `version`, and start over. It has no order. */
export type Epoch = string;

/** The envelope's event; the gateway's own event names are refused. */
export type EventName = string;

/** A number of 70 bits in base62: an identity, never an order. */
export type Id = string;

/** The counters of one inbox, changed in the same transaction as its rows. */
export type InboxState = {
  /** How many notifications are unread. */
  readonly unreadCount: number;
  /** Grows with every change of the inbox: of two counts the one with the higher version is newer. */
  readonly version: number;
};

/** Which notifications become read: exactly one of these members; the others may be null. */
export type MarkRead = ({
  readonly all?: null;
  /** The notifications with these ids; ids of other users' notifications are ignored. */
  readonly ids: readonly (AnyId)[];
  readonly upTo?: null;
}) | ({
  readonly all?: null;
  readonly ids?: null;
  /** All notifications with this `seq` or a lower one. */
  readonly upTo: number;
}) | ({
  /** All notifications. */
  readonly all: true;
  readonly ids?: null;
  readonly upTo?: null;
});

/** A message. */
export type Message = {
  /** The envelope's data; where it is left out, the envelope has none. */
  readonly data?: unknown;
  readonly event: EventName;
};

/** A user id, a `jti` or a type: 1 to 256 characters, none of them a control character. */
export type Name = string;

/** Whose tokens are revoked: all of the subject `userId`, or the one with this `jti`. The other member may be null. */
export type NewRevocation = ({
  /** Only tokens issued before this time, which may lie at most 5 minutes in the future, and not so far in the past that every such token has ended (`revocations.token_life_days`). By default the time of the request. */
  readonly issuedBefore?: string | null;
  readonly jti?: null;
  readonly userId: Name;
}) | ({
  /** Only tokens issued before this time, which may lie at most 5 minutes in the future, and not so far in the past that every such token has ended (`revocations.token_life_days`). By default the time of the request. */
  readonly issuedBefore?: string | null;
  readonly jti: Name;
  readonly userId?: null;
});

/** One stored notification of one recipient. */
export type Notification = {
  /** Who caused it. */
  readonly actorId: string | null;
  /** Rendered in `locale`. */
  readonly content: string;
  /** When it was stored. */
  readonly createdAt: string;
  /** The activity's parameters, as the producer gave them. */
  readonly data: unknown;
  /** Identity, never an order. */
  readonly id: Id;
  /** Whether `readAt` is set. */
  readonly isRead: boolean;
  /** The catalog's locale that was used. */
  readonly locale: string;
  /** The merchant it concerns. */
  readonly merchantId?: string | null;
  /** When the activity occurred, if its producer said so. */
  readonly occurredAt?: string | null;
  /** The organizer it concerns. */
  readonly organizerId?: string | null;
  /** When it was first read. */
  readonly readAt: string | null;
  /** Whose inbox it is in. */
  readonly recipientId: string;
  /** Counts up per recipient without reuse: the order, the cursor and the only thing clients compare. */
  readonly seq: number;
  /** Rendered in `locale`. */
  readonly title: string;
  /** The activity's type. */
  readonly type: string;
};

/** A page of an inbox, newest first. */
export type NotificationPage = (InboxState) & ({
  /** The notifications, by descending `seq`. */
  readonly data: readonly (Notification)[];
  /** Which history of the inbox this is. */
  readonly epoch: Epoch;
  /** `cursor` of the next page; null at the end. */
  readonly next: string | null;
});

/** A change of a notification. */
export type NotificationPatch = {
  /** Always true: a read notification stays read. */
  readonly isRead: true;
};

/** Data of `notification:read` to clients, and REST's answer. */
export type NotificationsRead = {
  /** Those that became read, newest first; at most 1000. */
  readonly ids: readonly (Id)[];
  /** When. */
  readonly readAt: string;
  /** How many became read; where `ids` has no room for all of them, devices list the inbox again. */
  readonly total: number;
  /** How many notifications are unread. */
  readonly unreadCount: number;
  /** Grows with every change of the inbox: of two counts the one with the higher version is newer. */
  readonly version: number;
};

/** An error (RFC 9457). */
export type Problem = {
  /** What programs compare: it never changes its meaning. */
  readonly code: Code;
  /** What was wrong this time. */
  readonly detail: string;
  /** The request id, as in the header `X-Request-Id` and the gateway's log. */
  readonly instance?: string | null;
  /** The HTTP status. */
  readonly status: number;
  /** The same text for each problem of this code. */
  readonly title: string;
  /** Where the cause is explained, relative to the gateway's address. */
  readonly type: string;
};

/** Which tokens are revoked, and how many connections were closed. */
export type Revoked = {
  /** How many connections were closed with 4006, on all instances that answered. */
  readonly closed: number;
  /** Tokens issued before this time are refused. */
  readonly issuedBefore: string;
  /** Live instances that did not answer in time, and while Redis is away those that were live before. They are told again, and read it from the
   * database: within seconds while they receive nothing from Redis, within 36 s in any case. */
  readonly missing: readonly (string)[];
  /** When the revocation is dropped; every such token has ended by then. */
  readonly until: string;
};

/** A room name: 1 to 256 characters, none of them a control character, that do not begin with `ws:`. */
export type RoomName = string;

/** Rooms to join or leave. */
export type RoomsBody = {
  /** Their names. */
  readonly rooms: readonly (RoomName)[];
};

/** ClientSelector rooms changed. */
export type RoomsChanged = {
  /** The instance that holds the client. */
  readonly instance: string;
  /** The rooms that changed: those that the client newly joined, or left. */
  readonly rooms: readonly (string)[];
};

/** How many notifications are unread. */
export type UnreadCount = {
  /** Which history of the inbox this is. */
  readonly epoch: Epoch;
  /** In the whole inbox. */
  readonly unreadCount: number;
};
