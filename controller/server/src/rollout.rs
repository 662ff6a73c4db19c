//! What the controller does about rollouts: whose turn it is, when a rollout is halted, and what everybody
//! waits for. It can hold a machine back; that its gate is proven, each machine checks by itself.

pub mod deciding;
pub mod driver;
pub mod engine;
pub mod held;
mod observed;
mod standing;
pub mod statements;
#[cfg(test)]
mod tests;
