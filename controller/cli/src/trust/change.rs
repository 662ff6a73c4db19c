//! From one root to the next: what changes, who may sign, and putting it in force.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use muster_protocol::api::OPERATOR_ROOT;
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{NewRoot, RootTaken};
use muster_protocol::tuf::metadata::{Role, Root};

use super::holders::Holders;
use super::roots::Trusted;
use super::understands;
use crate::api::client::Api;
use crate::config::Config;
use crate::terminal::table;

/// Gives the controller a root with enough signatures, and trusts it.
pub async fn publish(api: &Api, config: &Config, trusted: &mut Trusted, root: String) -> Result<()> {
    let bytes = root.clone().into_bytes();
    let next = trusted.root.successor(&bytes).context("this root is not signed by enough")?;
    understands::require_root(api, config, (&trusted.root, &next), &root).await?;
    let begun = (next.epoch() != trusted.root.epoch()).then(|| next.epoch());
    let taken: RootTaken = api.post(OPERATOR_ROOT, &NewRoot { root }).await?;
    trusted.adopt(config, bytes)?;
    say!("Root {} is in force. Every operator's root.json follows it by itself.", taken.version);
    if let Some(epoch) = begun {
        say!(
            "Epoch {epoch} has begun: machines take nothing that was signed before it, and keep what they \
             run. Sign everything anew: an operator runs `muster update` for all machines."
        );
    }
    if !taken.online_key_named {
        say!(
            "The controller holds none of the online keys that it names: put the new one in the place of its \
             online_key (mode 0600). Until then machines take nothing new."
        );
    }
    Ok(())
}

/// Prints the differences between the trusted root and a drafted one, for its signers.
pub fn tell_root(trusted: &Trusted, next: &Root, names: &BTreeMap<String, String>) {
    let (old, new) = (Holders::of(&trusted.root, trusted.names()), Holders::of(next, names));
    say!(
        "Root {} in the place of {}, good until {}:",
        next.version(),
        trusted.root.version(),
        table::date(next.expires() * 1000)
    );
    let lines = old.differences(&new);
    if lines.is_empty() {
        say!("  the same keys and thresholds, good for longer");
    }
    for line in lines {
        say!("  {line}");
    }
}

/// Whether this key counts for the next root.
pub fn may_sign_root(trusted: &Trusted, next: &Root, key: &PublicKey) -> bool {
    trusted.root.keys_of(Role::Root).contains(key) || next.keys_of(Role::Root).contains(key)
}
