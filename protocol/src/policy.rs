//! When and how a machine takes a generation: stated by its operators in the signed target, and by its
//! owner in the machine's own file. Where both state something, the stricter one applies.

pub mod written;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most windows in a policy.
pub const MAX_WINDOWS: usize = 32;
/// The most hooks before a switch, and after one.
pub const MAX_HOOKS: usize = 16;
/// Bounds of [`Hook::timeout_seconds`]: a second to an hour.
pub const HOOK_SECONDS: std::ops::RangeInclusive<u32> = 1..=3600;
/// The highest niceness.
pub const MAX_NICE: u8 = 19;

/// Every field is optional; for what is absent, the machine's defaults apply. Unknown fields are ignored,
/// as in the target.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// The machine switches and reboots only while one of these is open. Empty: at any time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// Whether this generation ignores windows, the battery and metered networks.
    #[serde(skip_serializing_if = "is_false")]
    pub urgent: bool,
    /// Whether and when the machine reboots by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reboot: Option<RebootPolicy>,
    /// What to do when somebody else changed the running system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftPolicy>,
    /// What to do with a system that NixOS refuses to switch a running one to (switch inhibitors).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inhibited: Option<InhibitedPolicy>,
    /// On battery, the charge in percent below which nothing is started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_battery: Option<u8>,
    /// What to do on a metered network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metered: Option<MeteredPolicy>,
    /// How much space must be free on the store's disk before anything is fetched, built or switched, in
    /// MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_disk_mib: Option<u64>,
    /// How much memory must be free before anything is fetched, built or switched, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_memory_mib: Option<u64>,
    /// Nix's `max-jobs` for a build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_jobs: Option<u32>,
    /// Nix's `cores` for a build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// The niceness of a build, 0 to [`MAX_NICE`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<u8>,
    /// How many generations of the system profile are kept once a new one is confirmed. Without it, none is
    /// removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_generations: Option<u32>,
    /// Run before a switch, in order; if one fails, the switch is put off.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Hook>,
    /// Run after a switch, whatever its outcome.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Hook>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Policy {
    /// Whether it leaves everything to the machine's defaults.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks what must hold for every policy.
    pub fn check(&self) -> Result<(), PolicyError> {
        check_windows(&self.windows)?;
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

/// Checks what must hold for every list of windows.
pub(crate) fn check_windows(windows: &[Window]) -> Result<(), PolicyError> {
    let found = windows.len();
    if found > MAX_WINDOWS {
        return Err(PolicyError::TooMany { what: "windows", found, most: MAX_WINDOWS });
    }
    windows.iter().try_for_each(Window::check)
}

/// A time of each week in which a machine may switch.
///
/// A time that the clocks skip in spring counts as an hour later. Of a time that they show twice in autumn,
/// a window begins at the first and ends at the second.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// The days on which it opens. Empty: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    /// When it opens, 00:00 to 23:59.
    pub from: TimeOfDay,
    /// When it closes; on the next day unless it is later than `from`.
    pub to: TimeOfDay,
    /// An IANA time zone. `None`: the machine's own.
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

/// Whether this can be the name of a time zone; it becomes part of a file name.
fn is_zone(zone: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-_".contains(&b))
    };
    zone.len() <= 64 && zone.split('/').all(plain)
}

/// A day of the week, written `mon` to `sun`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

const DAY_MINUTES: u16 = 24 * 60;

/// `HH:MM`, from 00:00 to 24:00.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay(u16);

impl TimeOfDay {
    /// The hour, 0 to 24.
    pub fn hour(self) -> u8 {
        u8::try_from(self.0 / 60).unwrap_or(24)
    }
    /// The minute, 0 to 59.
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

/// When a machine whose system needs a reboot gets one. The strictest comes last.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebootPolicy {
    /// As soon as nobody is logged in and nothing inhibits it.
    Now,
    /// While a window is open, and nobody is logged in and nothing inhibits it.
    Window,
    /// Only people reboot it. Values of later versions read as this.
    #[default]
    #[serde(other)]
    Never,
}

/// What to do when somebody else changed the running system. The stricter comes first.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriftPolicy {
    /// Activate the confirmed generation again.
    Enforce,
    /// Report it and change nothing. Values of later versions read as this.
    #[default]
    #[serde(other)]
    Report,
}

/// What to do with a system that NixOS refuses to switch a running one to. The stricter comes last.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InhibitedPolicy {
    /// Make it what the next boot starts, as the action `boot` does.
    Boot,
    /// Wait for a person. Values of later versions read as this.
    #[default]
    #[serde(other)]
    Wait,
}

/// What to do on a metered network. The stricter comes last.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeteredPolicy {
    /// Fetch as on any other network.
    #[default]
    Go,
    /// Fetch nothing. Values of later versions read as this.
    #[serde(other)]
    Wait,
}

/// A program on the machine that is run before or after a switch, as root.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hook {
    /// Its name, for people.
    pub name: String,
    /// The program and its arguments; there is no shell.
    pub command: Vec<String>,
    /// How long it may run, in seconds; within [`HOOK_SECONDS`].
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u32,
}

/// The default of [`Hook::timeout_seconds`].
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

/// Why a policy is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The text is not a time of day.
    #[error("'{0}' is not a time of day: write HH:MM, from 00:00 to 24:00")]
    Time(String),
    /// A window has no length.
    #[error("a window opens and closes at {0}: give it a length, or leave it out to allow any time")]
    EmptyWindow(TimeOfDay),
    /// The text is not the name of a time zone.
    #[error("'{0}' is not a time zone: write one such as Europe/Zurich")]
    Zone(String),
    /// A list is too long.
    #[error("there are {found} {what}; {most} are the limit")]
    TooMany {
        /// What it lists.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The longest allowed.
        most: usize,
    },
    /// A number is out of bounds.
    #[error("{name} is {value}; write a number from {low} to {high}")]
    Bounds {
        /// The field.
        name: &'static str,
        /// What it says.
        value: u64,
        /// The lowest allowed.
        low: u64,
        /// The highest allowed.
        high: u64,
    },
    /// A hook, by its name, has no program.
    #[error("the hook '{0}' has no command")]
    EmptyHook(String),
    /// A hook's timeout is out of bounds.
    #[error("the hook '{name}' gets {found} s; write a number from 1 to 3600")]
    HookSeconds {
        /// The hook.
        name: String,
        /// Its timeout in seconds.
        found: u32,
    },
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
        // Unknown values read as the one that does least.
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
