//! What the controller does about rollouts: whose turn it is, when a rollout is halted, and what everybody
//! waits for. It can hold a machine back; that its gate is proven, each machine checks by itself.

pub mod engine;
mod standing;
#[cfg(test)]
mod tests;
