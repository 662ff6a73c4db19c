-- The signed plans of rollouts (protocol/src/plan.rs), as the bytes that targets name by their hash.
CREATE TABLE plans (
    hash     BYTEA PRIMARY KEY,
    document BYTEA NOT NULL
);

-- One rollout for each plan.
CREATE TABLE rollouts (
    plan    BYTEA PRIMARY KEY REFERENCES plans (hash),
    name    TEXT NOT NULL,
    budget  BIGINT NOT NULL,
    -- Unix milliseconds.
    made_at BIGINT NOT NULL,
    made_by BYTEA NOT NULL,
    -- What an operator asked of it last, and what was decided last, as JSON (core/rollouts.rs).
    asked   TEXT,
    decided TEXT,
    -- Whether there is anything left to decide.
    open    BIGINT NOT NULL DEFAULT 1
);
CREATE INDEX rollouts_by_time ON rollouts (made_at);

-- What is recorded of a machine in a rollout: signatures over what it said, and its first failure.
CREATE TABLE rollout_members (
    plan      BYTEA NOT NULL REFERENCES plans (hash),
    machine   TEXT COLLATE "C" NOT NULL REFERENCES machines (name),
    confirmed BYTEA,
    soaked    BYTEA,
    withdrawn BYTEA,
    failed    TEXT,
    -- An operator has looked at the failure, and it no longer counts.
    forgiven  BIGINT NOT NULL DEFAULT 0,
    -- Its word counts no longer: 1, it enrolled anew; 2, an operator revoked it.
    void      BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (plan, machine)
);
CREATE INDEX rollouts_of_a_machine ON rollout_members (machine);

-- The plan that the target names.
ALTER TABLE generations ADD COLUMN plan BYTEA REFERENCES plans (hash);
CREATE INDEX generations_of_a_plan ON generations (plan) WHERE plan IS NOT NULL;

-- Where the machine is in the rollout of its latest generation, as JSON (core/rollouts.rs); whether its leave changed since
-- its last check-in; and a hash of what it last said of a plan and is stored.
ALTER TABLE machines ADD COLUMN rollout TEXT;
ALTER TABLE machines ADD COLUMN turn_changed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN vouched BYTEA;

-- Who pulled the brake, as JSON.
ALTER TABLE fleet ADD COLUMN brake TEXT;
