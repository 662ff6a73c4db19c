-- The newest schema of SQLite's, in PostgreSQL's types. Times are integers: unix seconds where something ends (`expires`,
-- `ends`), unix milliseconds elsewhere (`…_at`). Texts that others wrote have their character 0 escaped
-- (store/postgres/columns.rs). Names sort by their bytes.

CREATE TABLE fleet (
    id             BYTEA PRIMARY KEY,
    -- The newest root that the log tells of.
    root_version   BIGINT NOT NULL DEFAULT 0,
    -- The audit log begins after this entry (0: with the first one). Entries up to it were exported; they are removed in
    -- small steps, and nobody reads them any more.
    audit_cut      BIGINT NOT NULL DEFAULT 0,
    audit_cut_hash BYTEA
);

-- The chain of roots, which several controllers share.
CREATE TABLE roots (
    version  BIGINT PRIMARY KEY CHECK (version > 0),
    document BYTEA NOT NULL
);

CREATE TABLE machines (
    name                  TEXT COLLATE "C" PRIMARY KEY,
    class                 TEXT NOT NULL,
    system                TEXT NOT NULL,
    tags                  TEXT NOT NULL,
    added_at              BIGINT NOT NULL,
    -- Who it is. Each enrolment begins a new life, with sequence numbers and events of its own.
    enrolment             BIGINT NOT NULL DEFAULT 0,
    key                   BYTEA UNIQUE,
    age                   TEXT,
    agent                 TEXT,
    enrolled_at           BIGINT,
    revoked_at            BIGINT,
    -- Its last check-in, and what answers the same one again.
    seq                   BIGINT NOT NULL DEFAULT 0,
    body_sha256           BYTEA,
    -- How its bearers are checked (core/seals.rs): the counter ends them; end and number of the key make the last one
    -- again. One of version 0.1 has a salt.
    bearer_counter        BIGINT NOT NULL DEFAULT 0,
    bearer_key            BIGINT,
    bearer_expires        BIGINT,
    bearer_salt           BYTEA,
    reply                 TEXT,
    observed              TEXT,
    seen_at               BIGINT,
    clock_skew_ms         BIGINT,
    clone_alarm_at        BIGINT,
    -- Number and hash of the check-ins before the last one, so that one that was slow raises no alarm.
    earlier               BYTEA,
    -- Its events, how much they take, and the name that the machine gave its count.
    reports_through       BIGINT NOT NULL DEFAULT 0,
    report_stream         TEXT,
    events_bytes          BIGINT NOT NULL DEFAULT 0,
    outcome               TEXT,
    -- Its TUF repository.
    published             BIGINT,
    timestamp             BYTEA,
    timestamp_version     BIGINT NOT NULL DEFAULT 0,
    timestamp_expires     BIGINT,
    timestamp_key         BYTEA,
    key_rotated_at        BIGINT,
    key_rotation_asked_at BIGINT,
    -- How many of its generations were forgotten, for its history.
    generations_forgotten BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

CREATE TABLE tokens (
    id        BYTEA PRIMARY KEY,
    machine   TEXT COLLATE "C" NOT NULL REFERENCES machines (name),
    class     TEXT NOT NULL,
    check_key BYTEA NOT NULL,
    expires   BIGINT NOT NULL,
    made_at   BIGINT NOT NULL,
    used_at   BIGINT,
    used_by   BYTEA
);
CREATE INDEX tokens_of_a_machine ON tokens (machine);
CREATE INDEX tokens_by_end ON tokens (expires);

-- An operator's bearers, and what is left of those that version 0.1 gave machines; only their hashes are here.
CREATE TABLE bearers (
    hash     BYTEA PRIMARY KEY,
    machine  TEXT COLLATE "C" REFERENCES machines (name),
    operator BYTEA,
    expires  BIGINT NOT NULL,
    seq      BIGINT NOT NULL DEFAULT 0,
    CHECK ((machine IS NULL) <> (operator IS NULL))
);
CREATE INDEX bearers_of_a_machine ON bearers (machine);
CREATE INDEX bearers_by_end ON bearers (expires);

CREATE TABLE nonces (
    key     BYTEA NOT NULL,
    nonce   BYTEA NOT NULL,
    expires BIGINT NOT NULL,
    PRIMARY KEY (key, nonce)
);
CREATE INDEX nonces_by_end ON nonces (expires);

CREATE TABLE events (
    machine     TEXT COLLATE "C" NOT NULL REFERENCES machines (name),
    enrolment   BIGINT NOT NULL,
    seq         BIGINT NOT NULL,
    generation  BIGINT,
    received_at BIGINT NOT NULL,
    event       TEXT NOT NULL,
    -- Whether it decided on a generation: those are kept longest.
    decides     BOOLEAN NOT NULL,
    PRIMARY KEY (machine, enrolment, seq)
);
CREATE INDEX events_of_a_generation ON events (machine, generation, enrolment, seq);
CREATE INDEX events_by_age ON events (received_at) WHERE NOT decides;
CREATE INDEX events_to_forget ON events (machine, decides, enrolment, seq);

CREATE TABLE generations (
    machine       TEXT COLLATE "C" NOT NULL REFERENCES machines (name),
    generation    BIGINT NOT NULL,
    targets       BYTEA NOT NULL,
    snapshot      BYTEA NOT NULL,
    target        BYTEA NOT NULL,
    target_sha256 BYTEA NOT NULL,
    expires       BIGINT NOT NULL,
    published_at  BIGINT NOT NULL,
    published_by  BYTEA NOT NULL,
    -- The operators' keys that signed it, as JSON; none where version 0.1 published it.
    signers       TEXT NOT NULL DEFAULT '[]',
    PRIMARY KEY (machine, generation)
);
CREATE INDEX generations_by_hash ON generations (machine, target_sha256);

-- One row a machine: its newest change, and the controller that made it. The others ask here what they missed. Numbers
-- are drawn in the order of commits.
CREATE TABLE changes (
    id       BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    machine  TEXT COLLATE "C" NOT NULL UNIQUE REFERENCES machines (name),
    instance BIGINT NOT NULL
);

CREATE TABLE attacks (
    id          BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    machine     TEXT COLLATE "C" NOT NULL REFERENCES machines (name),
    attack      TEXT NOT NULL,
    detail      TEXT NOT NULL,
    generation  BIGINT,
    at          BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    ended_at    BIGINT
);
CREATE INDEX attacks_of_a_machine ON attacks (machine, id);
-- A check-in asks whether there is one.
CREATE INDEX attacks_going_on ON attacks (machine) WHERE ended_at IS NULL;
CREATE INDEX attacks_by_end ON attacks (ended_at) WHERE ended_at IS NOT NULL;

-- Metadata that too few have signed yet (protocol/src/draft.rs). The id is the hash of what is signed.
CREATE TABLE drafts (
    id       BYTEA PRIMARY KEY,
    kind     TEXT NOT NULL,
    made_at  BIGINT NOT NULL,
    ends     BIGINT NOT NULL,
    document TEXT NOT NULL
);

-- What operators ask of machines, signed by them (protocol/src/request.rs).
CREATE TABLE requests (
    machine   TEXT COLLATE "C" NOT NULL REFERENCES machines (name),
    id        BYTEA NOT NULL,
    asks      TEXT NOT NULL,
    document  TEXT NOT NULL,
    ends      BIGINT NOT NULL,
    handed_on BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (machine, id)
);
CREATE INDEX requests_by_end ON requests (ends);

CREATE TABLE audit (
    id       BIGINT PRIMARY KEY,
    at       BIGINT NOT NULL,
    -- None where a machine or the controller itself was the cause.
    operator BYTEA,
    action   TEXT NOT NULL,
    machine  TEXT COLLATE "C",
    detail   TEXT NOT NULL,
    -- Over the entry and the hash before it (protocol/src/audit.rs).
    hash     BYTEA NOT NULL
);
CREATE INDEX audit_of_a_machine ON audit (machine, id);
-- What the log has of one kind, for those who ask it before they write more of that kind.
CREATE INDEX audit_of_a_kind ON audit (machine, action, at);

-- Files of the cache that nothing needs (core/garbage.rs): since when operators are told that they are not there, or
-- since when they are being removed.
CREATE TABLE cache_marks (
    name     TEXT COLLATE "C" PRIMARY KEY,
    at       BIGINT NOT NULL,
    removing BIGINT NOT NULL DEFAULT 0
);

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only';
END $$;
CREATE TRIGGER audit_entries_are_never_changed BEFORE UPDATE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
CREATE FUNCTION audit_is_only_forgotten_where_it_was_cut() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.id > coalesce((SELECT audit_cut FROM fleet), 0) THEN
        RAISE EXCEPTION 'the audit log is append-only';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER audit_entries_are_never_removed BEFORE DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_is_only_forgotten_where_it_was_cut();
-- The rows of a statement see one another, so several entries may be added in one.
CREATE FUNCTION audit_is_only_added_to() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id <> coalesce((SELECT max(id) FROM audit), (SELECT audit_cut FROM fleet), 0) + 1 THEN
        RAISE EXCEPTION 'the audit log is append-only';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER audit_entries_are_only_added BEFORE INSERT ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_is_only_added_to();
-- Only forward, only at an entry that is there, and only in the transaction that logs it.
CREATE FUNCTION audit_is_cut_at_its_entries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.audit_cut <= OLD.audit_cut
      OR NOT EXISTS (SELECT 1 FROM audit WHERE id = NEW.audit_cut AND hash = NEW.audit_cut_hash)
      OR NOT EXISTS (SELECT 1 FROM audit WHERE id = (SELECT max(id) FROM audit) AND id > NEW.audit_cut AND action = 'log-cut'
           AND starts_with(detail, 'through entry ' || NEW.audit_cut || ' ' || encode(NEW.audit_cut_hash, 'hex'))) THEN
        RAISE EXCEPTION 'the audit log is append-only';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER audit_is_cut_at_its_entries BEFORE UPDATE OF audit_cut, audit_cut_hash ON fleet
    FOR EACH ROW EXECUTE FUNCTION audit_is_cut_at_its_entries();
