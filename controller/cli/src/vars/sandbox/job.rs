//! What runs in a sandbox.

use std::path::Path;

use muster_protocol::ids::StorePath;

/// One script, and the folders that it sees.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The shell that runs it, by its name in the store.
    pub bash: &'a Path,
    pub script: &'a StorePath,
    /// Where the store's files lie.
    pub store: &'a Path,
    /// The folder in memory, with `in`, `prompts`, `out` and `work`.
    pub folder: &'a Path,
}
