//! Flakes as they are: which machines they describe, and what each evaluates to.

pub mod evaluate;
pub mod facts;
pub mod nix;
pub mod push;
