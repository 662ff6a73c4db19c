//! A process with everything it started, and other programs at work.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};

use super::table::{Process, table};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Family {
    pub groups: BTreeSet<i32>,
    pub members: BTreeSet<i32>,
}

/// A process with its group, its descendants and their groups; and, if this process leads a session of its
/// own, what remains in that session, including a child whose parent has already ended.
///
/// Group and session of this process come from the table: in a process namespace (a container) both are 0 if
/// their leader is outside it, a number that rustix's `getsid` does not support.
pub fn family(table: &[Process], own: i32, first: i32) -> Family {
    let this = table.iter().find(|process| process.pid == own);
    let own_group = this.map(|process| process.group);
    let session = this.and_then(|process| process.session).filter(|id| *id == own);
    let mut family = Family { groups: BTreeSet::from([first]), members: BTreeSet::from([first]) };
    loop {
        let before = family.members.len();
        for process in table.iter().filter(|process| process.pid != own && process.pid > 1) {
            if family.members.contains(&process.parent)
                || family.groups.contains(&process.group)
                || (session.is_some() && process.session == session)
            {
                family.members.insert(process.pid);
                if Some(process.group) != own_group && process.group > 1 {
                    family.groups.insert(process.group);
                }
            }
        }
        if family.members.len() == before {
            return family;
        }
    }
}

pub fn own() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// Sends it to every group and every member.
pub fn signal(family: &Family, signal: Signal) {
    for group in &family.groups {
        if let Some(group) = Pid::from_raw(*group) {
            let _ = kill_process_group(group, signal);
        }
    }
    for pid in &family.members {
        if let Some(pid) = Pid::from_raw(*pid) {
            let _ = kill_process(pid, signal);
        }
    }
}

/// Kills every process that was started as `script` by an activator that is gone, with everything it started.
pub fn end_leftovers(script: &Path) -> io::Result<()> {
    let table = table()?;
    let wanted = script.to_string_lossy();
    let own = own();
    for process in table.iter().filter(|process| process.pid != own) {
        if process.words.split('\0').any(|word| word == wanted) {
            tracing::warn!(pid = process.pid, "ending an activation that was left behind: {wanted}");
            signal(&family(&table, own, process.pid), Signal::KILL);
        }
    }
    Ok(())
}

/// Another program at work, as text for people, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    pub who: String,
    pub age: Duration,
}

/// Another process of this computer's root with a matching word in its command line. Processes that this one
/// started do not count, and other users' processes are not trusted: they may give a program any name.
pub fn find(wanted: impl Fn(&str) -> bool) -> io::Result<Option<Other>> {
    let table = table()?;
    Ok(other(&table, own(), rustix::process::geteuid().as_raw(), wanted))
}

/// The youngest one.
fn other(table: &[Process], own: i32, root: u32, wanted: impl Fn(&str) -> bool) -> Option<Other> {
    let mine = family(table, own, own);
    let others = table.iter().filter(|process| {
        process.user == Some(root) && process.pid != own && !mine.members.contains(&process.pid)
    });
    let found = others.filter_map(|process| {
        let word = process.words.split('\0').find(|word| wanted(word))?;
        Some(Other { who: format!("{word} (process {})", process.pid), age: process.age })
    });
    found.min_by_key(|other| other.age)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use super::*;

    fn lives(pid: i32) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z ")
    }

    #[test]
    fn what_an_activator_left_behind_is_found_by_its_program_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("activate");
        std::fs::write(&script, "sleep 302 & wait").unwrap();
        let mut left = Command::new("/bin/sh").arg(&script).process_group(0).spawn().unwrap();
        let pid = i32::try_from(left.id()).unwrap();
        let child = loop {
            if let Some(child) = table().unwrap().into_iter().find(|process| process.parent == pid) {
                break child.pid;
            }
        };
        end_leftovers(&folder.path().join("another")).unwrap();
        assert!(left.try_wait().unwrap().is_none());
        end_leftovers(&script).unwrap();
        assert!(!left.wait().unwrap().success());
        while lives(child) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn where_the_session_is_led_from_outside_the_namespace_a_family_is_found_and_nobody_else() {
        let process = |pid, parent, group, session| Process {
            pid,
            parent,
            group,
            session,
            user: Some(0),
            age: Duration::ZERO,
            words: String::new(),
        };
        // This process (7) and a stranger (8) are in a group and session whose leader is outside; 21 lost its
        // parent.
        let outside = [
            process(7, 0, 0, Some(0)),
            process(8, 0, 0, Some(0)),
            process(20, 7, 20, Some(0)),
            process(21, 1, 20, Some(0)),
            process(22, 20, 22, Some(22)),
        ];
        let expected = Family { groups: BTreeSet::from([20, 22]), members: BTreeSet::from([20, 21, 22]) };
        assert_eq!(family(&outside, 7, 20), expected);
        // If it leads a session of its own, it kills what remains in that as well.
        let leading = [process(7, 1, 7, Some(7)), process(20, 7, 20, Some(7)), process(30, 1, 30, Some(7))];
        let expected = Family { groups: BTreeSet::from([20, 30]), members: BTreeSet::from([20, 30]) };
        assert_eq!(family(&leading, 7, 20), expected);
    }

    #[test]
    fn failure_mode_20_only_what_root_runs_is_somebody_else_at_work() {
        let process = |pid, user, minutes: u64, words: &str| Process {
            pid,
            parent: 1,
            group: pid,
            session: None,
            user,
            age: Duration::from_secs(60 * minutes),
            words: words.replace(' ', "\0"),
        };
        let table = [
            process(7, Some(0), 1, "muster-agent darwin-rebuild"),
            process(20, Some(501), 1, "sleep /x/darwin-rebuild"),
            process(21, None, 1, "sleep /x/darwin-rebuild"),
            process(22, Some(0), 90, "sh /x/darwin-rebuild switch"),
            process(23, Some(0), 30, "sh /x/darwin-rebuild switch"),
        ];
        let wanted = |word: &str| word.ends_with("darwin-rebuild");
        assert_eq!(other(&table[..3], 7, 0, wanted), None);
        let found = other(&table, 7, 0, wanted).unwrap();
        assert_eq!((found.who.as_str(), found.age.as_secs()), ("/x/darwin-rebuild (process 23)", 1800));
    }
}
