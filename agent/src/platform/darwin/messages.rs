//! Turns messages of nix-darwin and launchd into instructions.

use std::time::Duration;

use crate::process::{Other, without_colours};

/// What a person has to do before this activation can succeed. `program` is the one that needs the
/// permissions.
pub fn needs_human(exit: i32, output: &str, program: &str) -> Option<String> {
    let lower = output.to_lowercase();
    if exit == 2 || lower.contains("unexpected files in /etc") {
        let paths: Vec<&str> = output
            .split_whitespace()
            .filter(|word| word.starts_with("/etc/"))
            .map(|word| word.trim_end_matches([',', '.', ':', ';']))
            .collect();
        if !paths.is_empty() && lower.contains("unexpected files in /etc") {
            return Some(foreign_files(&paths));
        }
    }
    // nix-darwin describes what is denied to a program without a screen as if it came over SSH.
    for (words, pane, what) in [
        ("update apps", "App Management", "replace the applications in /Applications/Nix Apps"),
        ("app management", "App Management", "replace the applications in /Applications/Nix Apps"),
        ("full disk access", "Full Disk Access", "create or delete users"),
        ("permissions to administrate", "Full Disk Access", "create or delete users"),
    ] {
        if lower.contains(words) {
            return Some(format!(
                "macOS does not let muster-agent {what}: open System Settings > Privacy & Security > {pane}, press +, \
                 choose {program} (Cmd-Shift-G takes a path), switch it on, then run muster-agent \
                 check-now. A profile \
                 of your MDM can grant it to a whole fleet"
            ));
        }
    }
    let no_session = lower.contains("could not find domain for")
        || lower.contains("domain does not support specified action")
        || lower.contains("bootstrap failed: 125");
    if no_session {
        return Some(
            "a user's launch agent cannot be loaded while nobody is logged in: log in at the Mac's screen; it is tried \
             again then"
                .to_owned(),
        );
    }
    // All other checks of nix-darwin concern this Mac too, and say themselves what to do.
    let refused = lower.contains("aborting activation") && lower.contains("error:");
    refused.then(|| format!("{}\nThen run muster-agent check-now", without_colours(output).trim()))
}

/// The age at which somebody else's switch counts as stuck.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);

/// Who else is switching this Mac, unless that has been running for so long that it is no longer waited for.
pub fn busy(other: &Other) -> Option<String> {
    let hours = PATIENCE.as_secs() / 3600;
    if other.age >= PATIENCE {
        let minutes = other.age.as_secs() / 60;
        tracing::warn!(minutes, "{} has run for more than {hours} h; no longer waiting for it", other.who);
        return None;
    }
    Some(format!("{}; waiting until it ends, or until it is {hours} h old", other.who))
}

/// What to do about files in /etc that an activation would overwrite.
pub fn foreign_files(paths: &[impl AsRef<str>]) -> String {
    let paths: Vec<&str> = paths.iter().map(AsRef::as_ref).collect();
    format!(
        "files that nix-darwin did not make are in its way, and Muster never moves them: rename {} to \
         …before-nix-darwin, then run muster-agent check-now",
        paths.join(", ")
    )
}

/// Whether an activation ended in its checks, which touch nothing. The exit code alone does not tell: with
/// `set -e` the code of any program that fails later becomes the script's. Homebrew's part, which also exits
/// with 2, comes after stages that print what they set up.
pub fn untouched(exit: i32, output: &str) -> bool {
    let refused = output.contains("aborting activation") || output.contains("must be run as root");
    exit == 2 && refused && !output.contains("setting up ")
}

/// Whether a job has ended since it was loaded, according to `launchctl print`.
pub fn has_ended(printed: &str) -> bool {
    fact(printed, "state") != Some("running")
        && fact(printed, "last exit code").is_some_and(|code| code != "(never exited)")
}

fn fact<'a>(printed: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = printed.lines();
    lines.find_map(|line| line.trim().strip_prefix(key)?.trim().strip_prefix('=')).map(str::trim)
}

/// Whether a job is healthy, according to `launchctl print`.
pub fn job(printed: &str) -> Result<(), String> {
    if fact(printed, "state") == Some("running") {
        return Ok(());
    }
    match fact(printed, "last exit code") {
        None | Some("(never exited)" | "0") => Ok(()),
        Some(code) => Err(format!("does not run; it last ended with {code}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(exit: i32, output: &str) -> Option<String> {
        needs_human(exit, output, "/Library/PrivilegedHelperTools/muster-agent")
    }

    #[test]
    fn failure_mode_5_what_macos_does_not_allow_is_told_with_the_place_and_the_program_to_allow_it() {
        // Printed by nix-darwin when a launch daemon without the permission runs its checks.
        let apps = "\u{1b}[1;31merror: permission denied when trying to update apps over SSH, aborting activation\u{1b}[0m\n\
            Apps could not be updated as `darwin-rebuild` requires Full Disk Access to work over SSH.\n";
        let words = needed(1, apps).unwrap();
        for part in [
            "Privacy & Security > App Management",
            "/Library/PrivilegedHelperTools/muster-agent",
            "check-now",
        ] {
            assert!(words.contains(part), "{words}");
        }
        let users = "error: users cannot be created over SSH without Full Disk Access, aborting activation\n";
        assert!(needed(1, users).unwrap().contains("Privacy & Security > Full Disk Access"));
        assert!(needed(1, "needs App Management permission").unwrap().contains("App Management"));
        assert_eq!(needed(1, "error: something else"), None);
    }

    #[test]
    fn failure_mode_6_foreign_files_are_told_by_their_paths() {
        let output = "error: Unexpected files in /etc, aborting activation\n\nThe following files have unrecognized \
            content and would be overwritten:\n\n  /etc/nix/nix.conf\n  /etc/zshrc\n\nPlease check them.\n";
        let words = needed(2, output).unwrap();
        assert!(words.contains("rename /etc/nix/nix.conf, /etc/zshrc to"), "{words}");
        assert_eq!(needed(2, "no paths here"), None);
    }

    #[test]
    fn only_an_activation_that_ended_in_its_checks_has_touched_nothing() {
        let checks = "error: Unexpected files in /etc, aborting activation\n  /etc/zshrc\n";
        assert!(untouched(2, checks) && untouched(2, "error: `activate` must be run as root"));
        assert!(!untouched(1, checks) && !untouched(2, "grep: no such file") && !untouched(0, checks));
        let later = "setting up /etc...\nerror: found Homebrew packages not listed, aborting activation";
        assert!(!untouched(2, later));
    }

    #[test]
    fn failure_mode_20_somebody_elses_switch_is_waited_for_for_hours_and_not_for_ever() {
        let after =
            |seconds| busy(&Other { who: "darwin-rebuild".into(), age: Duration::from_secs(seconds) });
        assert!(after(6 * 3600 - 1).is_some_and(|words| words.contains("until it is 6 h old")));
        assert_eq!(after(6 * 3600), None);
    }

    #[test]
    fn a_job_has_ended_once_it_ran_and_runs_no_more() {
        let print = |state: &str, code: &str| format!("\tstate = {state}\n\tlast exit code = {code}\n");
        assert!(!has_ended(&print("running", "0")) && !has_ended(&print("not running", "(never exited)")));
        assert!(has_ended(&print("not running", "2")) && !has_ended("Could not find service"));
    }

    #[test]
    fn failure_mode_8_an_agent_without_a_session_is_told_as_such() {
        for words in [
            "Could not find domain for user gui/501",
            "Bootstrap failed: 125: Domain does not support specified action",
        ] {
            assert!(needed(1, words).unwrap().contains("log in at the Mac's screen"), "{words}");
        }
    }

    #[test]
    fn what_else_stops_an_activation_in_its_checks_is_for_a_person_too() {
        let output = "\u{1b}[1;31merror: Using the homebrew module requires homebrew installed, aborting activation\u{1b}[0m\n\
            See https://brew.sh.\n";
        let words = needed(2, output).unwrap();
        assert!(
            words.starts_with("error: Using the homebrew module") && words.contains("brew.sh"),
            "{words}"
        );
    }

    #[test]
    fn a_job_that_runs_or_ended_well_is_well() {
        let print = |state: &str, code: &str| {
            format!(
                "system/org.x = {{\n\tactive count = 1\n\tstate = {state}\n\n\tlast exit code = {code}\n}}\n"
            )
        };
        assert_eq!(job(&print("running", "78")), Ok(()));
        assert_eq!(job(&print("not running", "0")), Ok(()));
        assert_eq!(job(&print("not running", "(never exited)")), Ok(()));
        assert!(job(&print("spawn scheduled", "78: EX_CONFIG")).unwrap_err().contains("78: EX_CONFIG"));
    }
}
