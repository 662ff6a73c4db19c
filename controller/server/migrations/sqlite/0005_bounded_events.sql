-- How much a machine's events take, and which of them decided on a generation: those are kept longest.
ALTER TABLE machines ADD COLUMN events_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE events ADD COLUMN decides INTEGER NOT NULL DEFAULT 0;
UPDATE events SET decides = 1
WHERE generation IS NOT NULL AND length(event) <= 65536
  -- SQLite refuses some texts that were stored, those that nest deeply for example.
  AND CASE WHEN json_valid(event) THEN json_extract(event, '$.kind') END IN ('confirmed', 'rolled-back', 'failed', 'needs-human');
UPDATE machines SET events_bytes =
    (SELECT coalesce(sum(length(CAST(event AS BLOB)) + 128), 0) FROM events WHERE events.machine = machines.name);
-- What the log has of one kind, for those who ask it before they write more of that kind.
CREATE INDEX audit_of_a_kind ON audit (machine, action, at);
CREATE INDEX events_by_age ON events (received_at) WHERE decides = 0;
CREATE INDEX events_to_forget ON events (machine, decides, enrolment, seq);
