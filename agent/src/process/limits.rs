//! What a child process may take of the machine: its place when memory runs out, its memory, the free space that must stay.

use std::io;
use std::path::Path;

#[cfg(target_os = "linux")]
use rustix::process::Pid;

/// How soon the kernel ends what the agent starts when memory runs out: before services, which have 0.
const OOM_SCORE: &str = "250";

/// Takes from a child that the kernel kills it last: that is the agent's alone, whose unit says so.
pub fn unprotect(pid: u32) {
    if cfg!(target_os = "linux") {
        // A child that has ended already needs nothing.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE);
    }
}

/// Whether the kernel holds another process to a limit of memory. That of macOS limits address space alone (RLIMIT_AS and
/// RLIMIT_DATA), of which a process has gigabytes before it begins, and a process sets it for itself; limits of what is in use
/// (jetsam) are Apple's own.
pub const LIMITS_MEMORY: bool = cfg!(target_os = "linux");

/// Holds a child to so much memory of its own. The kernel counts what may be written, so address space that is only
/// reserved is free.
#[cfg(target_os = "linux")]
pub fn limit_memory(pid: u32, bytes: u64) {
    use rustix::process::{Resource, Rlimit, prlimit};
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    if let Err(error) = prlimit(Some(pid), Resource::Data, limit) {
        tracing::debug!(%error, "a program has no memory limit");
    }
}

/// See [`LIMITS_MEMORY`].
#[cfg(not(target_os = "linux"))]
pub fn limit_memory(_: u32, _: u64) {}

/// Both of them, for a child that was started just now.
pub fn restrict(pid: Option<u32>, memory: Option<u64>) {
    let Some(pid) = pid else { return };
    unprotect(pid);
    if let Some(bytes) = memory {
        limit_memory(pid, bytes);
    }
}

/// What an unprivileged process could still write below `folder`.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
