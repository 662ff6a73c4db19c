-- A machine names its count of events, and begins another one where its numbers were lies. The numbers in `events` are the
-- controller's own.
ALTER TABLE machines ADD COLUMN report_stream TEXT;
-- Number and hash of the check-ins before the last one (store/checkin.rs), so that one that was slow raises no alarm.
ALTER TABLE machines ADD COLUMN earlier BLOB;
