-- The inbox of each recipient, its notifications, and the marks of those that are gone.
-- Text is compared byte by byte (BINARY, SQLite's default). Times are milliseconds since the Unix epoch.

-- One row per recipient. Rows are never removed: last_seq is what keeps seq without reuse.
CREATE TABLE signal_inbox (
    recipient_id TEXT    NOT NULL PRIMARY KEY,
    last_seq     INTEGER NOT NULL,
    unread_count INTEGER NOT NULL,
    version      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE signal_notification (
    id           TEXT    NOT NULL,
    recipient_id TEXT    NOT NULL,
    seq          INTEGER NOT NULL,
    source       TEXT    NOT NULL,
    event_id     TEXT    NOT NULL,
    kind         TEXT    NOT NULL,
    title        TEXT    NOT NULL,
    content      TEXT    NOT NULL,
    locale       TEXT    NOT NULL,
    -- JSON exactly as the producer wrote it.
    data         TEXT    NOT NULL,
    actor_id     TEXT,
    organizer_id TEXT,
    merchant_id  TEXT,
    read_at      INTEGER,
    created_at   INTEGER NOT NULL,
    -- The order within an inbox: pages, and what was missed.
    PRIMARY KEY (recipient_id, seq),
    -- 70 bits of Snowflake in base62: an identity, never an order.
    UNIQUE (id),
    -- One row per event and recipient, however often the event is delivered.
    UNIQUE (source, event_id, recipient_id)
) STRICT;

CREATE INDEX signal_notification_kind ON signal_notification (recipient_id, kind, seq);
CREATE INDEX signal_notification_unread ON signal_notification (recipient_id, seq) WHERE read_at IS NULL;
CREATE INDEX signal_notification_read ON signal_notification (recipient_id, seq) WHERE read_at IS NOT NULL;
CREATE INDEX signal_notification_age ON signal_notification (created_at);

-- What was removed, so that a redelivered event does not bring it back.
CREATE TABLE signal_tombstone (
    source       TEXT    NOT NULL,
    event_id     TEXT    NOT NULL,
    recipient_id TEXT    NOT NULL,
    deleted_at   INTEGER NOT NULL,
    PRIMARY KEY (source, event_id, recipient_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX signal_tombstone_age ON signal_tombstone (deleted_at);
