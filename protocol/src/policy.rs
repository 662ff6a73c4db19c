//! When and how a machine takes a generation: said by its operators in the signed target and by its owner in the
//! machine's own file. Where both say something, the machine keeps to the stricter.

pub mod written;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most windows, and the most hooks of one kind, that a policy may have.
pub const MAX_WINDOWS: usize = 32;
pub const MAX_HOOKS: usize = 16;
/// Bounds of [`Hook::timeout_seconds`]: a second to an hour.
pub const HOOK_SECONDS: std::ops::RangeInclusive<u32> = 1..=3600;
/// The highest niceness.
pub const MAX_NICE: u8 = 19;

/// Every field is optional: what is not said is for the machine's defaults.
///
/// Additive, like the target that carries it: a reader ignores fields that it does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// The machine switches and reboots only while one of these is open. None: at any time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// This generation waits for no window, no battery and no network.
    #[serde(skip_serializing_if = "is_false")]
    pub urgent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reboot: Option<RebootPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftPolicy>,
    /// What to do with a system that NixOS does not switch a running one to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inhibited: Option<InhibitedPolicy>,
    /// On battery, the charge in percent below which nothing is begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_battery: Option<u8>,
    /// What to do on a network that is paid for by use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metered: Option<MeteredPolicy>,
    /// What must be free before anything is fetched, built or switched, in MiB: on the store's disk, and of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_disk_mib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_memory_mib: Option<u64>,
    /// Nix's `max-jobs` and `cores` for a build, and its niceness.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_jobs: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<u8>,
    /// How many generations of the system profile are kept once a new one is confirmed; none is removed unless this is
    /// said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_generations: Option<u32>,
    /// Run before a switch; one that fails puts the switch off.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Hook>,
    /// Run after a switch, whichever way it went.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Hook>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Policy {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What holds of every policy, whoever wrote it.
    pub fn check(&self) -> Result<(), PolicyError> {
        if self.windows.len() > MAX_WINDOWS {
            return Err(PolicyError::TooMany {
                what: "windows",
                found: self.windows.len(),
                most: MAX_WINDOWS,
            });
        }
        self.windows.iter().try_for_each(Window::check)?;
        for hooks in [&self.before, &self.after] {
            if hooks.len() > MAX_HOOKS {
                return Err(PolicyError::TooMany { what: "hooks", found: hooks.len(), most: MAX_HOOKS });
            }
            hooks.iter().try_for_each(Hook::check)?;
        }
        let bounds = [
            ("minimum_battery", self.minimum_battery.map(u64::from), 0, 100),
            ("nice", self.nice.map(u64::from), 0, u64::from(MAX_NICE)),
            ("max_jobs", self.max_jobs.map(u64::from), 1, 1024),
            ("cores", self.cores.map(u64::from), 1, 1024),
            ("keep_generations", self.keep_generations.map(u64::from), 2, 10_000),
            ("minimum_disk_mib", self.minimum_disk_mib, 0, 1 << 30),
            ("minimum_memory_mib", self.minimum_memory_mib, 0, 1 << 30),
        ];
        for (name, value, low, high) in bounds {
            if let Some(value) = value.filter(|value| !(low..=high).contains(value)) {
                return Err(PolicyError::Bounds { name, value, low, high });
            }
        }
        Ok(())
    }
}

/// A time of each week in which a machine may switch.
///
/// A time that the clocks skip in spring counts as an hour later; of a time that they show twice in autumn a window
/// begins with the first and ends with the second.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// The days on which it opens. None: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    pub from: TimeOfDay,
    /// On the next day unless it is later than `from`.
    pub to: TimeOfDay,
    /// An IANA time zone. None: the machine's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

impl Window {
    fn check(&self) -> Result<(), PolicyError> {
        if self.from == self.to {
            return Err(PolicyError::EmptyWindow(self.from));
        }
        if self.from.0 >= DAY_MINUTES {
            return Err(PolicyError::Time(self.from.to_string()));
        }
        match &self.zone {
            Some(zone) if !is_zone(zone) => Err(PolicyError::Zone(zone.clone())),
            _ => Ok(()),
        }
    }
}

/// Whether this could be the name of a time zone; it becomes part of a file's name.
fn is_zone(zone: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-_".contains(&b))
    };
    zone.len() <= 64 && zone.split('/').all(plain)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

const DAY_MINUTES: u16 = 24 * 60;

/// `HH:MM`, from 00:00 to 24:00.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay(u16);

impl TimeOfDay {
    pub fn hour(self) -> u8 {
        u8::try_from(self.0 / 60).unwrap_or(24)
    }
    pub fn minute(self) -> u8 {
        u8::try_from(self.0 % 60).unwrap_or(0)
    }
}
impl FromStr for TimeOfDay {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let number = |part: &str| match part.as_bytes() {
            [a @ b'0'..=b'9', b @ b'0'..=b'9'] => Some(u16::from(a - b'0') * 10 + u16::from(b - b'0')),
            _ => None,
        };
        text.split_once(':')
            .and_then(|(hour, minute)| Some((number(hour)?, number(minute)?)))
            .filter(|(hour, minute)| *minute < 60 && hour * 60 + minute <= DAY_MINUTES)
            .map(|(hour, minute)| Self(hour * 60 + minute))
            .ok_or_else(|| PolicyError::Time(text.to_owned()))
    }
}
impl TryFrom<String> for TimeOfDay {
    type Error = PolicyError;
    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}
impl From<TimeOfDay> for String {
    fn from(time: TimeOfDay) -> String {
        time.to_string()
    }
}
impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour(), self.minute())
    }
}
impl fmt::Debug for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// When a machine whose system wants a reboot gets one. The stricter comes last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebootPolicy {
    /// As soon as nobody is logged in and nothing inhibits it.
    Now,
    /// While a window is open, and nobody is logged in and nothing inhibits it.
    Window,
    /// Only people reboot it. A word of a later version is taken for this.
    #[default]
    #[serde(other)]
    Never,
}

/// What is done when somebody else changed the running system. The stricter comes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriftPolicy {
    /// The confirmed generation is activated again.
    Enforce,
    /// It is told, and left. A word of a later version is taken for this.
    #[default]
    #[serde(other)]
    Report,
}

/// The stricter comes last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InhibitedPolicy {
    /// It is made what the next boot brings, as by the action `boot`.
    Boot,
    /// Somebody is asked for. A word of a later version is taken for this.
    #[default]
    #[serde(other)]
    Wait,
}

/// The stricter comes last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeteredPolicy {
    #[default]
    Go,
    /// Nothing is fetched. A word of a later version is taken for this.
    #[serde(other)]
    Wait,
}

/// A program of the machine that is run round a switch, as root.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hook {
    /// What people call it.
    pub name: String,
    /// The first word is the program; no shell is asked.
    pub command: Vec<String>,
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u32,
}

/// What a hook gets where nothing is said.
pub const HOOK_TIMEOUT: u32 = 60;

fn default_timeout() -> u32 {
    HOOK_TIMEOUT
}

impl Hook {
    fn check(&self) -> Result<(), PolicyError> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err(PolicyError::EmptyHook(self.name.clone()));
        }
        if !HOOK_SECONDS.contains(&self.timeout_seconds) {
            return Err(PolicyError::HookSeconds { name: self.name.clone(), found: self.timeout_seconds });
        }
        Ok(())
    }
}

/// Why a policy is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("'{0}' is no time of day: write HH:MM, from 00:00 to 24:00")]
    Time(String),
    #[error("a window opens and closes at {0}: give it a length, or leave it out to allow any time")]
    EmptyWindow(TimeOfDay),
    #[error("'{0}' is no time zone: write one such as Europe/Zurich")]
    Zone(String),
    #[error("there are {found} {what}; {most} are the limit")]
    TooMany { what: &'static str, found: usize, most: usize },
    #[error("{name} is {value}; write a number from {low} to {high}")]
    Bounds { name: &'static str, value: u64, low: u64, high: u64 },
    #[error("the hook '{0}' has no command")]
    EmptyHook(String),
    #[error("the hook '{name}' gets {found} s; write a number from 1 to 3600")]
    HookSeconds { name: String, found: u32 },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Policy {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_policy_that_says_nothing_takes_no_room_and_one_of_the_future_is_read() {
        assert_eq!(serde_json::to_string(&Policy::default()).unwrap(), "{}");
        let policy = parse(r#"{"drift":"enforce","reboot":"kexec","metered":"ask","of the future":[1]}"#);
        assert_eq!(policy.drift, Some(DriftPolicy::Enforce));
        // What is not known is taken for what does least.
        assert_eq!((policy.reboot, policy.metered), (Some(RebootPolicy::Never), Some(MeteredPolicy::Wait)));
    }

    #[test]
    fn times_of_day_are_read_as_they_are_written_and_nothing_else_is() {
        for good in ["00:00", "09:05", "23:59", "24:00"] {
            assert_eq!(good.parse::<TimeOfDay>().unwrap().to_string(), good);
        }
        for bad in ["", "9:05", "24:01", "12:60", "12-30", "12:3", "ab:cd", "-1:00", "012:00"] {
            assert!(bad.parse::<TimeOfDay>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_name() {
        for (text, word) in [
            (r#"{"windows":[{"from":"22:00","to":"22:00"}]}"#, "22:00"),
            (r#"{"windows":[{"from":"24:00","to":"02:00"}]}"#, "24:00"),
            (r#"{"windows":[{"from":"22:00","to":"02:00","zone":"../etc/passwd"}]}"#, "../etc"),
            (r#"{"minimum_battery":101}"#, "minimum_battery"),
            (r#"{"keep_generations":1}"#, "keep_generations"),
            (r#"{"max_jobs":0}"#, "max_jobs"),
            (r#"{"before":[{"name":"drain","command":[]}]}"#, "drain"),
            (r#"{"after":[{"name":"x","command":["y"],"timeout_seconds":0}]}"#, "'x'"),
        ] {
            let error = parse(text).check().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let night =
            r#"{"windows":[{"days":["sat","sun"],"from":"22:00","to":"04:30","zone":"Europe/Zurich"}]}"#;
        assert!(parse(night).check().is_ok());
    }

    #[test]
    fn policies_are_ordered_by_how_strict_they_are() {
        assert!(RebootPolicy::Now < RebootPolicy::Window && RebootPolicy::Window < RebootPolicy::Never);
        assert!(DriftPolicy::Enforce < DriftPolicy::Report);
        assert!(MeteredPolicy::Go < MeteredPolicy::Wait);
    }
}
