-- A bearer of a machine has the number of the check-in that it came with: its newest stay, however many came in one
-- second. Those from before have none, and end first.
ALTER TABLE bearers ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;
