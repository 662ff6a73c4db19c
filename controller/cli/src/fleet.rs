//! The machines as the controller shows them: what is wrong with one and why it waits, whose key is proved,
//! what machines signed in a rollout, following an update or a rollout, and signed requests to one.

pub mod condition;
pub mod past;
pub mod proven;
pub mod requests;
pub mod rollouts;
pub mod said;
pub mod watch;
pub mod why;
pub mod witnesses;
