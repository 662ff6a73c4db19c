-- How many generations of a machine were forgotten, for its history.
ALTER TABLE machines ADD COLUMN generations_forgotten INTEGER NOT NULL DEFAULT 0;

-- The audit log begins after this entry (0: with the first one). Entries up to it were exported; they are removed in
-- small steps, and nobody reads them any more.
ALTER TABLE fleet ADD COLUMN audit_cut INTEGER NOT NULL DEFAULT 0;
ALTER TABLE fleet ADD COLUMN audit_cut_hash BLOB;

-- Only forward, only at an entry that is there, and only in the transaction that logs it.
CREATE TRIGGER audit_is_cut_at_its_entries BEFORE UPDATE OF audit_cut, audit_cut_hash ON fleet
WHEN NEW.audit_cut <= OLD.audit_cut
  OR NOT EXISTS (SELECT 1 FROM audit WHERE id = NEW.audit_cut AND hash = NEW.audit_cut_hash)
  OR NOT EXISTS (SELECT 1 FROM audit WHERE id = (SELECT max(id) FROM audit) AND id > NEW.audit_cut AND action = 'log-cut'
       AND detail LIKE 'through entry ' || NEW.audit_cut || ' ' || lower(hex(NEW.audit_cut_hash)) || '%')
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;

DROP TRIGGER audit_entries_are_never_removed;
CREATE TRIGGER audit_entries_are_never_removed BEFORE DELETE ON audit
WHEN OLD.id > coalesce((SELECT audit_cut FROM fleet), 0) BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
DROP TRIGGER audit_entries_are_only_added;
CREATE TRIGGER audit_entries_are_only_added BEFORE INSERT ON audit
WHEN NEW.id <> coalesce((SELECT max(id) FROM audit), (SELECT audit_cut FROM fleet), 0) + 1 BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;

CREATE INDEX tokens_by_end ON tokens (expires);
CREATE INDEX attacks_by_end ON attacks (ended_at) WHERE ended_at IS NOT NULL;
