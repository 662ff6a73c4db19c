//! A machine's part in a rollout: what holds a gated target back (`turn`), and how long the machine runs it
//! well before it says so (`followed`).

mod followed;
mod turn;

pub use followed::{Counted, Followed, Seen};
pub use turn::{Answered, Says, Turn, held, is_turn};
