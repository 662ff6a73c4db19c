//! What the operator keeps of each token, to verify a machine's age key; see `muster_protocol::witness`.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use muster_protocol::ids::MachineName;
use muster_protocol::witness::Witness;

use crate::config::Config;
use crate::keys::keyfile;

/// Stored beside muster.toml.
const FOLDER: &str = "witnesses";

fn path(config: &Config, machine: &MachineName) -> PathBuf {
    config.path(FOLDER.as_ref()).join(machine.as_str())
}

/// Stores a new token's witness in place of an older one's, which the new token revokes.
pub fn keep(config: &Config, machine: &MachineName, witness: &Witness) -> Result<()> {
    let path = path(config, machine);
    let folder = config.path(FOLDER.as_ref());
    fs::create_dir_all(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
    keyfile::replace_private(&path, &witness.to_text())
}

/// `None` if another operator, or an earlier version, made the token.
pub fn find(config: &Config, machine: &MachineName) -> Result<Option<Witness>> {
    let path = path(config, machine);
    match fs::read_to_string(&path).map(zeroize::Zeroizing::new) {
        Ok(text) => Witness::parse(&text).map(Some).with_context(|| format!("{} is damaged", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
