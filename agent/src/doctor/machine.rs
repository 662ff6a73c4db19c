//! What keeps this machine from its next generation, besides the agent itself.

use jiff::tz::TimeZone;
use muster_protocol::machine::Class;
use muster_protocol::policy::{Policy, RebootPolicy};

use super::finding::{FREE_SPACE, Finding, bad, doubtful, good};
use crate::config::Config;
use crate::core::policy::{Circumstances, Rules, Stage, gate};
use crate::core::records::Journal;
use crate::core::window::{Openness, openness};
use crate::journal::Files;
use crate::platform::{self, Platform};
use crate::process::free_bytes;

/// Looks at the machine as the agent does before it switches.
pub fn examine(config: &Config, class: Class, now: i64) -> Vec<Finding> {
    let platform = match platform::open(config, class) {
        Ok(platform) => platform,
        Err(error) => return vec![bad("platform", error.to_string(), "fix what the message names")],
    };
    let journal = Files::new(&config.state_dir).journal().ok().and_then(crate::journal::Found::whole);
    let journal = journal.unwrap_or_default();
    let signed = journal.confirmed.as_ref().and_then(|known| known.target.as_ref());
    let none = Policy::default();
    let rules = Rules::new(signed.map_or(&none, |target| &target.policy), &config.policy);
    let mut findings = vec![policy(&rules, now), switch(&rules, &journal, platform.as_ref(), now)];
    findings.extend(group(config));
    findings.push(quarantine(&journal));
    findings.push(supervisor(platform.as_ref()));
    findings.extend(reboot(&rules, platform.as_ref()));
    findings
}

/// Whether the policies can ever be satisfied.
fn policy(rules: &Rules, now: i64) -> Finding {
    let about = "policy";
    let closed = openness(&rules.windows, now, &TimeZone::system());
    if let Openness::Closed { why, opens: None } = closed {
        let remedy = "correct the window in the flake or in agent.toml, or install the zone's data";
        return bad(about, why, remedy);
    }
    if rules.reboot == RebootPolicy::Window && rules.windows.is_empty() {
        let remedy = "give it a window, or another policy for reboots";
        return doubtful(about, "it may only reboot in its window, and has none", remedy);
    }
    let words = match rules.windows.len() {
        0 => "generations are installed at any time".to_owned(),
        _ => "generations are installed in their windows".to_owned(),
    };
    good(about, words)
}

/// Whether a generation that arrived now would be installed.
fn switch(rules: &Rules, journal: &Journal, platform: &dyn Platform, now: i64) -> Finding {
    let about = "ready";
    let store = platform.layout().store_prefix();
    let there = store.ancestors().find(|folder| folder.is_dir());
    let seen = Circumstances {
        window: openness(&rules.windows, now, &TimeZone::system()),
        on_battery: platform.on_battery(),
        metered: false,
        free_disk: there.and_then(|folder| free_bytes(folder).ok()),
        free_memory: platform.free_memory(),
        busy: platform.busy().unwrap_or_default(),
        absent: None,
    };
    match gate(Stage::Switch, rules, &seen, journal.pause.as_ref(), now) {
        None => good(about, "nothing prevents a switch now"),
        Some(deferral) => {
            let until = deferral.until.map(|until| format!(" ({})", crate::status::until(until)));
            let remedy = match deferral.hold {
                crate::core::policy::Hold::Paused => "'muster-agent resume' ends the pause",
                crate::core::policy::Hold::Battery => "plug it in",
                crate::core::policy::Hold::Disk => FREE_SPACE,
                _ => "wait, or have an operator publish with --urgent",
            };
            doubtful(about, deferral.why + &until.unwrap_or_default(), remedy)
        }
    }
}

fn group(config: &Config) -> Option<Finding> {
    let group = config.group.as_ref()?;
    Some(match crate::local::group_exists(group) {
        Ok(()) => good("group", format!("members of {group} may use the agent")),
        Err(reason) => {
            doubtful("group", format!("{group}: {reason}"), "name a group of this machine in agent.toml")
        }
    })
}

fn quarantine(journal: &Journal) -> Finding {
    match journal.quarantine.last() {
        None => good("quarantine", "no derivation is in quarantine"),
        Some(last) => {
            let count = journal.quarantine.len();
            let words = format!(
                "{count} in quarantine, the latest from generation {} ('muster-agent retry' tries the newest \
                 again)",
                last.generation
            );
            good("quarantine", words)
        }
    }
}

/// Whether the service manager answers: without it no switch can start.
fn supervisor(platform: &dyn Platform) -> Finding {
    let about = "supervisor";
    match platform.failed_units() {
        Ok(units) if units.is_empty() => good(about, "it answers, and no unit has failed"),
        Ok(units) => doubtful(
            about,
            format!("failed: {}", units.join(", ")),
            "see 'systemctl status'; a switch is judged only by units that fail after it",
        ),
        Err(error) => {
            bad(about, error.to_string(), "without its service manager this machine cannot be switched")
        }
    }
}

fn reboot(rules: &Rules, platform: &dyn Platform) -> Option<Finding> {
    let due = platform.due()?;
    let words = format!("a reboot is due for {}", due.what.join(", "));
    let remedy = match rules.reboot {
        RebootPolicy::Never => "reboot when it suits, or allow it with the setting 'reboot'",
        RebootPolicy::Window | RebootPolicy::Now => "the agent reboots it as soon as nothing prevents it",
    };
    Some(doubtful("reboot", words, remedy))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::finding::Health;
    use super::*;
    use crate::core::policy::Pause;
    use crate::platform::testing::{script, stand_in};

    fn config(folder: &Path, settings: &str) -> Config {
        let config = stand_in(folder, settings);
        script(&folder.join("programs/systemctl"), "cat $0.failed 2>/dev/null; true");
        config
    }

    fn find(findings: &[Finding], about: &str) -> Finding {
        findings.iter().find(|finding| finding.about == about).unwrap().clone()
    }

    #[test]
    fn a_machine_that_nothing_ails_is_well() {
        let folder = tempfile::tempdir().unwrap();
        let findings = examine(&config(folder.path(), ""), Class::Nixos, 0);
        for finding in &findings {
            assert_eq!(finding.health, Health::Good, "{finding:?}");
        }
    }

    #[test]
    fn whatever_stands_in_the_way_is_named_with_its_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            "group = 'no-such-group-here'\n[policy]\nreboot = 'window'\nminimum_disk_mib = 1000000000\n";
        let config = config(folder.path(), settings);
        std::fs::write(folder.path().join("programs/systemctl.failed"), "x.service failed\n").unwrap();
        let findings = examine(&config, Class::Nixos, 0);
        assert!(find(&findings, "policy").detail.contains("has none"));
        let ready = find(&findings, "ready");
        assert!(ready.detail.contains("MiB free") && ready.remedy.unwrap().contains("collect-garbage"));
        assert!(find(&findings, "group").detail.contains("no such group"));
        assert!(find(&findings, "supervisor").detail.contains("x.service"));
        let pause = Some(Pause { until: None, since: 0, by: None });
        Files::new(&config.state_dir).write_journal(&Journal { pause, ..Journal::default() }).unwrap();
        let ready = find(&examine(&config, Class::Nixos, 0), "ready");
        assert!(ready.remedy.unwrap().contains("muster-agent resume"), "{}", ready.detail);
        script(&folder.path().join("programs/systemctl"), "echo no bus >&2; exit 1");
        assert_eq!(find(&examine(&config, Class::Nixos, 0), "supervisor").health, Health::Bad);
    }

    #[test]
    fn a_window_that_never_opens_is_bad() {
        let folder = tempfile::tempdir().unwrap();
        let settings = "[policy]\nwindow = { from = '01:00', to = '02:00', zone = 'Mars/Olympus' }\n";
        let finding = find(&examine(&config(folder.path(), settings), Class::Nixos, 0), "policy");
        assert!(finding.health == Health::Bad && finding.detail.contains("Mars/Olympus"), "{finding:?}");
    }
}
