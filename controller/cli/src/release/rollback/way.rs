//! One machine's way back: its older generation's documents, and how it is shown.

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::api::{gated_name, gated_path, target_name, target_path, tuf_path};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::operator::{HistoryEntry, MachineView, Publication, Session};
use muster_protocol::target::{MAX_TARGET_BYTES, Target};
use serde_json::Value;

use super::choice::{self, NoWay, Old, Wanted};
use crate::api::client::Api;
use crate::fleet::past;
use crate::release::difference;
use crate::release::plan::Planned;
use crate::terminal::error::WithHint as _;
use crate::terminal::table;
use crate::trust::roots::Trusted;

/// How many of a machine's generations are looked at.
const MOST: usize = 1000;
/// The largest file of metadata.
const MAX_METADATA_BYTES: usize = 128 * 1024;

pub struct Way {
    pub planned: Planned,
    from: Option<Target>,
    entry: HistoryEntry,
    pub old: Old,
    is_doubtful: bool,
}

/// What holds for every machine.
pub struct Search<'a> {
    pub api: &'a Api,
    pub session: &'a Session,
    pub trusted: &'a Trusted,
    pub wanted: Wanted,
    /// The operator's words, in place of those of the older generation.
    pub message: Option<&'a str>,
    pub urgent: bool,
}

impl Search<'_> {
    /// Where this machine goes back to, checked.
    pub async fn way(&self, view: &MachineView, next: Generation) -> Result<Way> {
        let (api, root, machine) = (self.api, &self.trusted.root, &view.machine);
        let history = past::entries(api, machine, None, MOST).await?;
        let newest = history.first().map(|entry| entry.published.target.generation);
        let shown = view.published.as_ref().map(|published| published.target.generation);
        if newest < shown {
            return Err(anyhow!(
                "the history of {machine} ends before what the controller shows as its newest"
            ))
            .hint("repeat the command; if it says so again, find out who holds the controller");
        }
        let chosen = choice::choose(machine, &history, root.epoch(), self.wanted);
        let entry = chosen.map_err(NoWay::with_hint)?.clone();
        let publication = documents(api, self.session, machine, entry.published.target.generation).await?;
        let old = choice::check(root, view, &entry, &publication).map_err(NoWay::with_hint)?;
        let target = choice::again(&old.checked.target, next, self.message, self.urgent);
        let from = view.published.as_ref().map(|published| published.target.clone());
        let difference = difference::terms(from.as_ref(), &target);
        let planned = Planned { target, system: view.system.clone(), difference, renewal: None, place: None };
        let is_doubtful = choice::is_doubtful(&history, &entry);
        Ok(Way { planned, from, entry, old, is_doubtful })
    }
}

impl Way {
    pub fn tell(&self, trusted: &Trusted) {
        let Self { planned: Planned { target, .. }, from, entry, old, is_doubtful } = self;
        let (published, was) = (&entry.published, &old.checked.target);
        let from = from.as_ref().map_or_else(
            || "from nothing".to_owned(),
            |from| format!("from generation {} ({})", from.generation, from.output),
        );
        say!("{} ({}) generation {}: {from}", target.machine, target.class, target.generation);
        say!(
            "    to what generation {} was ({}), published {} by {}",
            was.generation,
            was.output,
            table::date(published.at),
            trusted.name(&published.by)
        );
        if let Some(message) = &was.message {
            say!("    message: {message}");
        }
        match &old.unsigned {
            None => {
                let signers: Vec<String> = old.checked.signers.iter().map(|key| trusted.name(key)).collect();
                say!("    signed by {}", signers.join(", "));
            }
            Some(why) => say!("    not signed by enough of today's operators: {why}"),
        }
        if target.policy.urgent {
            say!("    urgent: outside windows and on battery, too");
        }
        if *is_doubtful {
            say!(
                "    the machine went back from it before: it takes it only after `muster machines retry {}`",
                target.machine
            );
        }
    }
}

/// The documents of a generation, from the machine's repository.
async fn documents(
    api: &Api,
    session: &Session,
    machine: &MachineName,
    generation: Generation,
) -> Result<Publication> {
    let get = async |path: String, max: usize| -> Result<String> {
        let bytes = api.file(&path, max, Some(&session.bearer)).await?;
        let bytes = bytes
            .ok_or_else(|| anyhow!("the controller holds generation {generation} of {machine} no longer"))
            .hint(format!(
                "see `muster history {machine}`, and name another with \
                 `muster rollback {machine} --to GENERATION`"
            ))?;
        String::from_utf8(bytes).with_context(|| format!("{path} is not text"))
    };
    let of = |role: &str| format!("{}/{}.{role}.json", tuf_path(machine), generation.get());
    let (targets, snapshot) =
        (get(of("targets"), MAX_METADATA_BYTES).await?, get(of("snapshot"), MAX_METADATA_BYTES).await?);
    // Only where to find it: what is found is checked.
    let listed: Value = serde_json::from_str(&targets).context("the metadata of targets is not JSON")?;
    let of_name = |name: String| -> Option<Sha256> {
        listed["signed"]["targets"][name]["hashes"]["sha256"].as_str()?.parse().ok()
    };
    // A generation of a rollout is listed under a name of its own.
    let plain = of_name(target_name(machine)).map(|hash| target_path(machine, &hash));
    let path = plain
        .or_else(|| of_name(gated_name(machine)).map(|hash| gated_path(machine, &hash)))
        .with_context(|| format!("the metadata of generation {generation} of {machine} lists no target"))?;
    let max = usize::try_from(MAX_TARGET_BYTES).unwrap_or(usize::MAX);
    let target = get(path, max).await?;
    Ok(Publication { generation, targets, snapshot, target })
}
