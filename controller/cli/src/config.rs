//! The operator's configuration, `muster.toml`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use muster_protocol::ids::Sha256;
use muster_protocol::plan::RolloutName;
use muster_protocol::shown::without_types;
use muster_protocol::signin::MAX_HOURS;
use serde::{Deserialize, Serialize};

use crate::keys::signers::KeySource;
use crate::terminal::error::WithHint as _;

/// As written in the file; paths are relative to the file's folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where the controller answers.
    pub url: String,
    /// SHA-256 of `1.root.json`: the fleet's name.
    pub fleet: Sha256,
    /// The root metadata that this operator trusts.
    pub root: PathBuf,
    /// This operator's private key: a file, `ssh-agent`, or `ssh-agent:KEY`.
    pub operator_key: String,
    /// The only certificate authority to trust for the controller; without it, the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// The flake that `muster update` reads without `--flake`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flake: Option<String>,
    /// The flake's rollout that `muster update` uses without `--rollout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutName>,
    /// How long a signed generation may be withheld before machines and operators report a freeze, in days.
    #[serde(default = "default_days")]
    pub signature_days: u32,
    /// How many hours a sign-in lasts, during which reading does not prompt for the key; 0: prompts every
    /// time.
    #[serde(default = "default_session", skip_serializing_if = "is_default_session")]
    pub session_hours: u32,
}

fn default_days() -> u32 {
    90
}
pub fn default_session() -> u32 {
    8
}
fn is_default_session(hours: &u32) -> bool {
    *hours == default_session()
}

const FILE: &str = "muster.toml";
/// Overrides `session_hours` for one command.
const SESSION_HOURS: &str = "MUSTER_SESSION_HOURS";

/// Read and checked, with absolute paths.
#[derive(Debug, Clone)]
pub struct Config {
    pub file: File,
    folder: PathBuf,
}

impl Config {
    pub fn load(path: Option<PathBuf>) -> Result<Self> {
        let path = match path {
            Some(path) => path,
            None => default_folder()?.join(FILE),
        };
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the operator's configuration {}", path.display()))
            .hint("make a fleet with `muster init`, or name its muster.toml with --config")?;
        Self::read(&path, &text)
    }

    /// For commands that also work without a controller: `None` if no file was named and none exists in the
    /// default place. A file that exists but is invalid is still an error.
    pub fn load_if_any(path: Option<PathBuf>) -> Result<Option<Self>> {
        if path.is_none() {
            let found = std::fs::symlink_metadata(default_folder()?.join(FILE));
            if found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
                return Ok(None);
            }
        }
        Self::load(path).map(Some)
    }

    fn read(path: &Path, text: &str) -> Result<Self> {
        let read: Result<File, _> = toml::from_str(text);
        let mut file = read
            .map_err(|error| anyhow!("{}", without_types(&error.to_string())))
            .with_context(|| format!("{} is not an operator's configuration", path.display()))
            .hint("compare it with the muster.toml that `muster init --dir SOME-FOLDER` writes")?;
        if file.signature_days == 0 {
            return Err(anyhow!("{}: signature_days is 0", path.display()))
                .hint("write how many days a signed generation stays good, 90 for example");
        }
        if let Some(hours) = std::env::var_os(SESSION_HOURS) {
            let hours = hours.to_str().and_then(|hours| hours.parse().ok());
            file.session_hours = hours.ok_or_else(|| anyhow!("{SESSION_HOURS} is not a number of hours"))?;
        }
        if file.session_hours > MAX_HOURS {
            return Err(anyhow!("session_hours is {}", file.session_hours))
                .hint(format!("write at most {MAX_HOURS}, or 0 to be asked each time"));
        }
        let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        Ok(Self { file, folder })
    }

    pub fn path(&self, relative: &Path) -> PathBuf {
        self.folder.join(relative)
    }

    pub fn operator_key(&self) -> KeySource {
        self.source(&self.file.operator_key)
    }

    /// A key as named by the configuration or an option; files are relative to the configuration.
    pub fn source(&self, text: &str) -> KeySource {
        // Every text is a source.
        let source: KeySource = text.parse().unwrap_or(KeySource::Agent(None));
        source.relative_to(&self.folder)
    }

    /// Where the trusted root is stored.
    pub fn root_path(&self) -> PathBuf {
        self.path(&self.file.root)
    }

    /// The trusted root's bytes.
    pub fn root(&self) -> Result<Vec<u8>> {
        let path = self.root_path();
        std::fs::read(&path)
            .with_context(|| format!("cannot read the trusted root {}", path.display()))
            .hint("bring root.json back from the folder that `muster init` made")
    }
}

/// The option `--flake` of verbs that work in a flake's folder.
#[derive(Debug, Clone, Args)]
pub struct FlakeArgument {
    /// The flake, in a folder here [default: flake in muster.toml, or the current folder]
    #[arg(long, value_name = "REF")]
    flake: Option<String>,
}

impl FlakeArgument {
    /// The operator's configuration need not exist.
    pub fn reference(&self, config: Option<PathBuf>) -> Result<String> {
        if let Some(flake) = &self.flake {
            return Ok(flake.clone());
        }
        let configured = Config::load_if_any(config)?.and_then(|config| config.file.flake);
        Ok(configured.unwrap_or_else(|| ".".to_owned()))
    }
}

/// The controller's configuration: the named one, or the one beside the operator's, which MUSTER_CONFIG
/// names.
pub fn controller_file(config: Option<PathBuf>) -> Result<PathBuf> {
    match config {
        Some(config) if config.file_name().is_some_and(|name| name == "muster.toml") => {
            Ok(config.with_file_name("controller").join("controller.toml"))
        }
        Some(config) => Ok(config),
        None => Ok(default_folder()?.join("controller/controller.toml")),
    }
}

/// `muster` in the user's configuration folder (XDG Base Directory Specification).
pub fn default_folder() -> Result<PathBuf> {
    let xdg = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    xdg.or_else(home)
        .map(|folder| folder.join("muster"))
        .ok_or_else(|| anyhow!("neither XDG_CONFIG_HOME nor HOME is set"))
        .hint("name the configuration with --config, or the folder with `muster init --dir`")
}
