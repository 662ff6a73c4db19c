//! Asks the controller what the agents understand, before something is signed or published that they could
//! not verify. The answer is a courtesy: a controller that lies lets us sign what its machines refuse.

use anyhow::{Context as _, Result};
use muster_protocol::api::OPERATOR_MACHINES;
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{MachinePublication, MachineView, Standing};
use muster_protocol::tuf::metadata::{Role, Root};
use muster_protocol::tuf::repository::signed_by;

use super::holders::{self, Holders};
use super::kinds::{Reader, Unverifiable, needs_security_keys, plain, require_known};
use super::roots::Trusted;
use crate::api::client::Api;
use crate::config::Config;
use crate::terminal::error::{WithHint as _, causes};

/// The words that a machine's agent says it understands; `None` where it never checked in.
fn words_of(view: &MachineView) -> Option<Vec<String>> {
    view.last_seen.map(|_| view.understands.clone())
}

fn reader(view: &MachineView) -> Reader {
    Reader { machine: view.machine.clone(), understands: words_of(view) }
}

fn readers<'a>(views: impl IntoIterator<Item = &'a MachineView>) -> Vec<Reader> {
    views.into_iter().filter(|view| view.standing != Standing::Revoked).map(reader).collect()
}

/// Every machine, as whoever holds this key sees it, or else as the operator of muster.toml does: a root
/// holder who is not an operator may not see machines.
async fn machines(api: &Api, config: &Config) -> Result<Vec<MachineView>> {
    if let Ok(views) = api.get(OPERATOR_MACHINES).await {
        return Ok(views);
    }
    let seen = async { Api::to_read(config)?.get(OPERATOR_MACHINES).await };
    seen.await
        .context("it is not known which machines could verify what only security keys sign")
        .hint("set operator_key in muster.toml to an operator's key, or have an operator publish it")
}

/// Refuses the next root if machines could no longer verify what its holders sign.
pub async fn require_next(api: &Api, config: &Config, next: &Holders) -> Result<()> {
    let Some((role, what)) = needs_security_keys(next) else { return Ok(()) };
    match machines(api, config).await {
        Ok(views) => require_known(what, &readers(&views)).hint(Unverifiable::HINT),
        // Who replaces the only operator's lost key sees no machines. The next root can take it back.
        Err(error) if role == holders::Role::Operator => {
            tell!(
                "warning: {}: an agent that does not know security keys will take nothing more",
                causes(&error)
            );
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The same before a complete root is published, and if machines could not verify the root itself.
pub async fn require_root(
    api: &Api,
    config: &Config,
    (current, next): (&Root, &Root),
    text: &str,
) -> Result<()> {
    require_next(api, config, &Holders::of(next, &Default::default())).await?;
    for root in [current, next] {
        let signed = signed_by(text, &plain(&root.keys_of(Role::Root)))?.len();
        if signed < root.threshold(Role::Root) as usize {
            let what = format!("root {} does not count", next.version());
            return require_known(what, &readers(&machines(api, config).await?)).hint(Unverifiable::HINT);
        }
    }
    Ok(())
}

/// Refuses a signature by this key alone on what these machines are to verify.
pub fn require_signer<'a>(
    key: &PublicKey,
    what: &str,
    views: impl IntoIterator<Item = &'a MachineView>,
) -> Result<()> {
    match key.is_security_key() {
        true => require_known(format!("{what} would not count"), &readers(views)).hint(Unverifiable::HINT),
        false => Ok(()),
    }
}

/// Refuses to publish generations that their machines could not verify.
pub async fn require_generations(
    api: &Api,
    config: &Config,
    trusted: &Trusted,
    all: &[MachinePublication],
) -> Result<()> {
    let (operators, threshold) = trusted.operators();
    let plain = plain(&operators);
    if plain.len() == operators.len() {
        return Ok(());
    }
    let mut short = Vec::new();
    for MachinePublication { machine, publication } in all {
        let signed = signed_by(&publication.snapshot, &signed_by(&publication.targets, &plain)?)?;
        if signed.len() < threshold as usize {
            short.push(machine);
        }
    }
    if short.is_empty() {
        return Ok(());
    }
    let views = machines(api, config).await?;
    let concerned = views.iter().filter(|view| short.contains(&&view.machine));
    require_known("these generations do not count".to_owned(), &readers(concerned)).hint(Unverifiable::HINT)
}
