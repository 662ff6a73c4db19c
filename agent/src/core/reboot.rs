//! Whether to reboot the machine now for what its system needs a reboot for.

use muster_protocol::clock::UnixMillis;
use muster_protocol::policy::RebootPolicy;
use serde::{Deserialize, Serialize};

use super::policy::{Circumstances, Pause, Rules};
use super::window::Openness;

/// What a reboot would bring.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Due {
    /// `kernel`, `initrd`, `kernel-modules`, or `system` when a whole generation waits for it.
    pub what: Vec<String>,
    /// Differs for everything else that is due.
    pub mark: String,
}

/// A reboot that this agent requested. If it did not bring what was due, it is not requested again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rebooted {
    pub mark: String,
    /// The boot in which it was requested.
    pub boot: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Find out who is logged in and what inhibits it.
    Look,
    Wait {
        why: String,
        until: Option<UnixMillis>,
    },
    Reboot,
}

/// Everything that the decision rests on, besides what is due.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub rules: &'a Rules,
    pub seen: &'a Circumstances,
    pub pause: Option<&'a Pause>,
    /// Who is logged in and what inhibits it; `None` until that was asked.
    pub blockers: Option<&'a [String]>,
    pub asked: Option<&'a Rebooted>,
    pub boot: &'a str,
    /// The wall clock.
    pub now: UnixMillis,
}

pub fn decide(due: &Due, view: &View<'_>) -> Decision {
    let wait = |why: String| Decision::Wait { why, until: None };
    if let Some(asked) = view.asked.filter(|asked| asked.mark == due.mark) {
        return wait(if asked.boot == view.boot {
            "the machine is about to reboot".to_owned()
        } else {
            "a reboot did not bring it: check the boot loader".to_owned()
        });
    }
    match view.rules.reboot {
        RebootPolicy::Never => return wait("the policy leaves reboots to people".to_owned()),
        RebootPolicy::Window if !view.rules.urgent => {
            if view.rules.windows.is_empty() {
                return wait("it may only reboot in its window, and has none".to_owned());
            }
            if let Openness::Closed { why, opens } = &view.seen.window {
                return Decision::Wait { why: why.clone(), until: *opens };
            }
        }
        RebootPolicy::Window | RebootPolicy::Now => {}
    }
    if let Some(pause) = view.pause.filter(|pause| pause.holds(view.now)) {
        let why = "updates are paused on this machine".to_owned();
        return Decision::Wait { why, until: pause.until };
    }
    match view.blockers {
        None => Decision::Look,
        Some([]) => Decision::Reboot,
        Some(blockers) => wait(blockers.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::policy::Policy;

    use super::*;

    fn rules(reboot: RebootPolicy, window: bool) -> Rules {
        let windows = serde_json::json!([{ "from": "22:00", "to": "23:00" }]);
        let windows = if window { serde_json::from_value(windows).unwrap() } else { vec![] };
        let policy = Policy { reboot: Some(reboot), windows, ..Policy::default() };
        Rules::new(&policy, &Policy::default())
    }

    fn due() -> Due {
        Due { what: vec!["kernel".into()], mark: "k2".into() }
    }

    fn view<'a>(rules: &'a Rules, seen: &'a Circumstances, blockers: Option<&'a [String]>) -> View<'a> {
        View { rules, seen, pause: None, blockers, asked: None, boot: "b1", now: 100 }
    }

    fn waits(decision: Decision) -> String {
        match decision {
            Decision::Wait { why, .. } => why,
            other => panic!("it does not wait: {other:?}"),
        }
    }

    #[test]
    fn nobody_is_rebooted_whose_policy_does_not_say_so() {
        let (rules, seen) = (Rules::default(), Circumstances::default());
        assert!(waits(decide(&due(), &view(&rules, &seen, Some(&[])))).contains("people"));
    }

    #[test]
    fn now_means_as_soon_as_nobody_is_logged_in_and_nothing_inhibits_it() {
        let (rules, seen) = (rules(RebootPolicy::Now, true), Circumstances::default());
        assert_eq!(decide(&due(), &view(&rules, &seen, None)), Decision::Look);
        let blockers = ["alice is logged in (tty2)".to_owned()];
        assert!(waits(decide(&due(), &view(&rules, &seen, Some(&blockers)))).contains("alice"));
        assert_eq!(decide(&due(), &view(&rules, &seen, Some(&[]))), Decision::Reboot);
    }

    #[test]
    fn window_means_while_one_is_open() {
        let closed = Openness::Closed { why: "outside".into(), opens: Some(7) };
        let seen = Circumstances { window: closed, ..Circumstances::default() };
        let in_window = rules(RebootPolicy::Window, true);
        let decision = decide(&due(), &view(&in_window, &seen, Some(&[])));
        assert_eq!(decision, Decision::Wait { why: "outside".into(), until: Some(7) });
        let open = Circumstances::default();
        assert_eq!(decide(&due(), &view(&in_window, &open, Some(&[]))), Decision::Reboot);
        let without = rules(RebootPolicy::Window, false);
        assert!(waits(decide(&due(), &view(&without, &open, Some(&[])))).contains("has none"));
        let urgent = Rules { urgent: true, ..in_window };
        assert_eq!(decide(&due(), &view(&urgent, &seen, Some(&[]))), Decision::Reboot);
    }

    #[test]
    fn a_pause_holds_a_reboot_up_too() {
        let (rules, seen) = (rules(RebootPolicy::Now, false), Circumstances::default());
        let pause = Pause { until: Some(200), since: 0, by: None };
        let paused = View { pause: Some(&pause), ..view(&rules, &seen, Some(&[])) };
        assert!(waits(decide(&due(), &paused)).contains("paused"));
        assert_eq!(decide(&due(), &View { now: 200, ..paused }), Decision::Reboot);
    }

    #[test]
    fn a_reboot_that_brought_nothing_is_not_tried_again() {
        let (rules, seen) = (rules(RebootPolicy::Now, false), Circumstances::default());
        let asked = Rebooted { mark: "k2".into(), boot: "b1".into() };
        let view = View { asked: Some(&asked), ..view(&rules, &seen, Some(&[])) };
        assert!(waits(decide(&due(), &view)).contains("about to reboot"));
        assert!(waits(decide(&due(), &View { boot: "b2", ..view })).contains("did not bring it"));
        // A different kernel is a different matter.
        let newer = Due { mark: "k3".into(), ..due() };
        assert_eq!(decide(&newer, &View { boot: "b2", ..view }), Decision::Reboot);
    }
}
