-- Which history of the inboxes this file holds: one row. An older copy that is put back goes back in time, so that numbers which clients know are
-- given again. Whoever notices it writes another epoch, and clients that see one start over.
CREATE TABLE signal_epoch (
    id        INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    -- Without an order.
    epoch     INTEGER NOT NULL,
    -- As in PostgreSQL; a file has no such names.
    server    TEXT,
    timeline  TEXT,
    relation  TEXT
) STRICT;

INSERT INTO signal_epoch (id, epoch) VALUES (1, random());
