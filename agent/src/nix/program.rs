//! Runs Nix: fetches a derivation, builds it, and compares the result with what was signed.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_protocol::derivation::Derivation;
use muster_protocol::ids::StorePath;
use muster_protocol::machine::{Class, can_take};
use muster_protocol::target::Target;
use tokio::process::Command;

use super::error::{self, NixError, message, tail};
use crate::cache::{Cache, Takes, Trouble};
use crate::client::Client;
use crate::config::Config;
use crate::core::blame::{self, Blame, Caches};
use crate::durable;
use crate::environment;
use crate::platform::Layout;
use crate::process::{self, Limits, Listener, Plain, without_colours};
use crate::surroundings::{self, Proxies};

/// Longer `.drv` files are not read; the longest in nixpkgs have a few hundred KiB.
const MAX_DERIVATION_BYTES: u64 = 16 * 1024 * 1024;
/// The limit for a query to Nix, and for setting the profile.
pub(super) const SHORT_LIMIT: Duration = Duration::from_secs(300);
/// With less free space than this a fetch or build is killed, so that the agent and the machine can still
/// write.
pub const RESERVE_BYTES: u64 = 128 * 1024 * 1024;
/// The memory limit of a Nix that builds nothing. One that builds passes its limits on to compilers, so it
/// has none.
pub(super) const MOST_MEMORY: u64 = 4 * 1024 * 1024 * 1024;

/// What a build may use of the machine. Unset: as nix.conf says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BuildLimits {
    pub max_jobs: Option<u32>,
    pub cores: Option<u32>,
    pub nice: Option<u8>,
    pub caches: Caches,
}

/// Runs Nix with an environment of its own: nothing of the caller's leaks in except `PATH` and what
/// [`environment`] lists.
#[derive(Debug, Clone)]
pub struct Nix {
    pub(super) layout: Layout,
    path: OsString,
    home: PathBuf,
    remote: Option<String>,
    config: Option<String>,
    /// Set by the administrator.
    variables: Vec<(String, String)>,
    build_folder: PathBuf,
    limit: Duration,
}

/// Nix's memory of a cache, in a folder that is deleted after the run: each run's cache has a different
/// address, so nothing of it is useful later, and a controller could fill root's home with it.
struct Remembered(PathBuf);

impl Remembered {
    fn of(layout: &Layout) -> Self {
        let remembered = Self(layout.state("nix-cache"));
        remembered.forget();
        remembered
    }
    fn forget(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "Nix's memory of the cache cannot be removed");
        }
    }
}

impl Drop for Remembered {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Nix {
    pub fn new(config: &Config, layout: &Layout) -> Self {
        let stand_in = config.stand_in.as_ref();
        let home = match layout.class() {
            Class::Darwin => "/var/root",
            Class::Nixos => "/root",
        };
        Self {
            path: layout.search_path(),
            home: layout.system(home),
            remote: stand_in.and_then(|stand_in| stand_in.store.clone()),
            config: stand_in.map(|stand_in| stand_in.nix_config.clone()).filter(|text| !text.is_empty()),
            variables: {
                let passed = |name: &&str| Some((name.to_string(), config.environment.get(*name)?.clone()));
                let passed = environment::PASSED.iter().filter_map(passed);
                passed.chain(Proxies::of(config).beside_the_cache().variables()).collect()
            },
            build_folder: config.build_folder(),
            limit: Duration::from_secs(config.build_seconds),
            layout: layout.clone(),
        }
    }

    /// Brings a derivation and everything it references into the store.
    pub async fn fetch(
        &self,
        derivation: &StorePath,
        client: &Client,
        listener: &mut dyn Listener,
    ) -> Result<(), NixError> {
        // The GC root comes first, so that no garbage collection gets in between; Nix ignores it until the
        // path is valid.
        self.keep(derivation)?;
        // A file that Nix refused may still be in the store's folder; only its database tells. If not even a
        // file exists there is no need to ask.
        if self.layout.physical(derivation).exists() && self.valid(derivation).await? {
            return Ok(());
        }
        let netrc = self.layout.state("netrc");
        let cache =
            Cache::with_password(client, Takes::Derivations, &netrc).await.map_err(NixError::Cache)?;
        let mut command = self.command("nix")?;
        command.args(["--extra-experimental-features", "nix-command", "copy", "--derivation"]);
        command.args(["--log-format", "internal-json", "--from", cache.url()]);
        command.arg("--option").arg("netrc-file").arg(&netrc);
        let remembered = Remembered::of(&self.layout);
        command.env("XDG_CACHE_HOME", &remembered.0);
        // Derivations and sources are named by their content and need no key, so no key is trusted here.
        command.args(["--option", "require-sigs", "true", "--option", "trusted-public-keys", ""]);
        command.arg(derivation.as_str());
        let limits = Limits { memory: Some(MOST_MEMORY), ..self.limits(derivation) };
        let finished = process::follow(command, "fetching the derivation", &limits, listener).await?;
        if finished.status.success() {
            return Ok(());
        }
        let derivation = derivation.clone();
        let message = match cache.trouble() {
            Some(Trouble::Altered(detail)) => return Err(NixError::Altered { derivation, detail }),
            Some(Trouble::Refused(detail) | Trouble::Away(detail)) => detail,
            None => {
                let message = message(&finished.stderr, finished.status).replace(cache.url(), "the cache");
                error::of_fetch(message)
            }
        };
        Err(NixError::Fetch { derivation, message })
    }

    /// Builds the target's derivation, protects the result from garbage collection with `root_link`, and
    /// compares it with what was signed, before building and after.
    ///
    /// Outputs come from the machine's own substituters under the keys of its own nix.conf, like everything
    /// else it builds. The controller's cache is used only if the signed target names keys, which are added
    /// for this one build. Signatures are required whatever nix.conf says, so nothing unsigned arrives either
    /// way.
    pub async fn realise(
        &self,
        target: &Target,
        client: &Client,
        root_link: &Path,
        limits: BuildLimits,
        listener: &mut dyn Listener,
    ) -> Result<StorePath, NixError> {
        self.inspect(target)?;
        let in_the_way = |runs| surroundings::obstacle(&self.build_folder, runs);
        if let Some(found) = in_the_way(false) {
            return Err(NixError::BuildFolder(format!("{}; {}", found.problem, found.remedy)));
        }
        if let Some(folder) = root_link.parent() {
            std::fs::create_dir_all(folder).map_err(|source| Self::root_error(root_link, &source))?;
        }
        let mut command = self.limited("nix-store", limits)?;
        command.args(["--log-format", "internal-json", "--option", "require-sigs", "true"]);
        match limits.caches {
            Caches::Trusted => {}
            Caches::Doubted => drop(command.arg("--fallback")),
            Caches::Unused => drop(command.args(["--option", "substitute", "false"])),
        }
        let cache = if target.trusted_nix_keys.is_empty() {
            None
        } else {
            command.args(["--option", "extra-trusted-public-keys", &target.trusted_nix_keys.join(" ")]);
            let cache = Cache::by_secret_address(client, Takes::Outputs).await.map_err(NixError::Cache)?;
            // Through the environment, which only root can read; the machine's own netrc-file stays in force.
            let set =
                self.variables.iter().find(|(name, _)| name == "NIX_CONFIG").map(|(_, value)| value.as_str());
            let config = self.config.as_deref().or(set).unwrap_or_default();
            command.env("NIX_CONFIG", format!("{config}\nextra-substituters = {}\n", cache.url()));
            let remembered = Remembered::of(&self.layout);
            command.env("XDG_CACHE_HOME", &remembered.0);
            Some((cache, remembered))
        };
        command
            .args(["--realise", target.derivation.as_str(), "--add-root"])
            .arg(root_link)
            .arg("--indirect");
        tracing::info!(generation = %target.generation, derivation = %target.derivation, "building");
        let finished =
            process::follow(command, "building", &self.limits(&target.derivation), listener).await?;
        drop(cache);
        if !finished.status.success() {
            return Err(NixError::Build {
                derivation: target.derivation.clone(),
                message: message(&finished.stderr, finished.status),
                log: tail(&finished.stderr),
                // A build in a folder that is noexec, or full by now, may have failed because of that.
                blame: match in_the_way(true) {
                    Some(found) => Blame::Machine(format!("{}; {}", found.problem, found.remedy)),
                    None => blame::of_build(finished.status.code(), &without_colours(&finished.stderr)),
                },
            });
        }
        let built = std::fs::read_link(root_link).map_err(|source| Self::root_error(root_link, &source))?;
        match self.layout.logical(&built) {
            Some(path) if path == target.output => Ok(path),
            _ => Err(NixError::WrongOutput {
                derivation: target.derivation.clone(),
                wanted: target.output.clone(),
                found: built.display().to_string(),
            }),
        }
    }

    /// Refuses a derivation that does not match its name, is for another platform (I6), or has another
    /// output, before anything is built.
    fn inspect(&self, target: &Target) -> Result<(), NixError> {
        let path = &target.derivation;
        let unreadable = |detail: String| NixError::Derivation { path: path.clone(), detail };
        let bytes = durable::read(&self.layout.physical(path), MAX_DERIVATION_BYTES)
            .map_err(|error| NixError::Failed {
                what: format!("{path} cannot be read"),
                message: error.to_string(),
            })?
            .ok_or_else(|| NixError::NotValid(path.clone()))?;
        let text = String::from_utf8(bytes).map_err(|_| NixError::NotValid(path.clone()))?;
        if text.starts_with("DrvWithVersion(") {
            return Err(unreadable("it is of a kind that this muster-agent does not know".to_owned()));
        }
        // What cannot be parsed was not written by Nix, so its name is no hash of it either.
        let derivation = Derivation::parse(&text).ok().filter(|derivation| derivation.is_named(path, &text));
        let derivation = derivation.ok_or_else(|| NixError::NotValid(path.clone()))?;
        let platform = |source| NixError::Platform { derivation: path.clone(), source };
        let system = derivation.platform.parse().map_err(platform)?;
        can_take((target.class, &target.system), self.layout.class(), &system).map_err(platform)?;
        if !derivation.outputs.iter().any(|output| output == target.output.as_str()) {
            return Err(NixError::WrongOutput {
                derivation: path.clone(),
                wanted: target.output.clone(),
                found: derivation.outputs.join(" "),
            });
        }
        Ok(())
    }

    /// Whether Nix considers this path valid. That a file exists proves nothing.
    pub fn is_valid(&self, path: &StorePath) -> Result<bool, NixError> {
        let mut command = self.sync_command("nix-store")?;
        command.args(["--check-validity", path.as_str()]);
        let (status, stderr) = process::capture(command, "asking Nix for a path", SHORT_LIMIT, MOST_MEMORY)?;
        validity(path, status, &stderr)
    }

    async fn valid(&self, path: &StorePath) -> Result<bool, NixError> {
        let mut command = self.command("nix-store")?;
        command.args(["--check-validity", path.as_str()]);
        let limits = Limits { time: SHORT_LIMIT, memory: Some(MOST_MEMORY), disk: None };
        let finished = process::follow(command, "asking Nix for a path", &limits, &mut Plain).await?;
        validity(path, finished.status, &finished.stderr)
    }

    /// The output of `nix --version`.
    pub fn version(&self) -> Result<String, NixError> {
        let mut command = self.sync_command("nix-store")?;
        command.arg("--version");
        let (status, text) =
            process::capture(command, "asking Nix for its version", SHORT_LIMIT, MOST_MEMORY)?;
        if status.success() {
            // There may be configuration warnings around it.
            return Ok(text.lines().find(|line| line.starts_with("nix")).unwrap_or(&text).trim().to_owned());
        }
        Err(NixError::Failed { what: "Nix does not run".into(), message: message(&text, status) })
    }

    /// Where Nix's program is.
    pub fn find(&self, program: &str) -> Result<PathBuf, NixError> {
        std::env::split_paths(&self.path)
            .map(|folder| folder.join(program))
            .find(|file| file.is_file())
            .ok_or_else(|| NixError::NotFound {
                program: program.to_owned(),
                searched: self.path.to_string_lossy().into_owned(),
            })
    }

    /// Protects the derivation from garbage collection until another one replaces it.
    fn keep(&self, derivation: &StorePath) -> Result<(), NixError> {
        let folder = self.layout.gcroots();
        let (link, temporary) = (folder.join("derivation"), folder.join("derivation.new"));
        let linked = std::fs::create_dir_all(&folder)
            .and_then(|()| durable::remove(&temporary))
            .and_then(|()| std::os::unix::fs::symlink(derivation.as_str(), &temporary))
            .and_then(|()| std::fs::rename(&temporary, &link));
        linked.map_err(|source| Self::root_error(&link, &source))
    }

    pub(super) fn root_error(link: &Path, source: &io::Error) -> NixError {
        NixError::Failed { what: format!("{} cannot be made", link.display()), message: source.to_string() }
    }

    fn limits(&self, path: &StorePath) -> Limits {
        let file = self.layout.physical(path);
        // An unused store has no folder yet; it will be on the disk of the first existing parent.
        let disk = file.ancestors().skip(1).find(|folder| folder.is_dir());
        Limits {
            time: self.limit,
            memory: None,
            disk: disk.map(|folder| (folder.to_path_buf(), RESERVE_BYTES)),
        }
    }

    pub(super) fn command(&self, program: &str) -> Result<Command, NixError> {
        let mut command = Command::from(self.sync_command(program)?);
        command.kill_on_drop(false);
        Ok(command)
    }

    /// A program that builds, within its limits.
    fn limited(&self, program: &str, limits: BuildLimits) -> Result<Command, NixError> {
        let mut command = match limits.nice.filter(|nice| *nice > 0) {
            Some(nice) => {
                let mut command = self.command("nice")?;
                command.args(["-n", &nice.to_string()]).arg(self.find(program)?);
                command
            }
            None => self.command(program)?,
        };
        if let Some(jobs) = limits.max_jobs {
            command.args(["--option", "max-jobs", &jobs.to_string()]);
        }
        if let Some(cores) = limits.cores {
            command.args(["--option", "cores", &cores.to_string()]);
        }
        Ok(command)
    }

    pub(super) fn sync_command(&self, program: &str) -> Result<std::process::Command, NixError> {
        let mut command = std::process::Command::new(self.find(program)?);
        command.env_clear().env("PATH", &self.path).env("HOME", &self.home).env("LC_ALL", "C");
        command.env("USER", "root").current_dir("/");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if let Some(remote) = &self.remote {
            command.env("NIX_REMOTE", remote);
        }
        if let Some(config) = &self.config {
            command.env("NIX_CONFIG", config);
        }
        Ok(command)
    }
}

fn validity(path: &StorePath, status: std::process::ExitStatus, output: &str) -> Result<bool, NixError> {
    if status.success() {
        return Ok(true);
    }
    // Any other failure says nothing about the path.
    if output.contains("is not valid") {
        return Ok(false);
    }
    Err(NixError::Failed {
        what: format!("Nix does not say whether {path} is valid"),
        message: message(output, status),
    })
}
