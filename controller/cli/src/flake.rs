//! Reading flakes: which machines they describe, and what each evaluates to; and copying derivations to and
//! from the cache. `evaluate` uses `discover`, `facts`, `inventory`, `options` and `pin`; `systems` and
//! `notes` use `evaluate`; `push` uses `upload` for derivations, and
//! copies all else through `gate`.

mod advice;
pub mod derivations;
pub mod discover;
mod each;
pub mod evaluate;
pub mod facts;
pub mod gate;
pub mod inventory;
pub mod machines;
pub mod message;
pub mod nix;
pub mod notes;
pub mod options;
pub mod pin;
pub mod push;
pub mod systems;
pub mod text;
mod upload;
