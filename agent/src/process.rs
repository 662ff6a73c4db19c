//! Child processes with limits: each leads a process group of its own, is the first to be killed when memory
//! runs out, and is ended with everything it started. Independent of Nix and of the system.
//!
//! `followed` (read line by line, async), `blocking` (output in a file that outlives this process) and
//! `captured` (short, through pipes) depend on `limits`, `family` and `table`; nothing here depends on this
//! file.

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
