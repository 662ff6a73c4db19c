//! A machine's part in a rollout: what holds a gated target back (`turn`, by what was `heard` of it), and how
//! long the machine runs it well before it says so (`followed`).

mod followed;
mod heard;
mod turn;

pub use followed::{Counted, Followed, Seen};
pub use heard::Heard;
pub use turn::{Answered, Says, Turn, held, is_turn};
