//! The root that this operator trusts: stored in root.json, and followed to the newest one, each signed by
//! its predecessor. The controller hands roots out, but is not trusted for any of them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::api::root_path;
use muster_protocol::ids::Sha256;
use muster_protocol::keys::PublicKey;
use muster_protocol::tuf::metadata::{Role, Root};
use muster_protocol::tuf::repository::root_names;

use crate::api::client::Api;
use crate::config::Config;
use crate::terminal::error::WithHint as _;
use crate::terminal::table;

const MAX_ROOT_BYTES: usize = 1024 * 1024;
/// The most roots followed at once; nobody has that many.
const MOST_ROOTS: u32 = 1024;

pub struct Trusted {
    pub root: Root,
    pub bytes: Vec<u8>,
    names: BTreeMap<String, String>,
}

impl Trusted {
    /// Loads root.json.
    pub fn load(config: &Config) -> Result<Self> {
        let bytes = config.root()?;
        let path = config.root_path();
        let root = Root::parse_self_signed(&bytes)
            .with_context(|| path.display().to_string())
            .hint("bring root.json back from whoever has a good one, and compare its SHA-256 with them")?;
        if root.version() == 1 && Sha256::of(&bytes) != config.file.fleet {
            return Err(anyhow!(
                "{} is not the first root of fleet {}",
                path.display(),
                config.file.fleet.short()
            ))
            .hint("bring back the root.json that belongs to this muster.toml");
        }
        Ok(Self { root, names: root_names(&bytes), bytes })
    }

    /// Adopts the next root if it follows from this one, and stores it.
    pub fn adopt(&mut self, config: &Config, bytes: Vec<u8>) -> Result<()> {
        self.root = self.root.successor(&bytes).context("the next root does not follow the trusted one")?;
        self.names = root_names(&bytes);
        self.bytes = bytes;
        if let Err(error) = keep(&config.root_path(), &self.bytes) {
            // It will be followed again next time.
            tell!("warning: root {} cannot be kept: {error:#}", self.root.version());
        }
        Ok(())
    }

    /// A key's name for people: its name in the root, if any, and its first digits.
    pub fn name(&self, key: &PublicKey) -> String {
        named(&self.names, key)
    }

    pub fn names(&self) -> &BTreeMap<String, String> {
        &self.names
    }

    pub fn operators(&self) -> (Vec<PublicKey>, u32) {
        (self.root.keys_of(Role::Targets), self.root.threshold(Role::Targets))
    }

    /// Refuses a key without the operators' role.
    pub fn require_operator(&self, key: &PublicKey) -> Result<()> {
        if self.root.keys_of(Role::Targets).contains(key) {
            return Ok(());
        }
        Err(anyhow!("your key {} is not an operator key in root {}", key.short(), self.root.version())).hint(
            format!(
                "set operator_key in muster.toml to a key that is, or have the root holders run `muster keys \
                 add operator {key}`"
            ),
        )
    }
}

/// How many days before a root's end a warning is shown.
const END_DAYS: i64 = 90;

/// A warning if a root ends soon, or has ended.
pub fn end_of(root: &Root, now_seconds: i64) -> Option<String> {
    let (version, ends) = (root.version(), root.expires());
    let day = table::date(ends * 1000);
    match ends - now_seconds {
        ..=0 => Some(format!(
            "Root {version} ended on {day}: machines take nothing new until `muster keys renew`, with the \
             root key."
        )),
        left if left < END_DAYS * 86_400 => Some(format!(
            "Root {version} ends on {day}, in {}: `muster keys renew`, with the root key.",
            table::span(left)
        )),
        _ => None,
    }
}

/// `alice (3f2a…)`, or the digits alone. Names are untrusted text.
pub fn named(names: &BTreeMap<String, String>, key: &PublicKey) -> String {
    match names.get(&key.hex()) {
        Some(name) => format!("{} ({})", name, key.short()),
        None => key.short(),
    }
}

/// Follows the controller's chain of roots from the trusted one on.
pub async fn follow(api: &Api, config: &Config) -> Result<Trusted> {
    let mut trusted = Trusted::load(config)?;
    let fleet = api.fleet().await?;
    if fleet.root_version < trusted.root.version() {
        return Err(anyhow!(
            "the controller's newest root is version {}, and you have seen version {}",
            fleet.root_version,
            trusted.root.version()
        ))
        .hint(format!(
            "if it was brought back from a backup, hand it the newer one: `muster keys publish {}`; if not, \
             somebody holds it",
            config.root_path().display()
        ));
    }
    for _ in 0..MOST_ROOTS {
        let next = trusted.root.version() + 1;
        let Some(bytes) = api.public_file(&root_path(next), MAX_ROOT_BYTES).await? else { break };
        trusted
            .adopt(config, bytes)
            .with_context(|| format!("the controller's root {next}"))
            .hint("do not sign anything: find out who holds the controller")?;
        tell!(
            "The fleet's root is version {next} now; {} was brought up to date.",
            config.root_path().display()
        );
    }
    Ok(trusted)
}

/// The operators of all roots up to the trusted one: a log may hold what somebody signed who has left. Each
/// root is verified, from the fleet's first one to the trusted one.
pub async fn operators_ever(api: &Api, config: &Config, trusted: &Trusted) -> Result<Vec<PublicKey>> {
    let mut operators = trusted.operators().0;
    let mut before: Option<Root> = None;
    for version in 1..trusted.root.version() {
        let bytes = api
            .public_file(&root_path(version), MAX_ROOT_BYTES)
            .await?
            .ok_or_else(|| anyhow!("the controller has no root {version}"))
            .hint("put the fleet's roots into its folder roots, and restart it")?;
        let root = match before {
            None if Sha256::of(&bytes) == config.file.fleet => Root::parse_self_signed(&bytes)?,
            None => return Err(anyhow!("the controller's root 1 is not this fleet's")),
            Some(before) => before.successor(&bytes).with_context(|| format!("root {version}"))?,
        };
        operators.extend(root.keys_of(Role::Targets));
        before = Some(root);
    }
    // They lead to the root that is trusted, or somebody made them up.
    if let Some(last) = before {
        last.successor(&trusted.bytes).context("the controller's roots do not lead to the trusted one")?;
    }
    Ok(operators)
}

fn keep(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    let kept = file.persist(path)?;
    kept.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    Ok(std::fs::File::open(folder)?.sync_all()?)
}
