//! `/etc/muster/agent.toml`: read once at the start, checked, and passed as a value.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use muster_protocol::api::MAX_POLL_SECONDS;
use muster_protocol::machine::System;
use muster_protocol::policy::written::{CheckInFile, InFile};
use muster_protocol::policy::{Policy, PolicyError};
use muster_protocol::shown::without_types;
use muster_protocol::target::{HealthCheck, MAX_CHECKS};
use serde::Deserialize;

use crate::{durable, environment};

/// Where the configuration is unless `--config` says otherwise. It need not exist.
pub const DEFAULT_CONFIG: &str = "/etc/muster/agent.toml";
const MAX_CONFIG_BYTES: u64 = 64 * 1024;
/// Bounds of `build_seconds`: a minute to a week.
const BUILD_SECONDS: std::ops::RangeInclusive<u64> = 60..=604_800;

/// The agent's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything the agent keeps; owned by root, mode 0700.
    pub state_dir: PathBuf,
    /// How long one long poll waits.
    pub poll_seconds: u64,
    /// The longest that fetching and building one generation may take.
    pub build_seconds: u64,
    /// Members of this group may use the agent's socket too.
    pub group: Option<String>,
    /// The machine owner's policy on when and how generations are installed.
    pub policy: Policy,
    /// Run besides the checks that operators sign.
    pub checks: Vec<HealthCheck>,
    /// `http://[NAME:PASSWORD@]HOST:PORT`, used for everything that the agent and Nix fetch.
    pub proxy: Option<String>,
    /// Except for these hosts, domains and networks; if unset, for the machine itself.
    pub no_proxy: Option<Vec<String>>,
    /// The relevant part of the agent's own environment; see [`crate::environment`].
    pub environment: BTreeMap<String, String>,
    /// A machine in a folder. Only builds with the feature `stand-in` read it.
    pub stand_in: Option<StandIn>,
    /// The file this was read from, whether it exists or not; the activator is started with it.
    pub source: PathBuf,
}

/// A machine in a folder, for the demo and the tests.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandIn {
    /// Prefixed to `/run`, `/etc`, `/nix/var`, `/Library` and so on.
    pub root: PathBuf,
    /// `NIX_REMOTE` of every Nix process; if unset, the host's own store is used.
    #[serde(default)]
    pub store: Option<String>,
    /// The folder that comes first in `PATH`.
    pub path: PathBuf,
    pub system: System,
    /// `NIX_CONFIG` of every Nix process.
    #[serde(default)]
    pub nix_config: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("there is no configuration file {}: give the path of one after --config", .0.display())]
    Missing(PathBuf),
    #[error("{} is invalid{}: {detail}", path.display(), line.map(|n| format!(" in line {n}")).unwrap_or_default())]
    Format { path: PathBuf, line: Option<usize>, detail: String },
    #[error("{}: {key} is {value}; write a number from {low} to {high}", path.display())]
    Range { path: PathBuf, key: &'static str, value: u64, low: u64, high: u64 },
    #[error("{}: in [policy], {reason}", path.display())]
    Policy { path: PathBuf, reason: PolicyError },
    #[error("{}: only operators make a generation urgent, by signing it so: remove 'urgent' from [policy]", .0.display())]
    Urgent(PathBuf),
    #[error("{}: [checks.{check}] {reason}", path.display())]
    Check { path: PathBuf, check: String, reason: &'static str },
    #[error("{}: group is '{group}'; write the name of a group of this machine", path.display())]
    Group { path: PathBuf, group: String },
    #[error("{}: proxy is invalid; write http://HOST:PORT or http://NAME:PASSWORD@HOST:PORT", .0.display())]
    Proxy(PathBuf),
    #[error("{}: no_proxy has '{entry}'; write hosts, domains and networks such as \"10.0.0.0/8\", each by \
        itself", path.display())]
    NoProxy { path: PathBuf, entry: String },
    #[error("{}: state_dir is '{}'; write an absolute path", path.display(), value.display())]
    RelativeState { path: PathBuf, value: PathBuf },
    #[error(
        "{}: [stand_in] is for tests, and this muster-agent was built without the feature 'stand-in': \
         remove that section",
        .0.display()
    )]
    StandIn(PathBuf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "default_state_dir")]
    state_dir: PathBuf,
    #[serde(default = "default_poll")]
    poll_seconds: u64,
    #[serde(default = "default_build")]
    build_seconds: u64,
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    proxy: Option<String>,
    #[serde(default)]
    no_proxy: Option<Vec<String>>,
    #[serde(default)]
    policy: InFile,
    #[serde(default)]
    checks: BTreeMap<String, CheckInFile>,
    #[serde(default)]
    stand_in: Option<StandIn>,
}

fn default_state_dir() -> PathBuf {
    "/var/lib/muster".into()
}
fn default_poll() -> u64 {
    55
}
fn default_build() -> u64 {
    86_400
}

impl Config {
    /// Reads `explicit`, which must exist, or [`DEFAULT_CONFIG`], which need not.
    pub fn load(explicit: Option<&Path>) -> Result<Self, ConfigError> {
        let path = explicit.unwrap_or(Path::new(DEFAULT_CONFIG)).to_path_buf();
        let bytes = durable::read(&path, MAX_CONFIG_BYTES)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let mut config = match bytes {
            Some(bytes) => {
                let path = std::path::absolute(&path).unwrap_or(path);
                Self::parse(&String::from_utf8_lossy(&bytes), path)?
            }
            None if explicit.is_some() => return Err(ConfigError::Missing(path)),
            None => Self::parse("", path)?,
        };
        let text =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        config.environment = environment::of_environment(std::env::vars_os().filter_map(text));
        Ok(config)
    }

    /// Checks the text of a configuration file at `source`.
    pub fn parse(text: &str, source: PathBuf) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| ConfigError::Format {
            path: source.clone(),
            line: error.span().map(|span| 1 + text[..span.start].matches('\n').count()),
            detail: without_types(error.message()).replace('`', "'"),
        })?;
        let config = Self {
            state_dir: file.state_dir,
            poll_seconds: file.poll_seconds,
            build_seconds: file.build_seconds,
            group: file.group,
            proxy: file.proxy,
            no_proxy: file.no_proxy,
            environment: BTreeMap::new(),
            policy: file.policy.into(),
            checks: checks(file.checks, &source)?,
            stand_in: file.stand_in,
            source,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let path = self.source.clone();
        if self.stand_in.is_some() && !cfg!(feature = "stand-in") {
            return Err(ConfigError::StandIn(path));
        }
        self.policy.check().map_err(|reason| ConfigError::Policy { path: path.clone(), reason })?;
        if self.policy.urgent {
            return Err(ConfigError::Urgent(path));
        }
        if let Some(group) = self.group.as_ref().filter(|group| !is_name(group)) {
            return Err(ConfigError::Group { path, group: group.clone() });
        }
        if self.proxy.as_ref().is_some_and(|proxy| !is_proxy(proxy)) {
            // It may contain a password.
            return Err(ConfigError::Proxy(path));
        }
        let plain =
            |entry: &&String| !entry.is_empty() && entry.bytes().all(|b| b.is_ascii_graphic() && b != b',');
        if let Some(entry) = self.no_proxy.iter().flatten().find(|entry| !plain(entry)) {
            return Err(ConfigError::NoProxy { path, entry: entry.clone() });
        }
        if !self.state_dir.is_absolute() {
            return Err(ConfigError::RelativeState { path, value: self.state_dir.clone() });
        }
        for (key, value, range) in [
            ("poll_seconds", self.poll_seconds, 1..=MAX_POLL_SECONDS),
            ("build_seconds", self.build_seconds, BUILD_SECONDS),
        ] {
            if !range.contains(&value) {
                return Err(ConfigError::Range { path, key, value, low: *range.start(), high: *range.end() });
            }
        }
        Ok(())
    }

    /// A file or folder of the agent's state.
    pub fn state(&self, name: &str) -> PathBuf {
        self.state_dir.join(name)
    }
}

fn is_proxy(text: &str) -> bool {
    let plain = text.starts_with("http://") && text.bytes().all(|b| b.is_ascii_graphic());
    let url = reqwest::Url::parse(text).ok().filter(|_| plain);
    url.is_some_and(|url| {
        url.has_host() && url.path() == "/" && url.query().is_none() && url.fragment().is_none()
    })
}

/// A group's name is passed to a program as an argument.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !text.is_empty() && text.len() <= 64 && !text.starts_with('-') && text.bytes().all(plain)
}

fn checks(written: BTreeMap<String, CheckInFile>, source: &Path) -> Result<Vec<HealthCheck>, ConfigError> {
    let failed = |check: &str, reason| ConfigError::Check {
        path: source.to_path_buf(),
        check: check.to_owned(),
        reason,
    };
    if written.len() > MAX_CHECKS {
        return Err(failed("…", "are too many: 64 are the limit"));
    }
    let one = |(name, check): (String, CheckInFile)| {
        let Some(check) = check.named(&name) else {
            return Err(failed(&name, "must have exactly one of command, http, tcp, unit and label"));
        };
        // Which units and labels exist is not known here; an agent that cannot check one says so.
        let class = check.probe.class().unwrap_or(muster_protocol::machine::Class::Nixos);
        check.check(class).map_err(|_| failed(&name, "is empty, or has no tries or no time"))?;
        Ok(check)
    };
    written.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, "/etc/muster/agent.toml".into())
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/muster"));
        assert_eq!((config.poll_seconds, config.build_seconds), (55, 86_400));
        assert!(config.stand_in.is_none());
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name_and_line() {
        let error = parse("poll_seconds = 5\npol_seconds = 6\n").unwrap_err().to_string();
        assert!(error.contains("'pol_seconds'") && error.contains("line 2"), "{error}");
        let error = parse("[stand_in]\nroot='/r'\npath='/p'\nsystem='aarch64-darwin'\nroots='/x'\n");
        assert!(error.unwrap_err().to_string().contains("'roots'"));
    }

    #[test]
    fn policies_and_checks_of_the_machine_are_read_and_what_is_wrong_is_named() {
        let config = parse(
            "group = 'wheel'\n[policy]\nwindow = { from = '22:00', to = '04:00' }\nminimum_battery = 50\n\
             [policy.before.drain]\ncommand = ['drain']\n[checks.ssh]\ntcp = '127.0.0.1:22'\n",
        )
        .unwrap();
        assert_eq!(config.policy.windows.len(), 1);
        assert_eq!((config.group.as_deref(), config.policy.minimum_battery), (Some("wheel"), Some(50)));
        assert_eq!((config.checks[0].name.as_str(), config.policy.before[0].name.as_str()), ("ssh", "drain"));
        for (text, part) in [
            ("[policy]\nminimum_batery = 3", "'minimum_batery'"),
            ("[policy]\nnice = 20", "nice is 20"),
            ("[policy]\nurgent = true", "only operators"),
            ("[policy]\nreboot = 'maybe'", "'maybe'"),
            ("[checks.ssh]\ntcp = 'x:1'\nhttp = 'y'", "[checks.ssh] must have exactly one"),
            ("[checks.ssh]\ntcp = ''", "[checks.ssh] is empty"),
            ("group = '-x'", "'-x'"),
            ("proxy = 'https://p:1'", "http://HOST:PORT"),
            ("proxy = 'http://n:secret@p:1/path'", "http://HOST:PORT"),
            ("proxy = 'http://p:1'\nno_proxy = ['a,b']", "'a,b'"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn values_out_of_bounds_are_refused_with_the_bounds() {
        let error = parse("poll_seconds = 0").unwrap_err().to_string();
        assert!(error.contains("from 1 to 600"), "{error}");
        assert!(parse("poll_seconds = 601").is_err());
        assert!(parse("build_seconds = 3").is_err());
        assert!(parse("state_dir = 'here'").unwrap_err().to_string().contains("absolute"));
    }

    #[test]
    fn a_stand_in_is_read_only_by_builds_that_are_made_for_it() {
        let read = parse(
            "[stand_in]\nroot = '/tmp/m1'\npath = '/bin'\nsystem = 'aarch64-darwin'\nstore = \
             'local?root=/tmp/m1'",
        );
        if cfg!(feature = "stand-in") {
            assert_eq!(read.unwrap().stand_in.unwrap().store.unwrap(), "local?root=/tmp/m1");
        } else {
            assert!(read.unwrap_err().to_string().contains("without the feature 'stand-in'"));
        }
    }

    #[test]
    fn a_file_that_was_asked_for_must_exist() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        assert!(matches!(Config::load(Some(&path)), Err(ConfigError::Missing(_))));
        std::fs::write(&path, "poll_seconds = 7").unwrap();
        assert_eq!(Config::load(Some(&path)).unwrap().poll_seconds, 7);
    }
}
