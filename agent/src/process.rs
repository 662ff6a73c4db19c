//! Child processes with limits: each leads a group of its own, is the first to go when memory runs out, and is ended with all
//! that it started. Knows nothing of Nix or of a system.
//!
//! `followed` (heard line by line, without blocking), `blocking` (output in a file that outlives this process) and `captured`
//! (short, through pipes) stand on `limits`, `family` and `table`; nothing here depends on this file.

mod blocking;
mod captured;
mod error;
mod family;
mod followed;
mod limits;
mod output;
mod table;

pub use blocking::{Finished, ask, run};
pub use captured::capture;
pub use error::ProcessError;
pub use family::{Other, end_leftovers, find};
pub use followed::{Ended, Limits, Listener, Plain, follow, lines};
pub use limits::free_bytes;
pub use output::without_colours;
