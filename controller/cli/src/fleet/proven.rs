//! The keys that machines sign with, as they proved them to the operators who invited them. A rollout
//! believes no other key: the controller would otherwise name its own.
//!
//! They are kept in the fleet's repository, so that operators who did not invite a machine have them, too.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{MachineView, Standing};
use muster_protocol::witness::Witness;
use serde::{Deserialize, Serialize};

use super::witnesses;
use crate::config::Config;
use crate::terminal::error::WithHint as _;
use crate::vars::flake::{FolderError, local};

/// In the flake's folder, or beside muster.toml where the flake is not in a folder here.
pub const FILE: &str = "machine-keys.toml";
const MAX_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// The most former keys that are kept of a machine.
const MOST_FORMER: usize = 16;
const HEAD: &str = "# The keys that machines sign with, as they proved them to an operator: whose word \
 counts in a rollout.\n# Written by `muster machines prove` and `trust-key`. Commit it.\n\n";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    #[serde(default)]
    machines: BTreeMap<MachineName, KeptKey>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptKey {
    key: PublicKey,
    /// Keys that it had before. A proof of one of them is old, whoever shows it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<PublicKey>,
}

/// What is known of a machine's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// The machine proved it to this operator.
    Proved(PublicKey),
    /// It proved it to another operator, or a person compared it.
    Kept(PublicKey),
    /// Nobody should believe its word; why, and what to do.
    Missing(String),
}

impl Proof {
    /// The key, or why there is none.
    pub fn key(self) -> Result<PublicKey, String> {
        match self {
            Self::Proved(key) | Self::Kept(key) => Ok(key),
            Self::Missing(why) => Err(why),
        }
    }
}

/// The file, and where it is.
#[derive(Debug)]
pub struct ProvenKeys {
    path: PathBuf,
    read: Kept,
    kept: Kept,
}

/// Whether the machine's own word stands behind the key that the controller names. Pure.
fn judge(fleet: &Sha256, view: &MachineView, witness: Option<&Witness>, kept: Option<&KeptKey>) -> Proof {
    let name = &view.machine;
    let key = view.signing.map(|claim| claim.key).or(view.key);
    let Some(key) = key.filter(|_| view.standing == Standing::Enrolled) else {
        return Proof::Missing("it has not enrolled yet".to_owned());
    };
    if kept.is_some_and(|kept| kept.former.contains(&key)) {
        return Proof::Missing(format!(
            "the controller names a key that it had before; compare it with the one that `muster-agent status` \
             shows on {name}, and find out who holds the controller"
        ));
    }
    let proved = view.signing.zip(witness);
    if proved.is_some_and(|(claim, witness)| witness.verifies_key(fleet, name, &claim)) {
        return Proof::Proved(key);
    }
    let compare = format!(
        "read the key on {name}, where `muster-agent status` shows it, and give it to \
         `muster machines trust-key {name} KEY`"
    );
    Proof::Missing(match (kept, witness, view.signing) {
        (Some(kept), ..) if kept.key == key => return Proof::Kept(key),
        (Some(_), ..) => format!(
            "its key is another one than in {FILE}: whoever invited it runs `muster machines prove {name}`, \
             or {compare}"
        ),
        (None, Some(_), Some(_)) => {
            format!("what it shows is not proved by the token that you made: {compare}")
        }
        (None, Some(_), None) => format!("its agent has not proved its key: update the agent, or {compare}"),
        (None, None, _) => format!(
            "another operator invited it: they run `muster machines prove {name}` and commit {FILE}, or \
             {compare}"
        ),
    })
}

/// The folder of the file.
pub async fn folder(config: &Config, reference: &str) -> Result<PathBuf> {
    match local(reference).await {
        Ok(folder) => Ok(folder),
        Err(FolderError::NotLocal(_)) => Ok(config.path(Path::new(""))),
        Err(error) => Err(error.into()),
    }
}

impl ProvenKeys {
    /// Reads the file in this folder, if there is one.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let mut text = String::new();
        let read = match std::fs::File::open(&path) {
            Ok(file) => {
                file.take(MAX_FILE_BYTES)
                    .read_to_string(&mut text)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                toml::from_str(&text)
                    .with_context(|| format!("{} is not what muster wrote", path.display()))
                    .hint("bring it back from git, or remove it and run `muster machines prove`")?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        Ok(Self { path, kept: read.clone(), read })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The machine's key. What it proves now is remembered.
    pub fn look(&mut self, config: &Config, view: &MachineView) -> Result<Proof> {
        let witness = witnesses::find(config, &view.machine)?;
        let kept = self.kept.machines.get(&view.machine);
        let proof = judge(&config.file.fleet, view, witness.as_ref(), kept);
        if let Proof::Proved(key) = proof {
            self.remember(&view.machine, key);
        }
        Ok(proof)
    }

    /// Refuses a machine whose key stands here and whom the controller shows without one: whoever chooses who
    /// cannot vouch chooses who does.
    pub fn require_shown(&self, view: &MachineView) -> Result<()> {
        let machine = &view.machine;
        let is_shown = view.standing == Standing::Enrolled && (view.key.is_some() || view.signing.is_some());
        if is_shown || !self.kept.machines.contains_key(machine) {
            return Ok(());
        }
        Err(anyhow!("the controller says that {machine} has not enrolled, and {FILE} has its key")).hint(format!(
            "if it was invited anew, wait until it has enrolled, or name the machines to update without it; \
             if nobody here did that, find out who holds the controller. Where {machine} is gone for good, \
             take it out of {FILE}"
        ))
    }

    /// Takes a key by the word of a person who looked at the machine.
    pub fn trust(&mut self, view: &MachineView, key: PublicKey) -> Result<()> {
        let machine = &view.machine;
        let named = view.signing.map(|claim| claim.key).or(view.key);
        if named != Some(key) {
            let named = named.map_or_else(|| "no key".to_owned(), |key| key.hex());
            return Err(anyhow!("the controller says that {machine} signs with {named}, and you say {key}"))
                .hint(format!(
                    "look at `muster-agent status` on {machine} again; if it shows what you gave, the \
                     controller lies"
                ));
        }
        if let Some(kept) = self.kept.machines.get_mut(machine) {
            kept.former.retain(|former| *former != key);
        }
        self.remember(machine, key);
        Ok(())
    }

    fn remember(&mut self, machine: &MachineName, key: PublicKey) {
        let kept = self.kept.machines.entry(machine.clone()).or_insert(KeptKey { key, former: Vec::new() });
        if kept.key != key {
            kept.former.insert(0, std::mem::replace(&mut kept.key, key));
            kept.former.truncate(MOST_FORMER);
        }
    }

    /// Writes what changed; whether anything did.
    pub fn write(&mut self) -> Result<bool> {
        if self.kept == self.read {
            return Ok(false);
        }
        let text = format!("{HEAD}{}", toml::to_string(&self.kept)?);
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let written =
            tempfile::NamedTempFile::new_in(folder).map_err(anyhow::Error::new).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.as_file().sync_all()?;
                let kept = file.persist(&self.path)?;
                Ok(kept.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?)
            });
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.read = self.kept.clone();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::enrol::Secret;
    use muster_protocol::keys::SecretKey;

    use super::*;

    fn key() -> PublicKey {
        SecretKey::generate().unwrap().public()
    }

    fn view(key: PublicKey) -> MachineView {
        serde_json::from_value(serde_json::json!({
            "machine": "tin", "class": "nixos", "system": "x86_64-linux", "tags": [],
            "standing": "enrolled", "condition": "up-to-date", "clone_alarm": false,
            "holds": { "root": 1, "timestamp": 1, "snapshot": 1, "targets": 1 }, "key": key,
        }))
        .unwrap()
    }

    fn fleet() -> Sha256 {
        Sha256::of(b"fleet")
    }

    #[test]
    fn a_machine_whose_key_is_kept_is_not_left_out_by_the_controllers_word() {
        let folder = tempfile::tempdir().unwrap();
        let mut keys = ProvenKeys::load(folder.path()).unwrap();
        let shown = view(key());
        let invited = MachineView { standing: Standing::Invited, key: None, ..shown.clone() };
        assert!(keys.require_shown(&invited).is_ok(), "nobody here knows of a key");
        keys.remember(&shown.machine, shown.key.unwrap());
        let refused = keys.require_shown(&invited).unwrap_err();
        assert!(crate::terminal::error::render(&refused).contains("tin has not enrolled"));
        assert!(keys.require_shown(&shown).is_ok());
    }

    #[test]
    fn a_key_is_proved_by_the_token_or_kept_and_never_believed() {
        let witness = Secret::generate().unwrap().witness();
        let (own, other) = (key(), key());
        let claimed = |key: PublicKey, by: &Witness| {
            let signing = Some(by.claim(&fleet(), &"tin".parse().unwrap(), key));
            MachineView { signing, ..view(key) }
        };
        let kept = |key: PublicKey| KeptKey { key, former: vec![] };
        let of = |view: &MachineView, witness: Option<&Witness>, kept: Option<&KeptKey>| {
            judge(&fleet(), view, witness, kept)
        };
        let missing = |proof: Proof, words: &str| match proof {
            Proof::Missing(why) => assert!(why.contains(words), "{why}"),
            found => panic!("{found:?}"),
        };
        assert_eq!(of(&claimed(own, &witness), Some(&witness), None), Proof::Proved(own));
        // It rotated, and proves the new one.
        assert_eq!(of(&claimed(own, &witness), Some(&witness), Some(&kept(other))), Proof::Proved(own));
        assert_eq!(of(&view(own), None, Some(&kept(own))), Proof::Kept(own));
        // Another operator invited it anew: my witness is old, and their proof is in the file.
        let anothers = Secret::generate().unwrap().witness();
        assert_eq!(of(&claimed(own, &anothers), Some(&witness), Some(&kept(own))), Proof::Kept(own));
        missing(of(&claimed(own, &anothers), Some(&witness), None), "not proved by the token");
        missing(of(&claimed(own, &anothers), None, None), "another operator invited it");
        missing(of(&view(own), Some(&witness), None), "update the agent");
        missing(of(&view(own), Some(&witness), Some(&kept(other))), "another one than in machine-keys.toml");
        // An old proof is shown again after the machine changed its key.
        let rotated = KeptKey { key: other, former: vec![own] };
        missing(of(&claimed(own, &witness), Some(&witness), Some(&rotated)), "a key that it had before");
        let revoked = MachineView { standing: Standing::Revoked, ..claimed(own, &witness) };
        missing(of(&revoked, Some(&witness), None), "not enrolled");
    }

    #[test]
    fn what_was_proved_survives_a_file_with_the_keys_before() {
        let folder = tempfile::tempdir().unwrap();
        let mut keys = ProvenKeys::load(folder.path()).unwrap();
        assert!(!keys.write().unwrap() && !keys.path().exists(), "nothing was proved");
        let (first, second) = (key(), key());
        keys.trust(&view(first), first).unwrap();
        assert!(keys.write().unwrap() && !keys.write().unwrap());
        let refused = keys.trust(&view(first), second).unwrap_err();
        assert!(format!("{refused:#}").contains("the controller says"), "{refused:#}");
        keys.trust(&view(second), second).unwrap();
        keys.write().unwrap();
        let keys = ProvenKeys::load(folder.path()).unwrap();
        let kept = &keys.kept.machines[&"tin".parse().unwrap()];
        assert_eq!((kept.key, kept.former.as_slice()), (second, &[first][..]));
        // A person may say that it has its old key again.
        let mut keys = keys;
        keys.trust(&view(first), first).unwrap();
        assert_eq!(keys.kept.machines[&"tin".parse().unwrap()].former, [second]);
        std::fs::write(keys.path(), "[machines.tin]\nkey = 3\n").unwrap();
        assert!(ProvenKeys::load(folder.path()).is_err());
    }
}
