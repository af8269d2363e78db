-- The inbox of each recipient, its notifications, and the marks of those that are gone.
-- Text that is compared or sorted is compared byte by byte: COLLATE "C".

-- One row per recipient, locked by every change of that inbox. Rows are never removed: last_seq is what keeps seq without reuse.
CREATE TABLE signal_inbox (
    recipient_id text   COLLATE "C" NOT NULL PRIMARY KEY,
    last_seq     bigint NOT NULL,
    unread_count bigint NOT NULL,
    version      bigint NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE signal_notification (
    id           text        COLLATE "C" NOT NULL,
    recipient_id text        COLLATE "C" NOT NULL,
    seq          bigint      NOT NULL,
    source       text        COLLATE "C" NOT NULL,
    event_id     text        COLLATE "C" NOT NULL,
    kind         text        COLLATE "C" NOT NULL,
    title        text        NOT NULL,
    content      text        NOT NULL,
    locale       text        NOT NULL,
    -- JSON exactly as the producer wrote it.
    data         text        NOT NULL,
    actor_id     text,
    organizer_id text,
    merchant_id  text,
    read_at      timestamptz,
    created_at   timestamptz NOT NULL,
    -- The order within an inbox: pages, and what was missed.
    CONSTRAINT signal_notification_pkey PRIMARY KEY (recipient_id, seq),
    -- 70 bits of Snowflake in base62: an identity, never an order.
    CONSTRAINT signal_notification_id UNIQUE (id),
    -- One row per event and recipient, however often the event is delivered.
    CONSTRAINT signal_notification_event UNIQUE (source, event_id, recipient_id)
);

CREATE INDEX signal_notification_kind ON signal_notification (recipient_id, kind, seq);
CREATE INDEX signal_notification_unread ON signal_notification (recipient_id, seq) WHERE read_at IS NULL;
CREATE INDEX signal_notification_read ON signal_notification (recipient_id, seq) WHERE read_at IS NOT NULL;
CREATE INDEX signal_notification_age ON signal_notification (created_at);

-- What was removed, so that a redelivered event does not bring it back.
CREATE TABLE signal_tombstone (
    source       text        COLLATE "C" NOT NULL,
    event_id     text        COLLATE "C" NOT NULL,
    recipient_id text        COLLATE "C" NOT NULL,
    deleted_at   timestamptz NOT NULL,
    CONSTRAINT signal_tombstone_pkey PRIMARY KEY (source, event_id, recipient_id)
);

CREATE INDEX signal_tombstone_age ON signal_tombstone (deleted_at);
