-- A machine names its count of events, and begins another one where its numbers were lies. The numbers in `events` are the
-- controller's own.
ALTER TABLE machines ADD COLUMN report_stream TEXT;
-- Number and hash of the check-ins before the last one (store/checkin.rs), so that one that was slow raises no alarm.
ALTER TABLE machines ADD COLUMN earlier BLOB;

-- What operators ask of machines, signed by them (protocol/src/request.rs).
CREATE TABLE requests (
    machine   TEXT NOT NULL REFERENCES machines (name),
    id        BLOB NOT NULL,
    asks      TEXT NOT NULL,
    document  TEXT NOT NULL,
    -- Unix seconds.
    ends      INTEGER NOT NULL,
    handed_on INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (machine, id)
) STRICT;
CREATE INDEX requests_by_end ON requests (ends);
