//! What a child process may use of the machine: its OOM priority, its memory, the free space that must
//! remain.

use std::io;
use std::path::Path;

#[cfg(target_os = "linux")]
use rustix::process::Pid;

/// How soon the kernel kills what the agent starts when memory runs out: before services, which have 0.
const OOM_SCORE: &str = "250";

/// Removes a child's exemption from the OOM killer, which its unit gives only to the agent.
pub fn unprotect(pid: u32) {
    if cfg!(target_os = "linux") {
        // A child that has already ended needs nothing.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE);
    }
}

/// Whether the kernel enforces a memory limit on another process. macOS limits only address space (RLIMIT_AS
/// and RLIMIT_DATA), of which a process has gigabytes from the start, and only for the calling process;
/// limits on used memory (jetsam) are reserved for Apple.
pub const LIMITS_MEMORY: bool = cfg!(target_os = "linux");

/// Limits a child's own memory. The kernel counts what is writable, so address space that is only reserved is
/// free.
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

/// Both of them, for a child that was just started.
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
