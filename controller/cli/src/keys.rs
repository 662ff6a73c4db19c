//! Private keys: in files and in ssh-agent, and how muster.toml and options name them.

pub mod keyfile;
pub mod signers;
pub mod ssh_agent;
pub mod touches;
