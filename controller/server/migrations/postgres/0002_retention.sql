-- How many generations of a machine were forgotten, for its history.
ALTER TABLE machines ADD COLUMN generations_forgotten BIGINT NOT NULL DEFAULT 0;

-- The audit log begins after this entry (0: with the first one). Entries up to it were exported; they are removed in
-- small steps, and nobody reads them any more.
ALTER TABLE fleet ADD COLUMN audit_cut BIGINT NOT NULL DEFAULT 0;
ALTER TABLE fleet ADD COLUMN audit_cut_hash BYTEA;

-- Only forward, only at an entry that is there, and only in the transaction that logs it.
CREATE FUNCTION audit_is_cut_at_an_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.audit_cut <= OLD.audit_cut
        OR NOT EXISTS (SELECT 1 FROM audit WHERE id = NEW.audit_cut AND hash = NEW.audit_cut_hash)
        OR NOT EXISTS (SELECT 1 FROM audit WHERE id = (SELECT max(id) FROM audit) AND id > NEW.audit_cut
            AND action = 'log-cut'
            AND detail LIKE 'through entry ' || NEW.audit_cut || ' ' || encode(NEW.audit_cut_hash, 'hex') || '%')
    THEN
        RAISE EXCEPTION 'the audit log is append-only';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER audit_is_cut_at_its_entries BEFORE UPDATE OF audit_cut, audit_cut_hash ON fleet
    FOR EACH ROW EXECUTE FUNCTION audit_is_cut_at_an_entry();

DROP TRIGGER audit_entries_are_never_changed ON audit;
CREATE TRIGGER audit_entries_are_never_changed BEFORE UPDATE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
CREATE FUNCTION audit_is_shortened_by_its_cut() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.id > coalesce((SELECT audit_cut FROM fleet), 0) THEN
        RAISE EXCEPTION 'the audit log is append-only';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER audit_entries_are_never_removed BEFORE DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_is_shortened_by_its_cut();
CREATE OR REPLACE FUNCTION audit_is_only_added_to() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id <> coalesce((SELECT max(id) FROM audit), (SELECT audit_cut FROM fleet), 0) + 1 THEN
        RAISE EXCEPTION 'the audit log is append-only';
    END IF;
    RETURN NEW;
END $$;

CREATE INDEX tokens_by_end ON tokens (expires);
CREATE INDEX attacks_by_end ON attacks (ended_at) WHERE ended_at IS NOT NULL;
