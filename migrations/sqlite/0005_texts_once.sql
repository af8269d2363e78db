-- The text of an event once, and for each recipient a row of fixed width. What the tables before hold is carried over: see README.md.

ALTER TABLE signal_inbox RENAME TO signal_inbox_before;
ALTER TABLE signal_notification RENAME TO signal_notification_before;
ALTER TABLE signal_tombstone RENAME TO signal_tombstone_before;
DROP INDEX signal_notification_kind;
DROP INDEX signal_notification_unread;
DROP INDEX signal_notification_read;
DROP INDEX signal_notification_age;
DROP INDEX signal_tombstone_age;

-- One row per recipient. Rows are never removed: last_seq is what keeps seq without reuse, and the number of an inbox is not given again.
CREATE TABLE signal_inbox (
    inbox        INTEGER NOT NULL PRIMARY KEY,
    recipient_id TEXT    NOT NULL UNIQUE,
    last_seq     INTEGER NOT NULL,
    unread_count INTEGER NOT NULL,
    version      INTEGER NOT NULL,
    -- Up to here nothing is unread.
    read_seq     INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Which events were stored, until no row and no tombstone names them.
CREATE TABLE signal_event (
    event    INTEGER NOT NULL PRIMARY KEY,
    source   TEXT    NOT NULL,
    event_id TEXT    NOT NULL,
    UNIQUE (source, event_id)
) STRICT;

-- What the rows of an event say, in one locale: written once by each transaction that stores some of its rows.
CREATE TABLE signal_text (
    event        INTEGER NOT NULL,
    -- Drawn at random: it is a part of the ids of notifications.
    text         INTEGER NOT NULL,
    kind         TEXT    NOT NULL,
    title        TEXT    NOT NULL,
    content      TEXT    NOT NULL,
    locale       TEXT    NOT NULL,
    -- JSON exactly as the producer wrote it.
    data         TEXT    NOT NULL,
    actor_id     TEXT,
    organizer_id TEXT,
    merchant_id  TEXT,
    -- When the activity occurred, as its producer said; NULL where it said nothing.
    occurred_at  INTEGER,
    created_at   INTEGER NOT NULL,
    PRIMARY KEY (event, text)
) STRICT;

CREATE INDEX signal_text_age ON signal_text (created_at);

CREATE TABLE signal_notification (
    inbox   INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    event   INTEGER NOT NULL,
    -- A code of the type: two types may share one.
    kind    INTEGER NOT NULL,
    text    INTEGER NOT NULL,
    -- For one that was read by itself; signal_mark has the others.
    read_at INTEGER,
    -- The order within an inbox: pages, and what was missed.
    PRIMARY KEY (inbox, seq),
    -- One row per event and recipient, however often the event is delivered.
    UNIQUE (event, inbox)
) STRICT, WITHOUT ROWID;

CREATE INDEX signal_notification_single ON signal_notification (inbox, seq) WHERE read_at IS NOT NULL;

-- Everything of an inbox up to a seq became read at once: one row, however much it was.
CREATE TABLE signal_mark (
    inbox   INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    read_at INTEGER NOT NULL,
    PRIMARY KEY (inbox, seq)
) STRICT, WITHOUT ROWID;

-- What was removed, so that a redelivered event does not bring it back.
CREATE TABLE signal_tombstone (
    event      INTEGER NOT NULL,
    inbox      INTEGER NOT NULL,
    deleted_at INTEGER NOT NULL,
    PRIMARY KEY (event, inbox)
) STRICT, WITHOUT ROWID;

CREATE INDEX signal_tombstone_age ON signal_tombstone (deleted_at);

-- Carrying over. An inbox exists for every row; one that somebody removed by hand is made again.
INSERT INTO signal_inbox (recipient_id, last_seq, unread_count, version)
SELECT recipient_id, last_seq, unread_count, version FROM signal_inbox_before ORDER BY recipient_id;
INSERT INTO signal_inbox (recipient_id, last_seq, unread_count, version)
SELECT o.recipient_id, max(o.seq), sum(o.read_at IS NULL), max(o.seq) FROM signal_notification_before o
WHERE NOT EXISTS (SELECT 1 FROM signal_inbox s WHERE s.recipient_id = o.recipient_id) GROUP BY o.recipient_id;
INSERT INTO signal_inbox (recipient_id, last_seq, unread_count, version)
SELECT DISTINCT o.recipient_id, 0, 0, 0 FROM signal_tombstone_before o
WHERE NOT EXISTS (SELECT 1 FROM signal_inbox s WHERE s.recipient_id = o.recipient_id);

INSERT INTO signal_event (source, event_id)
SELECT source, event_id FROM signal_notification_before UNION SELECT source, event_id FROM signal_tombstone_before;

-- Texts of an event that differ in anything get numbers of their own.
CREATE TABLE signal_carried AS
SELECT v.event, s.inbox, o.seq, o.read_at, o.kind, o.title, o.content, o.locale, o.data, o.actor_id, o.organizer_id, o.merchant_id, o.occurred_at, o.created_at,
    (1 + (SELECT max(epoch) & 1073741823 FROM signal_epoch) + 7919 * dense_rank() OVER (PARTITION BY v.event ORDER BY o.created_at, o.kind, o.locale, o.title,
        o.content, o.data, o.actor_id, o.organizer_id, o.merchant_id, o.occurred_at)) % 2147483648 AS text
FROM signal_notification_before o
JOIN signal_event v ON v.source = o.source AND v.event_id = o.event_id
JOIN signal_inbox s ON s.recipient_id = o.recipient_id;

INSERT INTO signal_text (event, text, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, occurred_at, created_at)
SELECT event, text, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, occurred_at, created_at FROM signal_carried
GROUP BY event, text;

-- The code of a type: for each character, 31 times what came before and the number of the character, modulo 2^31 - 1.
CREATE TABLE signal_code AS
WITH RECURSIVE kinds AS (
    SELECT DISTINCT kind FROM signal_text
), codes (kind, n, code) AS (
    SELECT kind, 0, 0 FROM kinds
    UNION ALL
    SELECT kind, n + 1, (code * 31 + unicode(substr(kind, n + 1, 1))) % 2147483647 FROM codes WHERE n < length(kind)
)
SELECT kind, code FROM codes WHERE n = length(kind);

INSERT INTO signal_notification (inbox, seq, event, kind, text, read_at)
SELECT c.inbox, c.seq, c.event, k.code, c.text, c.read_at FROM signal_carried c JOIN signal_code k ON k.kind = c.kind ORDER BY c.inbox, c.seq;

INSERT INTO signal_tombstone (event, inbox, deleted_at)
SELECT v.event, s.inbox, o.deleted_at FROM signal_tombstone_before o
JOIN signal_event v ON v.source = o.source AND v.event_id = o.event_id
JOIN signal_inbox s ON s.recipient_id = o.recipient_id;

UPDATE signal_inbox SET read_seq = coalesce(
    (SELECT n.seq - 1 FROM signal_notification n WHERE n.inbox = signal_inbox.inbox AND n.read_at IS NULL ORDER BY n.seq LIMIT 1), last_seq);

-- The ids of notifications are other ones now: clients start over.
UPDATE signal_epoch SET epoch = abs(random() % 9007199254740991);

DROP TABLE signal_code;
DROP TABLE signal_carried;
DROP TABLE signal_notification_before;
DROP TABLE signal_tombstone_before;
DROP TABLE signal_inbox_before;
