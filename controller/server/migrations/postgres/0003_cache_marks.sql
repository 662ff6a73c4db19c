-- Files of the cache that nothing needs (core/garbage.rs): since when operators are told that they are not there, or
-- since when they are being removed.
CREATE TABLE cache_marks (
    name     TEXT COLLATE "C" PRIMARY KEY,
    -- Unix milliseconds.
    at       BIGINT NOT NULL,
    removing BIGINT NOT NULL DEFAULT 0
);
