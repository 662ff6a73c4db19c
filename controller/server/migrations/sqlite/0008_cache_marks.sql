-- Files of the cache that nothing needs (core/garbage.rs): since when operators are told that they are not there, or
-- since when they are being removed.
CREATE TABLE cache_marks (
    name     TEXT PRIMARY KEY NOT NULL,
    -- Unix milliseconds.
    at       INTEGER NOT NULL,
    removing INTEGER NOT NULL DEFAULT 0
) STRICT;
