//! Muster's agent. See `docs/design.md` for how its rooms fit together.
