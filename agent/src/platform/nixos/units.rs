//! Which units fail, according to systemd.
//!
//! A service that keeps being restarted is never `failed`, and may just be running when asked: its last
//! result and its number of restarts tell.

use muster_protocol::clock::{Clock as _, SystemClock, UnixMillis};

use super::super::layout::Layout;
use super::super::programs::{PlatformError, ask, run};

/// Failed, or waiting for its next start.
const LIST: [&str; 5] =
    ["list-units", "--state=failed,auto-restart,auto-restart-queued", "--plain", "--no-legend", "--no-pager"];
/// A service that systemd had to restart counts as failing until it has run for this long.
const SETTLED_SECONDS: i64 = 600;

/// The units that currently fail, sorted.
pub fn failed(layout: &Layout) -> Result<Vec<String>, PlatformError> {
    let (mut failed, restarting) = rows(&ask(layout, "systemctl", &LIST)?);
    if !restarting.is_empty() {
        let names: Vec<&str> = restarting.iter().map(String::as_str).collect();
        let facts = ["show", "--property=Id", "--property=Result", "--property=ExecMainStatus", "--"];
        // A unit that has just disappeared is an error of systemctl's, in addition to its answer about the
        // others.
        let said = run(layout, "systemctl", &[&facts[..], &names].concat())?.said;
        failed.extend(blocks(&said).filter(|unit| !unit.ended_well()).map(|unit| unit.name().to_owned()));
    }
    failed.sort();
    failed.dedup();
    Ok(failed)
}

/// The same, plus the services that systemd had to restart recently: what is so before a switch is not its
/// fault.
pub fn failed_or_restless(layout: &Layout) -> Result<Vec<String>, PlatformError> {
    let mut units = failed(layout)?;
    let facts = [
        "show",
        "--type=service",
        "--state=active,activating,deactivating",
        "--timestamp=unix",
        "--property=Id",
        "--property=NRestarts",
        "--property=ActiveEnterTimestamp",
        "--",
        "*",
    ];
    let said = run(layout, "systemctl", &facts)?.said;
    let now = SystemClock::new().unix_ms();
    units.extend(blocks(&said).filter(|unit| unit.is_restless(now)).map(|unit| unit.name().to_owned()));
    units.sort();
    units.dedup();
    Ok(units)
}

/// `UNIT LOAD ACTIVE SUB DESCRIPTION`: those that have failed, and those that wait for their next start.
fn rows(text: &str) -> (Vec<String>, Vec<String>) {
    let units = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        Some((name, words.nth(2).unwrap_or_default().starts_with("auto-restart")))
    });
    let (restarting, failed): (Vec<_>, Vec<_>) = units.partition(|(_, restarts)| *restarts);
    let names = |units: Vec<(String, bool)>| units.into_iter().map(|(name, _)| name).collect();
    (names(failed), names(restarting))
}

/// The output of `systemctl show` for one unit, as lines of `KEY=VALUE`.
struct Block<'a>(&'a str);

fn blocks(text: &str) -> impl Iterator<Item = Block<'_>> {
    text.split("\n\n").map(Block).filter(|block| !block.name().is_empty())
}

impl Block<'_> {
    fn fact(&self, key: &str) -> &str {
        self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default().trim()
    }
    fn name(&self) -> &str {
        self.fact("Id")
    }

    /// Whether its last main process succeeded; one that was asked to stop did.
    fn ended_well(&self) -> bool {
        match self.fact("Result") {
            "" => self.fact("ExecMainStatus") == "0",
            result => result == "success",
        }
    }

    fn is_restless(&self, now: UnixMillis) -> bool {
        let restarts = self.fact("NRestarts").parse::<u64>().unwrap_or(0);
        let since = self.fact("ActiveEnterTimestamp").strip_prefix('@').and_then(|at| at.parse::<i64>().ok());
        restarts > 0 && since.is_none_or(|since| now / 1000 - since < SETTLED_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;

    use super::super::super::testing::{layout, script};
    use super::*;

    #[test]
    fn a_service_that_is_started_again_and_again_fails_unless_it_ended_well() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        let text = "echo \"$@\" >> $0.asked\ncase $1 in\nlist-units)\n\
            echo 'b.service loaded failed failed B b'\n\
            echo 'loops.service loaded activating auto-restart It'\n\
            echo 'ends.service loaded activating auto-restart It'\n\
            echo 'a.mount x';;\nshow)\n\
            printf 'Id=loops.service\\nResult=exit-code\\nExecMainStatus=1\\n\\nId=ends.service\\nResult=success\\n';;\nesac";
        script(&folder.path().join("programs/systemctl"), text);
        assert_eq!(failed(&layout).unwrap(), ["a.mount", "b.service", "loops.service"]);
        let asked = std::fs::read_to_string(folder.path().join("programs/systemctl.asked")).unwrap();
        assert_eq!(
            asked,
            "list-units --state=failed,auto-restart,auto-restart-queued --plain --no-legend --no-pager\n\
             show --property=Id --property=Result --property=ExecMainStatus -- loops.service ends.service\n"
        );
        script(&folder.path().join("programs/systemctl"), "echo 'Failed to connect to bus' >&2; exit 1");
        assert!(failed(&layout).unwrap_err().to_string().contains("Failed to connect to bus"));
    }

    #[test]
    fn what_was_started_again_a_moment_ago_failed_before_the_switch_too() {
        let now = 1_000_000_000;
        for (facts, expected) in [
            ("NRestarts=3\nActiveEnterTimestamp=@999900", true),
            ("NRestarts=3\nActiveEnterTimestamp=@900000", false),
            ("NRestarts=0\nActiveEnterTimestamp=@999999", false),
            ("NRestarts=1\nActiveEnterTimestamp=", true),
            ("", false),
        ] {
            assert_eq!(Block(&format!("Id=x.service\n{facts}\n")).is_restless(now), expected, "{facts}");
        }
    }
}
