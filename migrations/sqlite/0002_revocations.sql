-- Tokens that are refused before they expire: the set that every instance reads.
CREATE TABLE signal_revocation (
    -- What name is: 'user' (a subject) or 'token' (a jti).
    kind          TEXT    NOT NULL CHECK (kind IN ('user', 'token')),
    name          TEXT    NOT NULL,
    -- Tokens issued before this time are refused ...
    issued_before INTEGER NOT NULL,
    -- ... until this time: all of them have expired by then.
    ends_at       INTEGER NOT NULL,
    made_at       INTEGER NOT NULL,
    -- The order of changes, in which readers go on where they stopped.
    version       INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX signal_revocation_version ON signal_revocation (version);
CREATE INDEX signal_revocation_end ON signal_revocation (ends_at);

-- One row: the number of the last change. It only rises, also when the rows with the highest numbers are removed.
CREATE TABLE signal_revocation_state (
    id           INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    last_version INTEGER NOT NULL
) STRICT;
