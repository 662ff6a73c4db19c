//! Whether an activated generation may stay.

use muster_protocol::ids::StorePath;
use muster_protocol::report::Reason;

/// The result of one health check after all its tries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CheckResult {
    pub name: String,
    /// What was wrong on the last try.
    pub outcome: Result<(), String>,
}

/// What is known about the machine after the activation.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    pub new: &'a StorePath,
    /// What the machine actually runs.
    pub running: Option<&'a StorePath>,
    pub checks: &'a [CheckResult],
    /// Failed units before and after.
    pub failed_before: &'a [String],
    pub failed_after: &'a [String],
    /// Whether a check-in sent after the activation was answered.
    pub controller_reached: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It stays; `degraded` lists units that had failed before and still fail.
    Confirm {
        degraded: Vec<String>,
    },
    Undo {
        reason: Reason,
        detail: String,
    },
    /// Everything else is fine; the deadline ends the wait.
    Wait {
        missing: Reason,
    },
}

/// Decides by the worst finding: what waiting cannot fix comes first.
pub fn judge(evidence: &Evidence<'_>) -> Verdict {
    if evidence.running != Some(evidence.new) {
        let found = evidence.running.map_or("nothing that Nix made", StorePath::as_str);
        let detail = format!("activation said that it succeeded, but the machine runs {found}");
        return Verdict::Undo { reason: Reason::NotRunning, detail };
    }
    let failed: Vec<String> = evidence
        .checks
        .iter()
        .filter_map(|check| check.outcome.as_ref().err().map(|why| format!("{}: {why}", check.name)))
        .collect();
    if !failed.is_empty() {
        return Verdict::Undo { reason: Reason::HealthCheckFailed, detail: failed.join("; ") };
    }
    let newly: Vec<&str> = evidence
        .failed_after
        .iter()
        .filter(|unit| !evidence.failed_before.contains(unit))
        .map(String::as_str)
        .collect();
    if !newly.is_empty() {
        let detail = format!("failed since the switch: {}", newly.join(", "));
        return Verdict::Undo { reason: Reason::HealthCheckFailed, detail };
    }
    if !evidence.controller_reached {
        return Verdict::Wait { missing: Reason::ControllerUnreachable };
    }
    Verdict::Confirm { degraded: evidence.failed_after.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        format!("/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-{name}").parse().unwrap()
    }
    fn units(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }
    fn check(name: &str, outcome: Result<(), &str>) -> CheckResult {
        CheckResult { name: name.into(), outcome: outcome.map_err(str::to_owned) }
    }

    /// Every combination of the five facts; the first fact that rules the system out decides.
    #[test]
    fn a_generation_stays_only_when_nothing_speaks_against_it() {
        let (new, old) = (path("new"), path("old"));
        for bits in 0..32u8 {
            let fact = |bit: u8| bits & (1 << bit) != 0;
            let (runs, passes, newly, before, reached) = (fact(0), fact(1), fact(2), fact(3), fact(4));
            let checks = [check("a", Ok(())), check("ssh", if passes { Ok(()) } else { Err("refused") })];
            let failed_before = units(if before { &["old.service"] } else { &[] });
            let mut failed_after = failed_before.clone();
            failed_after.extend(newly.then(|| "new.service".to_owned()));
            let verdict = judge(&Evidence {
                new: &new,
                running: Some(if runs { &new } else { &old }),
                checks: &checks,
                failed_before: &failed_before,
                failed_after: &failed_after,
                controller_reached: reached,
            });
            match verdict {
                Verdict::Undo { reason: Reason::NotRunning, detail } => {
                    assert!(!runs && detail.contains("-old"), "{detail}");
                }
                Verdict::Undo { reason: Reason::HealthCheckFailed, detail } => {
                    assert!(runs && (!passes || newly));
                    assert_eq!(detail.contains("ssh: refused"), !passes, "{detail}");
                    assert_eq!(detail.contains("new.service"), passes && newly, "{detail}");
                    assert!(!detail.contains("old.service"));
                }
                Verdict::Wait { missing } => {
                    assert_eq!(missing, Reason::ControllerUnreachable);
                    assert!(runs && passes && !newly && !reached);
                }
                Verdict::Confirm { degraded } => {
                    assert!(runs && passes && !newly && reached);
                    assert_eq!(degraded, failed_before);
                }
                Verdict::Undo { .. } => panic!("no other reason is known here"),
            }
        }
    }

    #[test]
    fn failure_mode_18_a_machine_that_runs_nothing_known_is_not_confirmed() {
        let new = path("new");
        let evidence = Evidence {
            new: &new,
            running: None,
            checks: &[],
            failed_before: &[],
            failed_after: &[],
            controller_reached: true,
        };
        assert!(matches!(judge(&evidence), Verdict::Undo { reason: Reason::NotRunning, .. }));
    }

    #[test]
    fn a_unit_that_was_repaired_by_the_switch_is_not_degraded() {
        let new = path("new");
        let evidence = Evidence {
            new: &new,
            running: Some(&new),
            checks: &[],
            failed_before: &units(&["a.service"]),
            failed_after: &[],
            controller_reached: true,
        };
        assert_eq!(judge(&evidence), Verdict::Confirm { degraded: vec![] });
    }
}
