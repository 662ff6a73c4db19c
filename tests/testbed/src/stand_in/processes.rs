//! Signals, and which processes belong together.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};

/// systemd gives every start of a unit its own ID; children inherit it.
pub const INVOCATION: &str = "INVOCATION_ID";

/// Sends a signal to one process; not an error if it is already gone.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Sends a signal to a process group; not an error if it is already gone.
pub fn signal_group(group: i32, signal: Signal) {
    if let Some(group) = Pid::from_raw(group) {
        let _ = kill_process_group(group, signal);
    }
}

/// Whether the process exists and has not ended.
pub fn is_alive(pid: i32) -> bool {
    if cfg!(target_os = "linux") {
        return stat(pid).is_some_and(|stat| stat.state != 'Z');
    }
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// The living processes of a session, and those with the invocation ID in their environment.
///
/// Without `/proc` (macOS) none is found, and the process group must do.
pub fn members(session: i32, invocation: Option<&str>) -> Vec<i32> {
    let wanted = invocation.map(|id| format!("{INVOCATION}={id}"));
    every_process()
        .filter(|pid| {
            let Some(stat) = stat(*pid) else { return false };
            stat.state != 'Z'
                && (stat.session == session
                    || wanted.as_deref().is_some_and(|wanted| environment_has(*pid, wanted)))
        })
        .collect()
}

/// The processes, except this one, that belong to a folder: by their program, their arguments, their working
/// directory, or their initial environment.
pub fn of_folder(folder: &Path) -> Vec<i32> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let text = format!("{}/", folder.display());
    every_process()
        .filter(|pid| {
            let place = |what: &str| std::fs::read_link(format!("/proc/{pid}/{what}"));
            let inside = ["exe", "cwd"].iter().any(|what| place(what).is_ok_and(|at| at.starts_with(folder)));
            let named = ["cmdline", "environ"].iter().any(|what| {
                std::fs::read(format!("/proc/{pid}/{what}"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&text))
            });
            *pid != own && (inside || named) && is_alive(*pid)
        })
        .collect()
}

fn every_process() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
}

fn environment_has(pid: i32, wanted: &str) -> bool {
    std::fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|text| text.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()))
}

struct Stat {
    state: char,
    session: i32,
}

/// `proc_pid_stat(5)`: the name in parentheses may contain anything, so fields are counted from its end.
fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let session = fields.nth(2)?.parse().ok()?;
    Some(Stat { state, session })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Duration;

    use muster_protocol::clock::{Clock as _, SystemClock};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_child_is_found_by_its_invocation_until_it_has_ended() {
        let mut child =
            std::process::Command::new("sleep").arg("1000").env(INVOCATION, "0123abc").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // `spawn` returns as soon as the child has its own memory, a moment before the kernel has recorded
        // where the environment is.
        let clock = SystemClock::new();
        while !environment_has(pid, &format!("{INVOCATION}=0123abc")) && clock.awake() < LIMIT {
            std::thread::yield_now();
        }
        assert!(members(-1, Some("0123abc")).contains(&pid));
        assert!(members(-1, Some("0123ab")).is_empty());
        signal(pid, Signal::KILL);
        child.wait().unwrap();
        assert!(!is_alive(pid));
        assert!(members(-1, Some("0123abc")).is_empty());
    }
}
