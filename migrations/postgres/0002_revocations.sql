-- Tokens that are refused before they expire: the set that every instance reads.
CREATE TABLE signal_revocation (
    -- What name is: 'user' (a subject) or 'token' (a jti).
    kind          text        COLLATE "C" NOT NULL CHECK (kind IN ('user', 'token')),
    name          text        COLLATE "C" NOT NULL,
    -- Tokens issued before this time are refused ...
    issued_before timestamptz NOT NULL,
    -- ... until this time: all of them have expired by then.
    ends_at       timestamptz NOT NULL,
    made_at       timestamptz NOT NULL,
    -- The order of changes, in which readers go on where they stopped.
    version       bigint      NOT NULL,
    CONSTRAINT signal_revocation_pkey PRIMARY KEY (kind, name)
);

CREATE INDEX signal_revocation_version ON signal_revocation (version);
CREATE INDEX signal_revocation_end ON signal_revocation (ends_at);

-- One row. Each change takes its number here and holds the row until it commits, so numbers become visible in their order: whoever sees a number
-- sees every lower one. A sequence would not do, because a lower number may commit later.
CREATE TABLE signal_revocation_state (
    id           smallint NOT NULL PRIMARY KEY CHECK (id = 1),
    last_version bigint   NOT NULL
);
