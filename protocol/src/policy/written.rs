//! Policies and checks as people write them: in a flake (`minimumBattery`) and in a machine's own file
//! (`minimum_battery`). Unlike in signed documents, unknown fields are errors.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{DriftPolicy, HOOK_TIMEOUT, Hook, InhibitedPolicy, MeteredPolicy, Policy, RebootPolicy, Window};
use crate::target::{HealthCheck, Probe};

/// The defaults of a check: seconds for one try, and tries.
const CHECK_TIMEOUT: u32 = 10;
const CHECK_TRIES: u32 = 3;

macro_rules! written {
    ($(#[$doc:meta])* $name:ident, $check:ident, $hook:ident, $case:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, default, rename_all = $case)]
        pub struct $name {
            /// One window, or a list of them.
            window: Windows,
            urgent: bool,
            reboot: Option<RebootWord>,
            drift: Option<DriftWord>,
            inhibited: Option<InhibitedWord>,
            minimum_battery: Option<u8>,
            metered: Option<MeteredWord>,
            minimum_disk_mib: Option<u64>,
            minimum_memory_mib: Option<u64>,
            max_jobs: Option<u32>,
            cores: Option<u32>,
            nice: Option<u8>,
            keep_generations: Option<u32>,
            before: BTreeMap<String, $hook>,
            after: BTreeMap<String, $hook>,
        }

        impl From<$name> for Policy {
            fn from(written: $name) -> Policy {
                let hooks = |hooks: BTreeMap<String, $hook>| {
                    let hook = |(name, hook): (String, $hook)| Hook {
                        name,
                        command: hook.command,
                        timeout_seconds: hook.timeout_seconds.unwrap_or(HOOK_TIMEOUT),
                    };
                    hooks.into_iter().map(hook).collect()
                };
                Policy {
                    windows: written.window.0,
                    urgent: written.urgent,
                    reboot: written.reboot.map(Into::into),
                    drift: written.drift.map(Into::into),
                    inhibited: written.inhibited.map(Into::into),
                    minimum_battery: written.minimum_battery,
                    metered: written.metered.map(Into::into),
                    minimum_disk_mib: written.minimum_disk_mib,
                    minimum_memory_mib: written.minimum_memory_mib,
                    max_jobs: written.max_jobs,
                    cores: written.cores,
                    nice: written.nice,
                    keep_generations: written.keep_generations,
                    before: hooks(written.before),
                    after: hooks(written.after),
                }
            }
        }

        /// A hook, without its name.
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = $case)]
        pub struct $hook {
            command: Vec<String>,
            timeout_seconds: Option<u32>,
        }

        /// A health check, without its name.
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = $case)]
        pub struct $check {
            command: Option<Vec<String>>,
            http: Option<String>,
            tcp: Option<String>,
            unit: Option<String>,
            label: Option<String>,
            timeout_seconds: Option<u32>,
            tries: Option<u32>,
        }

        impl $check {
            /// The check as it is signed; `None` where it asks nothing, or more than one thing.
            pub fn named(self, name: &str) -> Option<HealthCheck> {
                let probes = [
                    self.command.map(|command| Probe::Command { command }),
                    self.http.map(|url| Probe::Http { url }),
                    self.tcp.map(|address| Probe::Tcp { address }),
                    self.unit.map(|unit| Probe::Unit { unit }),
                    self.label.map(|label| Probe::Label { label }),
                ];
                let mut probes = probes.into_iter().flatten();
                let probe = probes.next()?;
                probes.next().is_none().then(|| HealthCheck {
                    name: name.to_owned(),
                    probe,
                    timeout_seconds: self.timeout_seconds.unwrap_or(CHECK_TIMEOUT),
                    tries: self.tries.unwrap_or(CHECK_TRIES),
                })
            }
        }
    };
}

written!(
    /// A policy as it is written in a flake.
    InFlake,
    CheckInFlake,
    HookInFlake,
    "camelCase"
);
written!(
    /// A policy as it is written in a machine's own file.
    InFile,
    CheckInFile,
    HookInFile,
    "snake_case"
);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RebootWord {
    Never,
    Window,
    Now,
}
impl From<RebootWord> for RebootPolicy {
    fn from(word: RebootWord) -> Self {
        match word {
            RebootWord::Never => Self::Never,
            RebootWord::Window => Self::Window,
            RebootWord::Now => Self::Now,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DriftWord {
    Report,
    Enforce,
}
impl From<DriftWord> for DriftPolicy {
    fn from(word: DriftWord) -> Self {
        match word {
            DriftWord::Report => Self::Report,
            DriftWord::Enforce => Self::Enforce,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum InhibitedWord {
    Boot,
    Wait,
}
impl From<InhibitedWord> for InhibitedPolicy {
    fn from(word: InhibitedWord) -> Self {
        match word {
            InhibitedWord::Boot => Self::Boot,
            InhibitedWord::Wait => Self::Wait,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MeteredWord {
    Go,
    Wait,
}
impl From<MeteredWord> for MeteredPolicy {
    fn from(word: MeteredWord) -> Self {
        match word {
            MeteredWord::Go => Self::Go,
            MeteredWord::Wait => Self::Wait,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Windows(Vec<Window>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Strict {
    #[serde(default)]
    days: Vec<super::Day>,
    from: super::TimeOfDay,
    to: super::TimeOfDay,
    #[serde(default)]
    zone: Option<String>,
}
impl From<Strict> for Window {
    fn from(Strict { days, from, to, zone }: Strict) -> Self {
        Self { days, from, to, zone }
    }
}

impl<'de> Deserialize<'de> for Windows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Windows;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a window such as { from = \"22:00\"; to = \"04:00\"; }, or a list of them")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Windows, A::Error> {
                Ok(Windows(vec![Strict::deserialize(de::value::MapAccessDeserializer::new(map))?.into()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Windows, A::Error> {
                let mut windows = Vec::new();
                while let Some(window) = list.next_element::<Strict>()? {
                    windows.push(window.into());
                }
                Ok(Windows(windows))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flake(text: &str) -> Result<Policy, String> {
        serde_json::from_str::<InFlake>(text).map(Policy::from).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_that_can_be_written_arrives() {
        let policy = flake(
            r#"{"window":{"days":["sat"],"from":"22:00","to":"04:00","zone":"UTC"},"urgent":true,
                "reboot":"window","drift":"enforce","minimumBattery":40,"metered":"wait","minimumDiskMib":1,
                "minimumMemoryMib":2,"maxJobs":3,"cores":4,"nice":5,"keepGenerations":6,
                "before":{"drain":{"command":["drain"],"timeoutSeconds":7}},
                "after":{"b":{"command":["x"]},"a":{"command":["y"]}}}"#,
        )
        .unwrap();
        assert_eq!(policy.windows[0].from.to_string(), "22:00");
        assert!(policy.urgent);
        assert_eq!(policy.reboot, Some(RebootPolicy::Window));
        assert_eq!(policy.drift, Some(DriftPolicy::Enforce));
        assert_eq!(policy.metered, Some(MeteredPolicy::Wait));
        assert_eq!((policy.minimum_battery, policy.nice), (Some(40), Some(5)));
        assert_eq!((policy.minimum_disk_mib, policy.minimum_memory_mib), (Some(1), Some(2)));
        assert_eq!((policy.max_jobs, policy.cores, policy.keep_generations), (Some(3), Some(4), Some(6)));
        assert_eq!((policy.before[0].name.as_str(), policy.before[0].timeout_seconds), ("drain", 7));
        // Hooks run in the order of their names.
        let names: Vec<&str> = policy.after.iter().map(|hook| hook.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let own: InFile = serde_json::from_str(r#"{"minimum_battery":40,"max_jobs":3}"#).unwrap();
        assert_eq!(Policy::from(own).max_jobs, Some(3));
    }

    #[test]
    fn a_window_may_be_one_or_a_list() {
        let list = flake(r#"{"window":[{"from":"01:00","to":"02:00"},{"from":"03:00","to":"04:00"}]}"#);
        assert_eq!(list.unwrap().windows.len(), 2);
        assert_eq!(flake("{}").unwrap(), Policy::default());
    }

    #[test]
    fn what_is_misspelt_is_named() {
        for (text, name) in [
            (r#"{"minimumBatery":3}"#, "minimumBatery"),
            (r#"{"reboot":"sometimes"}"#, "sometimes"),
            (r#"{"drift":"enforced"}"#, "enforced"),
            (r#"{"metered":"no"}"#, "no"),
            (r#"{"window":{"form":"22:00","to":"04:00"}}"#, "form"),
            (r#"{"window":{"from":"22","to":"04:00"}}"#, "'22'"),
            (r#"{"window":"nights"}"#, "a window such as"),
            (r#"{"window":[{"days":["saturday"],"from":"22:00","to":"04:00"}]}"#, "saturday"),
            (r#"{"before":{"x":{"commands":["y"]}}}"#, "commands"),
        ] {
            let error = flake(text).unwrap_err();
            assert!(error.contains(name), "{text}: {error}");
        }
        let own = serde_json::from_str::<InFile>(r#"{"minimumBattery":3}"#).unwrap_err().to_string();
        assert!(own.contains("minimumBattery"), "{own}");
    }

    #[test]
    fn a_check_asks_exactly_one_thing() {
        let check = |text: &str| serde_json::from_str::<CheckInFlake>(text).unwrap().named("x");
        assert_eq!(check(r#"{"unit":"a.service"}"#).unwrap().probe, Probe::Unit { unit: "a.service".into() });
        let label = check(r#"{"label":"org.x","tries":1,"timeoutSeconds":4}"#).unwrap();
        assert_eq!(
            (label.probe, label.tries, label.timeout_seconds),
            (Probe::Label { label: "org.x".into() }, 1, 4)
        );
        assert_eq!(check("{}"), None);
        assert_eq!(check(r#"{"http":"u","tcp":"t"}"#), None);
    }
}
