//! The output of `switch-to-configuration`, and the meaning of its exit codes together with it.
//!
//! A code alone says little: 4 replaces 2 when a unit failed after the script did, 1 ends any stage, and
//! other codes are the errno of whatever system call failed last (11 is EAGAIN, the lock's as well as
//! D-Bus's).

use crate::core::activate::Outcome;

const CANNOT_LOCK: &str = "Could not acquire lock";
/// Printed once the boot loader is written, before the script runs.
const ACTIVATES: &str = "activating the configuration...";
const CHECK_FAILED: &str = "Pre-switch checks failed";
const BOOT_LOADER_FAILED: &str = "Failed to install bootloader";
const SCRIPT_FAILED: &str = "Failed to run activate script";
const UNITS_FAILED: &str = "warning: the following units failed: ";
const SESSION_FAILED: (&str, &str) = ("warning: user activation for ", " failed");
/// `Failed to start x.service`, as a job reports it.
const JOBS: [&str; 4] = ["Failed to start ", "Failed to restart ", "Failed to reload ", "Failed to stop "];
/// The suffixes of units.
const UNITS: [&str; 11] = [
    ".service",
    ".socket",
    ".target",
    ".mount",
    ".automount",
    ".swap",
    ".timer",
    ".path",
    ".slice",
    ".scope",
    ".device",
];
const NO_LOGIND: &str = "Unable to list users with logind: ";
const INHIBITED: &str = "switchInhibitors' failed";
const CRITICAL: &str = "changes to critical components of the system:";

/// The result of an activation. `held` is called to find out whether somebody else holds the lock.
pub fn outcome(exit: i32, said: &str, held: impl FnOnce() -> bool) -> Outcome {
    let says = |words: &str| said.lines().any(|line| line.trim() == words);
    match exit {
        // The exit code is then any leftover errno, 4 and 2 among them; its units were not started.
        _ if lacks_logind(said) => Outcome::Failed,
        0 => Outcome::Done,
        1 | 11 if says(CANNOT_LOCK) && !says(ACTIVATES) => Outcome::Locked,
        1 if says(CHECK_FAILED) || says(BOOT_LOADER_FAILED) => Outcome::Refused,
        2 => Outcome::ScriptFailed,
        4 if says(SCRIPT_FAILED) => Outcome::ScriptFailed,
        4 => Outcome::UnitsFailed,
        // If the output says nothing about the lock and it is free when the next line comes, the lock was not
        // the reason.
        11 if !says(ACTIVATES) && held() => Outcome::Locked,
        100 => Outcome::RebootNeeded,
        _ => Outcome::Failed,
    }
}

/// The units that it reports as failed, sorted.
pub fn failed_units(said: &str) -> Vec<String> {
    let listed = said.lines().filter_map(|line| line.trim().strip_prefix(UNITS_FAILED));
    let jobs = said.lines().filter_map(|line| {
        let rest = JOBS.iter().find_map(|job| line.trim().strip_prefix(job))?;
        rest.split([' ', ':']).next().filter(|_| !rest.starts_with("user unit "))
    });
    let names = listed.flat_map(|names| names.split(", ")).chain(jobs).map(str::trim);
    let mut units: Vec<String> =
        names.filter(|name| UNITS.iter().any(|ending| name.ends_with(ending))).map(str::to_owned).collect();
    units.sort();
    units.dedup();
    units
}

/// The users whose sessions did not take the new system, as text for people.
pub fn failed_sessions(said: &str) -> Vec<String> {
    let (before, after) = SESSION_FAILED;
    let name = |line: &str| line.trim().strip_prefix(before)?.strip_suffix(after).map(str::to_owned);
    said.lines().filter_map(name).map(|name| format!("the session of {name}")).collect()
}

/// Whether it broke off, with the system in place and its units stopped, because logind did not answer.
pub fn lacks_logind(said: &str) -> bool {
    said.lines().any(|line| line.trim().starts_with(NO_LOGIND))
}

/// What prevents switching a running system to this one, if that is why it was refused; empty if not named.
pub fn inhibitors(said: &str) -> Option<Vec<String>> {
    if !said.contains(INHIBITED) && !said.contains(CRITICAL) {
        return None;
    }
    let lines = said.lines().map(str::trim).skip_while(|line| !line.contains(CRITICAL)).skip(1);
    let listed = lines.skip_while(|line| line.is_empty()).take_while(|line| line.contains(" -> "));
    Some(listed.map(|line| line.replace(" : ", ": ")).collect())
}

/// Whether one of the system's own checks refused it.
pub fn check_failed(said: &str) -> bool {
    said.to_ascii_lowercase().contains("pre-switch check")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGINS: &str = "Checking switch inhibitors... done\nactivating the configuration...\n";

    fn of(exit: i32, said: &str, held: bool) -> Outcome {
        outcome(exit, said, || held)
    }

    #[test]
    fn a_failed_script_is_one_though_units_failed_behind_it() {
        let said = format!(
            "{BEGINS}Failed to run activate script\nwarning: the following units failed: x.service\n"
        );
        assert_eq!(of(4, &said, false), Outcome::ScriptFailed);
        assert_eq!(of(2, "", false), Outcome::ScriptFailed);
        assert_eq!(of(4, BEGINS, false), Outcome::UnitsFailed);
        // Regardless of what a unit's log says about it.
        assert_eq!(of(4, "x[1]: Failed to run activate script of mine\n", false), Outcome::UnitsFailed);
    }

    #[test]
    fn eleven_is_the_lock_only_where_it_says_so_or_somebody_holds_it() {
        assert_eq!(of(11, "Could not acquire lock\n", false), Outcome::Locked);
        assert_eq!(of(1, "Could not acquire lock\n", false), Outcome::Locked);
        assert_eq!(of(11, "", true), Outcome::Locked);
        assert_eq!(of(11, "", false), Outcome::Failed);
        let without_logind =
            format!("{BEGINS}Unable to list users with logind: Resource temporarily unavailable\n");
        assert!(lacks_logind(&without_logind) && !lacks_logind("Could not acquire lock\n"));
        // It had the lock itself, whoever has it by now; and its code is any errno.
        for exit in [11, 4, 2, 1, 100, 0] {
            assert_eq!(of(exit, &without_logind, true), Outcome::Failed, "{exit}");
        }
    }

    #[test]
    fn one_is_a_refusal_only_where_its_checks_or_its_boot_loader_say_so() {
        assert_eq!(of(1, "Pre-switch checks failed\n", false), Outcome::Refused);
        assert_eq!(of(1, "Failed to install bootloader\n", false), Outcome::Refused);
        let said = format!("{BEGINS}Error: Failed to process dbus messages\n");
        assert_eq!(of(1, &said, false), Outcome::Failed);
        assert_eq!((of(0, "", false), of(100, "", false)), (Outcome::Done, Outcome::RebootNeeded));
    }

    #[test]
    fn units_and_sessions_are_found_by_name() {
        let said = "Failed to start b.service\nFailed to restart c.mount: Unit is masked.\nFailed to open \
            lock\n\
            Failed to start user unit u.service\nwarning: user activation for alice failed\n\
            warning: the following units failed: a.service, b.service\n● a.service - It\n";
        assert_eq!(failed_units(said), ["a.service", "b.service", "c.mount"]);
        assert_eq!(failed_sessions(said), ["the session of alice"]);
        assert!(failed_units(BEGINS).is_empty());
    }

    #[test]
    fn what_inhibits_a_switch_is_named() {
        let said = "Checking switch inhibitors...\nThere are changes to critical components of the \
            system:\n\n\
            dbus-implementation : dbus -> broker\nkernel : 1 -> 2\n\nSwitching into this system is not \
            recommended.\n\n\
            Pre-switch check 'switchInhibitors' failed\nPre-switch checks failed\n";
        assert_eq!(inhibitors(said).unwrap(), ["dbus-implementation: dbus -> broker", "kernel: 1 -> 2"]);
        assert_eq!(inhibitors("Pre-switch check 'switchInhibitors' failed\n"), Some(vec![]));
        assert_eq!(inhibitors("Pre-switch check 'zfs' failed\nPre-switch checks failed\n"), None);
        assert!(check_failed("Pre-switch checks failed"));
    }
}
