//! Whether a step may be taken now: a function of the policies, the machine's circumstances and the time.

use std::time::Duration;

use muster_protocol::clock::UnixMillis;
use muster_protocol::policy::{
    DriftPolicy, Hook, InhibitedPolicy, MeteredPolicy, Policy, RebootPolicy, Window,
};
use serde::{Deserialize, Serialize};

use super::window::Openness;

/// What applies where neither the target nor the machine's file says anything.
const MINIMUM_BATTERY: u8 = 20;
const MINIMUM_DISK_MIB: u64 = 512;
const MINIMUM_MEMORY_MIB: u64 = 64;
/// How often circumstances are checked again while a step is put off.
pub const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Both policies combined: the stricter value of each setting.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rules {
    /// One window of each list must be open.
    pub windows: Vec<Vec<Window>>,
    pub urgent: bool,
    pub reboot: RebootPolicy,
    pub drift: DriftPolicy,
    pub inhibited: InhibitedPolicy,
    pub minimum_battery: u8,
    pub metered: MeteredPolicy,
    /// In bytes.
    pub minimum_disk: u64,
    pub minimum_memory: u64,
    pub max_jobs: Option<u32>,
    pub cores: Option<u32>,
    pub nice: Option<u8>,
    pub keep_generations: Option<u32>,
    /// The operators' first.
    pub before: Vec<Hook>,
    pub after: Vec<Hook>,
}

impl Rules {
    /// `signed` is the operators' policy, `own` the one of the machine's file. Settings in neither have their
    /// default.
    pub fn new(signed: &Policy, own: &Policy) -> Self {
        fn highest<T: Ord>(a: Option<T>, b: Option<T>, default: T) -> T {
            a.max(b).unwrap_or(default)
        }
        fn lowest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            [a, b].into_iter().flatten().min()
        }
        let mib = |a, b, default: u64| highest(a, b, default).saturating_mul(1024 * 1024);
        let both = |hooks: fn(&Policy) -> &Vec<Hook>| [hooks(signed).clone(), hooks(own).clone()].concat();
        let windows = [&signed.windows, &own.windows];
        Self {
            windows: windows.into_iter().filter(|windows| !windows.is_empty()).cloned().collect(),
            // Only operators may declare urgency.
            urgent: signed.urgent,
            reboot: highest(signed.reboot, own.reboot, RebootPolicy::default()),
            drift: lowest(signed.drift, own.drift).unwrap_or_default(),
            inhibited: highest(signed.inhibited, own.inhibited, InhibitedPolicy::default()),
            minimum_battery: highest(signed.minimum_battery, own.minimum_battery, MINIMUM_BATTERY),
            metered: highest(signed.metered, own.metered, MeteredPolicy::default()),
            minimum_disk: mib(signed.minimum_disk_mib, own.minimum_disk_mib, MINIMUM_DISK_MIB),
            minimum_memory: mib(signed.minimum_memory_mib, own.minimum_memory_mib, MINIMUM_MEMORY_MIB),
            max_jobs: lowest(signed.max_jobs, own.max_jobs),
            cores: lowest(signed.cores, own.cores),
            nice: signed.nice.max(own.nice),
            // Keeping more is the stricter setting.
            keep_generations: signed.keep_generations.max(own.keep_generations),
            before: both(|policy| &policy.before),
            after: both(|policy| &policy.after),
        }
    }
}

/// What a step does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Fetch,
    Build,
    /// Everything from the preflight on. A later version's unknown stage is treated as this.
    #[default]
    #[serde(other)]
    Switch,
}

/// The machine's current circumstances. What cannot be found out is `None`, and holds nothing up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Circumstances {
    pub window: Openness,
    /// The charge in percent, while the machine runs on battery.
    pub on_battery: Option<u8>,
    /// Whether the network is metered.
    pub metered: bool,
    /// In bytes: on the disk of the store, and of memory.
    pub free_disk: Option<u64>,
    pub free_memory: Option<u64>,
    /// Who else is switching this machine.
    pub busy: Option<String>,
    /// Who has to log in before this system can be activated.
    pub absent: Option<String>,
}

/// Why a step is put off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    Paused,
    Window,
    Battery,
    Metered,
    Disk,
    Memory,
    Busy,
    Session,
    Hook,
    /// NixOS does not switch a running system to it; a reboot would bring it.
    Inhibited,
    /// The target requires features that this version does not know.
    Newer,
    /// The plan of its rollout is not here.
    Plan,
    /// Its gate is not proven open.
    Wave,
    /// The controller gave no leave.
    Rollout,
    /// The signatures over it have expired.
    Expired,
    #[default]
    #[serde(other)]
    Unknown,
}

/// A step that is put off, and until when at the latest, if known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Deferral {
    #[serde(default)]
    pub hold: Hold,
    pub why: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMillis>,
}

impl Deferral {
    pub fn new(hold: Hold, why: impl Into<String>) -> Self {
        Self { hold, why: why.into(), until: None }
    }
}

/// The message for a system that NixOS cannot switch a running one to; `what` names the obstacle.
pub fn inhibited(what: &str) -> String {
    let what = if what.is_empty() { String::new() } else { format!(" ({what})") };
    format!(
        "NixOS does not switch a running system to this one{what}; a reboot brings it: run muster-agent at-boot on the \
         machine, publish it with action = \"boot\", or set the policy inhibited = \"boot\""
    )
}

/// A pause of updates, set at the machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pause {
    /// `None`: until somebody resumes them.
    #[serde(default)]
    pub until: Option<UnixMillis>,
    pub since: UnixMillis,
    /// The user ID of the person who paused.
    #[serde(default)]
    pub by: Option<u32>,
}

impl Pause {
    pub fn holds(&self, now: UnixMillis) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// What holds `stage` up at `now`, the wall clock, if anything.
///
/// A pause comes first: somebody at the machine wants it, however urgent the generation is.
pub fn gate(
    stage: Stage,
    rules: &Rules,
    seen: &Circumstances,
    pause: Option<&Pause>,
    now: UnixMillis,
) -> Option<Deferral> {
    if let Some(pause) = pause.filter(|pause| pause.holds(now)) {
        let why = "updates are paused on this machine".to_owned();
        return Some(Deferral { hold: Hold::Paused, why, until: pause.until });
    }
    let patient = !rules.urgent;
    let checks = [
        window(stage, seen).filter(|_| patient),
        battery(rules, seen).filter(|_| patient),
        metered(stage, rules, seen).filter(|_| patient),
        disk(rules, seen),
        memory(stage, rules, seen),
        others(stage, seen),
        session(stage, seen),
    ];
    checks.into_iter().flatten().next()
}

fn window(stage: Stage, seen: &Circumstances) -> Option<Deferral> {
    match &seen.window {
        Openness::Closed { why, opens } if stage == Stage::Switch => {
            Some(Deferral { hold: Hold::Window, why: why.clone(), until: *opens })
        }
        _ => None,
    }
}

fn battery(rules: &Rules, seen: &Circumstances) -> Option<Deferral> {
    let charge = seen.on_battery.filter(|charge| *charge < rules.minimum_battery)?;
    let why = format!("on battery at {charge} %; {} % required", rules.minimum_battery);
    Some(Deferral::new(Hold::Battery, why))
}

fn metered(stage: Stage, rules: &Rules, seen: &Circumstances) -> Option<Deferral> {
    let waits = seen.metered && rules.metered == MeteredPolicy::Wait && stage != Stage::Switch;
    waits.then(|| Deferral::new(Hold::Metered, "the network is metered"))
}

fn disk(rules: &Rules, seen: &Circumstances) -> Option<Deferral> {
    let free = seen.free_disk.filter(|free| *free < rules.minimum_disk)?;
    let why = format!(
        "{} MiB free on the disk of the Nix store, {} MiB required: free some space, for example with \
         nix-collect-garbage",
        free >> 20,
        rules.minimum_disk >> 20
    );
    Some(Deferral::new(Hold::Disk, why))
}

fn memory(stage: Stage, rules: &Rules, seen: &Circumstances) -> Option<Deferral> {
    let free = seen.free_memory.filter(|free| stage == Stage::Build && *free < rules.minimum_memory)?;
    let why = format!("{} MiB of memory free, {} MiB required", free >> 20, rules.minimum_memory >> 20);
    Some(Deferral::new(Hold::Memory, why))
}

fn others(stage: Stage, seen: &Circumstances) -> Option<Deferral> {
    let who = seen.busy.as_ref().filter(|_| stage == Stage::Switch)?;
    Some(Deferral::new(Hold::Busy, format!("somebody else is switching this machine: {who}")))
}

fn session(stage: Stage, seen: &Circumstances) -> Option<Deferral> {
    let who = seen.absent.as_ref().filter(|_| stage == Stage::Switch)?;
    let why = format!("{who} has to log in at the Mac's screen: a launch agent of theirs changes");
    Some(Deferral::new(Hold::Session, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Stage; 3] = [Stage::Fetch, Stage::Build, Stage::Switch];

    fn closed() -> Openness {
        Openness::Closed { why: "outside its window".into(), opens: Some(500) }
    }

    /// Everything that can hold a step up does.
    fn worst() -> Circumstances {
        Circumstances {
            window: closed(),
            on_battery: Some(3),
            metered: true,
            free_disk: Some(1),
            free_memory: Some(1),
            busy: Some("nixos-rebuild".into()),
            absent: Some("alice".into()),
        }
    }

    fn strict() -> Rules {
        let policy = Policy { metered: Some(MeteredPolicy::Wait), ..Policy::default() };
        Rules::new(&policy, &Policy::default())
    }

    fn hold(stage: Stage, rules: &Rules, seen: &Circumstances) -> Option<Hold> {
        gate(stage, rules, seen, None, 100).map(|deferral| deferral.hold)
    }

    #[test]
    fn a_machine_that_nothing_is_known_of_and_nothing_is_said_to_goes_on() {
        for stage in ALL {
            let rules = Rules::new(&Policy::default(), &Policy::default());
            assert_eq!(gate(stage, &rules, &Circumstances::default(), None, 0), None);
        }
    }

    /// Each circumstance by itself, and the stages that it holds up.
    #[test]
    fn each_circumstance_holds_up_the_steps_that_it_concerns() {
        let well = Circumstances::default;
        let worst = worst();
        for (hold_of, seen, stages) in [
            (Hold::Window, Circumstances { window: worst.window.clone(), ..well() }, "S"),
            (Hold::Battery, Circumstances { on_battery: worst.on_battery, ..well() }, "FBS"),
            (Hold::Metered, Circumstances { metered: true, ..well() }, "FB"),
            (Hold::Disk, Circumstances { free_disk: worst.free_disk, ..well() }, "FBS"),
            (Hold::Memory, Circumstances { free_memory: worst.free_memory, ..well() }, "B"),
            (Hold::Busy, Circumstances { busy: worst.busy.clone(), ..well() }, "S"),
            (Hold::Session, Circumstances { absent: worst.absent, ..well() }, "S"),
        ] {
            for (stage, letter) in ALL.into_iter().zip(['F', 'B', 'S']) {
                let expected = stages.contains(letter).then_some(hold_of);
                assert_eq!(hold(stage, &strict(), &seen), expected, "{hold_of:?} {stage:?}");
            }
        }
    }

    #[test]
    fn an_urgent_generation_waits_for_no_window_battery_or_network_but_for_what_it_cannot_do_without() {
        let urgent = Rules { urgent: true, ..strict() };
        let mut seen = worst();
        assert_eq!(hold(Stage::Switch, &urgent, &seen), Some(Hold::Disk));
        seen.free_disk = None;
        assert_eq!(hold(Stage::Fetch, &urgent, &seen), None);
        assert_eq!(hold(Stage::Switch, &urgent, &seen), Some(Hold::Busy));
        seen.busy = None;
        assert_eq!(hold(Stage::Switch, &urgent, &seen), Some(Hold::Session));
    }

    #[test]
    fn a_pause_comes_before_everything_and_ends_by_itself() {
        let urgent = Rules { urgent: true, ..strict() };
        let pause = Pause { until: Some(200), since: 0, by: None };
        let held = |now| gate(Stage::Fetch, &urgent, &Circumstances::default(), Some(&pause), now);
        assert_eq!(
            held(199).map(|deferral| (deferral.hold, deferral.until)),
            Some((Hold::Paused, Some(200)))
        );
        assert_eq!(held(200), None);
        assert!(Pause { until: None, ..pause }.holds(i64::MAX));
    }

    #[test]
    fn a_window_says_when_it_opens() {
        let seen = Circumstances { window: closed(), ..Circumstances::default() };
        assert_eq!(gate(Stage::Switch, &strict(), &seen, None, 100).unwrap().until, Some(500));
    }

    #[test]
    fn of_two_policies_the_stricter_holds_whoever_says_it() {
        let window = |from: &str| Window {
            days: vec![],
            from: from.parse().unwrap(),
            to: "24:00".parse().unwrap(),
            zone: None,
        };
        let strict = Policy {
            windows: vec![window("22:00")],
            reboot: Some(RebootPolicy::Window),
            drift: Some(DriftPolicy::Enforce),
            inhibited: Some(InhibitedPolicy::Wait),
            minimum_battery: Some(80),
            metered: Some(MeteredPolicy::Wait),
            minimum_disk_mib: Some(4096),
            minimum_memory_mib: Some(1024),
            max_jobs: Some(1),
            cores: Some(2),
            nice: Some(19),
            keep_generations: Some(20),
            ..Policy::default()
        };
        let lax = Policy {
            windows: vec![window("20:00")],
            reboot: Some(RebootPolicy::Now),
            drift: Some(DriftPolicy::Report),
            inhibited: Some(InhibitedPolicy::Boot),
            minimum_battery: Some(5),
            metered: Some(MeteredPolicy::Go),
            minimum_disk_mib: Some(1),
            minimum_memory_mib: Some(1),
            max_jobs: Some(8),
            cores: Some(8),
            nice: Some(0),
            keep_generations: Some(3),
            ..Policy::default()
        };
        let (one, other) = (Rules::new(&strict, &lax), Rules::new(&lax, &strict));
        for rules in [&one, &other] {
            assert_eq!(rules.windows.len(), 2, "both have to be open");
            assert_eq!((rules.reboot, rules.drift), (RebootPolicy::Window, DriftPolicy::Enforce));
            assert_eq!((rules.minimum_battery, rules.metered), (80, MeteredPolicy::Wait));
            assert_eq!(rules.inhibited, InhibitedPolicy::Wait);
            assert_eq!((rules.minimum_disk, rules.minimum_memory), (4 << 30, 1 << 30));
            assert_eq!((rules.max_jobs, rules.cores, rules.nice), (Some(1), Some(2), Some(19)));
            assert_eq!(rules.keep_generations, Some(20));
        }
        // A policy without settings takes nothing away.
        let alone = Rules::new(&strict, &Policy::default());
        assert_eq!((alone.max_jobs, alone.reboot), (Some(1), RebootPolicy::Window));
        assert_eq!(alone, Rules::new(&Policy::default(), &strict));
        assert_eq!(Rules::new(&lax, &Policy::default()).inhibited, InhibitedPolicy::Boot);
    }

    #[test]
    fn only_operators_make_a_generation_urgent() {
        let urgent = Policy { urgent: true, ..Policy::default() };
        assert!(Rules::new(&urgent, &Policy::default()).urgent);
        assert!(!Rules::new(&Policy::default(), &urgent).urgent);
    }
}
