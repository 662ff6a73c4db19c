//! Flakes as they are: which machines they describe, and what each evaluates to.

pub mod discover;
pub mod evaluate;
pub mod facts;
pub mod inventory;
pub mod nix;
pub mod push;
pub mod systems;
