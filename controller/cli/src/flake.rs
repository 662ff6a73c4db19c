//! Flakes as they are: which machines they describe, and what each evaluates to.

mod advice;
pub mod discover;
pub mod evaluate;
pub mod facts;
pub mod gate;
pub mod inventory;
pub mod message;
pub mod nix;
pub mod notes;
pub mod options;
pub mod pin;
pub mod push;
pub mod systems;
pub mod text;
