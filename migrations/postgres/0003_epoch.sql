-- Which history of the inboxes this database holds: one row. A restore from an older copy, or a failover that lost rows, goes back in time, so that
-- numbers which clients know are given again. Whoever notices it writes another epoch, and clients that see one start over.
CREATE TABLE signal_epoch (
    id        smallint NOT NULL PRIMARY KEY CHECK (id = 1),
    -- Without an order.
    epoch     bigint   NOT NULL,
    -- Where it was last seen. What the server does not tell is NULL: the server's identity, its timeline, and the database and table in it.
    server    text     COLLATE "C",
    timeline  text     COLLATE "C",
    relation  text     COLLATE "C"
);

INSERT INTO signal_epoch (id, epoch) VALUES (1, (random() * 9007199254740991)::bigint);
