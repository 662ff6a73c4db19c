-- A machine's bearers are checked by a key outside the database (core/seals.rs) and by this counter, which ends them.
-- What makes the last one again is its end and the number of its key. Those of version 0.1 stay until they end, and are
-- made again from their salt.
ALTER TABLE machines ADD COLUMN bearer_counter INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN bearer_key INTEGER;
ALTER TABLE machines ADD COLUMN bearer_expires INTEGER;
-- The cursor is kept in memory (notify.rs).
DROP TABLE changes;
-- A check-in asks whether there is one.
CREATE INDEX attacks_going_on ON attacks (machine) WHERE ended_at IS NULL;
