//! The machines as the controller shows them: what is wrong with one, whose key is proved, following an
//! update or a rollout, and signed requests to one.

pub mod condition;
pub mod past;
pub mod proven;
pub mod requests;
pub mod rollouts;
pub mod said;
pub mod watch;
pub mod why;
pub mod witnesses;
