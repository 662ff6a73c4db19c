//! The machines as the controller shows them: what is wrong with one, following an update, and signed
//! requests to one.

pub mod condition;
pub mod past;
pub mod requests;
pub mod watch;
pub mod witnesses;
