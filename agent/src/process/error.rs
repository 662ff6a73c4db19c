//! Why a child process did not end by itself.

use std::io;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("{program} cannot be run: {source}")]
    Run { program: String, source: io::Error },
    #[error("{what} took longer than {} s and was ended", limit.as_secs())]
    TimedOut { what: String, limit: Duration },
    #[error("the disk of the Nix store has less than {} MiB left: free some space, for example with \
        nix-collect-garbage", .0 / 1024 / 1024)]
    NoSpace(u64),
    #[error("{what} took more than {} MiB of memory and was ended", limit / 1024 / 1024)]
    TooMuchMemory { what: String, limit: u64 },
}
