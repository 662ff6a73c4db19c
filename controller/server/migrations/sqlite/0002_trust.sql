-- Several operators, the chained audit log, attacks that machines refused, and keys that machines change.

-- The log of version 0.1 has no chain; what it holds is taken over into the new one at the first start
-- (store/audit.rs), and the old table goes.
ALTER TABLE audit RENAME TO audit_of_0_1;
CREATE TABLE audit (
    id       INTEGER PRIMARY KEY NOT NULL,
    at       INTEGER NOT NULL,
    -- None where a machine or the controller itself was the cause.
    operator BLOB,
    action   TEXT NOT NULL,
    machine  TEXT,
    detail   TEXT NOT NULL,
    -- Over the entry and the hash before it (protocol/src/audit.rs).
    hash     BLOB NOT NULL
) STRICT;
CREATE INDEX audit_of_a_machine ON audit (machine, id);
CREATE TRIGGER audit_entries_are_never_changed BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER audit_entries_are_never_removed BEFORE DELETE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
-- INSERT OR REPLACE removes a row without asking the trigger above.
CREATE TRIGGER audit_entries_are_only_added BEFORE INSERT ON audit
WHEN NEW.id <> coalesce((SELECT max(id) FROM audit), 0) + 1 BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;

-- The newest root that the log tells of.
ALTER TABLE fleet ADD COLUMN root_version INTEGER NOT NULL DEFAULT 0;

ALTER TABLE machines ADD COLUMN key_rotated_at INTEGER;
ALTER TABLE machines ADD COLUMN key_rotation_asked_at INTEGER;

-- The operators' keys that signed it, as JSON; none where version 0.1 published it.
ALTER TABLE generations ADD COLUMN signers TEXT NOT NULL DEFAULT '[]';

CREATE TABLE attacks (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    machine     TEXT NOT NULL REFERENCES machines (name),
    attack      TEXT NOT NULL,
    detail      TEXT NOT NULL,
    generation  INTEGER,
    at          INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    ended_at    INTEGER
) STRICT;
CREATE INDEX attacks_of_a_machine ON attacks (machine, id);

-- Metadata that too few have signed yet (protocol/src/draft.rs). The id is the hash of what is signed.
CREATE TABLE drafts (
    id       BLOB PRIMARY KEY NOT NULL,
    kind     TEXT NOT NULL,
    made_at  INTEGER NOT NULL,
    ends     INTEGER NOT NULL,
    document TEXT NOT NULL
) STRICT;
