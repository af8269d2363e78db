-- When the activity of a notification occurred, as its producer said. NULL where it said nothing, and in rows that are older than this column.
ALTER TABLE signal_notification ADD COLUMN occurred_at INTEGER;
