-- Times are integers: unix seconds where a signature or a bearer ends (`expires`), unix milliseconds elsewhere (`…_at`).

CREATE TABLE fleet (
    id      BLOB PRIMARY KEY NOT NULL
) STRICT;

CREATE TABLE machines (
    name              TEXT PRIMARY KEY NOT NULL,
    class             TEXT NOT NULL,
    system            TEXT NOT NULL,
    tags              TEXT NOT NULL,
    added_at          INTEGER NOT NULL,
    -- Who it is. Each enrolment begins a new life, with sequence numbers and events of its own.
    enrolment         INTEGER NOT NULL DEFAULT 0,
    key               BLOB UNIQUE,
    age               TEXT,
    agent             TEXT,
    enrolled_at       INTEGER,
    revoked_at        INTEGER,
    -- Its last check-in, and what answers the same one again.
    seq               INTEGER NOT NULL DEFAULT 0,
    body_sha256       BLOB,
    bearer_salt       BLOB,
    reply             TEXT,
    observed          TEXT,
    seen_at           INTEGER,
    clock_skew_ms     INTEGER,
    clone_alarm_at    INTEGER,
    -- Its events.
    reports_through   INTEGER NOT NULL DEFAULT 0,
    outcome           TEXT,
    -- Its TUF repository.
    published         INTEGER,
    timestamp         BLOB,
    timestamp_version INTEGER NOT NULL DEFAULT 0,
    timestamp_expires INTEGER,
    timestamp_key     BLOB
) STRICT;

CREATE TABLE tokens (
    id         BLOB PRIMARY KEY NOT NULL,
    machine    TEXT NOT NULL REFERENCES machines (name),
    class      TEXT NOT NULL,
    check_key  BLOB NOT NULL,
    expires    INTEGER NOT NULL,
    made_at    INTEGER NOT NULL,
    used_at    INTEGER,
    used_by    BLOB
) STRICT;
CREATE INDEX tokens_of_a_machine ON tokens (machine);

-- A bearer is a machine's or an operator's; only its hash is here.
CREATE TABLE bearers (
    hash     BLOB PRIMARY KEY NOT NULL,
    machine  TEXT REFERENCES machines (name),
    operator BLOB,
    expires  INTEGER NOT NULL,
    CHECK ((machine IS NULL) <> (operator IS NULL))
) STRICT;
CREATE INDEX bearers_of_a_machine ON bearers (machine);
CREATE INDEX bearers_by_end ON bearers (expires);

CREATE TABLE nonces (
    key     BLOB NOT NULL,
    nonce   BLOB NOT NULL,
    expires INTEGER NOT NULL,
    PRIMARY KEY (key, nonce)
) STRICT;
CREATE INDEX nonces_by_end ON nonces (expires);

CREATE TABLE events (
    machine     TEXT NOT NULL REFERENCES machines (name),
    enrolment   INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    generation  INTEGER,
    received_at INTEGER NOT NULL,
    event       TEXT NOT NULL,
    PRIMARY KEY (machine, enrolment, seq)
) STRICT;
CREATE INDEX events_of_a_generation ON events (machine, generation, enrolment, seq);

CREATE TABLE generations (
    machine       TEXT NOT NULL REFERENCES machines (name),
    generation    INTEGER NOT NULL,
    targets       BLOB NOT NULL,
    snapshot      BLOB NOT NULL,
    target        BLOB NOT NULL,
    target_sha256 BLOB NOT NULL,
    expires       INTEGER NOT NULL,
    published_at  INTEGER NOT NULL,
    published_by  BLOB NOT NULL,
    PRIMARY KEY (machine, generation)
) STRICT;
CREATE INDEX generations_by_hash ON generations (machine, target_sha256);

-- One row a machine: its newest change. Numbers are never reused, so the highest is the cursor of the fleet.
CREATE TABLE changes (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    machine TEXT NOT NULL UNIQUE REFERENCES machines (name)
) STRICT;

CREATE TABLE audit (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    operator BLOB NOT NULL,
    action   TEXT NOT NULL,
    machine  TEXT,
    detail   TEXT NOT NULL
) STRICT;
CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER audit_is_never_shortened BEFORE DELETE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
