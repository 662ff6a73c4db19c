//! The highest generation of each machine that this computer signed, or saw signed. Nobody signs what a
//! controller or a machine says about numbers: an operator who counted on from it could be made to sign the
//! last number there is, after which no update is possible.
//!
//! Beside it, the newest that was seen published: an older one, also a genuine one, is not what a machine was
//! given last. It is not the highest number: what was signed may be a draft that was dropped.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use muster_protocol::api::{OPERATOR_SESSION, gated_name, tuf_path};
use muster_protocol::ids::{Epoch, Generation, MachineName, Sha256};
use muster_protocol::operator::{MachineView, Session};
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::signed_generation;
use serde::{Deserialize, Serialize};

use crate::api::client::Api;
use crate::config::Config;
use crate::terminal::error::{Hint, WithHint as _};
use crate::trust::roots::Trusted;

/// Stored beside muster.toml.
const FILE: &str = "generations-seen.json";
/// How many numbers may be missing here without a warning: a controller restored from a backup knows less
/// than its machines, and other operators publish too. Far below what machines skip at once, so that an
/// attacker who makes an operator skip this many each time cannot put a machine out of reach unnoticed.
pub const MOST_UNSEEN: u64 = 1024;
const MAX_TARGETS_BYTES: usize = 128 * 1024;
/// How many machines' metadata is fetched at once.
const AT_ONCE: usize = 8;

/// The highest numbers known to be signed, and where they are stored.
pub struct HighestSigned {
    path: PathBuf,
    kept: Kept,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    fleet: Sha256,
    machines: BTreeMap<MachineName, Generation>,
    /// Version 0.1 keeps none.
    #[serde(default)]
    published: BTreeMap<MachineName, Seen>,
}

/// A generation that enough operators signed, and that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub generation: Generation,
    /// Whether it has a place in a rollout.
    pub is_gated: bool,
}

impl Seen {
    pub fn of(target: &Target) -> Self {
        Self { generation: target.generation, is_gated: target.rollout.is_some() }
    }
}

/// A claimed number that is too far above the highest known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "generation {next} of {machine} comes after what the controller or the machine says, and the highest \
     that was seen signed is {}",
    seen.map_or_else(|| "none".to_owned(), |seen| seen.to_string())
)]
pub struct Jump {
    pub machine: MachineName,
    pub next: Generation,
    pub seen: Option<Generation>,
}

/// Refuses a number that skips too many, unless the operator named one at least as high. A `seen` of an
/// earlier epoch counts as none.
pub fn judge(
    machine: &MachineName,
    next: Generation,
    seen: Option<Generation>,
    jump_to: Option<Generation>,
) -> Result<(), Jump> {
    let seen = seen.filter(|seen| seen.epoch() == next.epoch());
    let skipped = next.get().saturating_sub(seen.map_or(0, Generation::get)).saturating_sub(1);
    let named = jump_to.is_some_and(|most| most.epoch() == next.epoch() && next <= most);
    if skipped <= MOST_UNSEEN || named {
        return Ok(());
    }
    Err(Jump { machine: machine.clone(), next, seen })
}

impl HighestSigned {
    pub fn load(config: &Config) -> Result<Self> {
        let path = config.path(Path::new(FILE));
        let kept = read(&path, config.file.fleet)?;
        Ok(Self { path, kept })
    }

    pub fn of(&self, machine: &MachineName) -> Option<Generation> {
        self.kept.machines.get(machine).copied()
    }

    /// The newest that was seen published.
    pub fn published(&self, machine: &MachineName) -> Option<Seen> {
        self.kept.published.get(machine).copied()
    }

    /// Remembers what is published, if it was verified or signed here.
    pub fn keep_published(&mut self, seen: impl IntoIterator<Item = (MachineName, Seen)>) {
        let seen: Vec<_> = seen.into_iter().collect();
        let numbers = seen.iter().map(|(machine, seen)| (machine.clone(), seen.generation));
        let numbers: Vec<_> = numbers.collect();
        self.merged(numbers, seen);
    }

    /// Remembers what is about to be signed, durably and before anybody gets the signature. If it cannot be
    /// written, that is reported, and more is asked next time.
    pub fn keep(&mut self, signed: impl IntoIterator<Item = (MachineName, Generation)>) {
        self.merged(signed, []);
    }

    fn merged(
        &mut self,
        signed: impl IntoIterator<Item = (MachineName, Generation)>,
        published: impl IntoIterator<Item = (MachineName, Seen)>,
    ) {
        // Another command may have written meanwhile.
        if let Ok(kept) = read(&self.path, self.kept.fleet) {
            merge(&mut self.kept.machines, kept.machines);
            merge_seen(&mut self.kept.published, kept.published);
        }
        let before = self.kept.clone();
        merge(&mut self.kept.machines, signed);
        merge_seen(&mut self.kept.published, published);
        if self.kept == before {
            return;
        }
        if let Err(error) = write(&self.path, &self.kept) {
            tell!("warning: {error:#}");
        }
    }

    /// The claims that skip too many numbers above the highest known to be signed: stored here, or in
    /// metadata that a threshold of operators signed. What is verified now is remembered.
    pub async fn refused(
        &mut self,
        api: &Api,
        trusted: &Trusted,
        claims: &[(&MachineView, Generation)],
        jump_to: Option<Generation>,
    ) -> Result<Vec<Jump>> {
        let unsure = |(view, next): &&(&MachineView, Generation)| {
            let seen = self.of(&view.machine).filter(|seen| seen.epoch() == next.epoch());
            seen.is_none() || judge(&view.machine, *next, seen, None).is_err()
        };
        let unsure: Vec<&MachineView> = claims.iter().filter(unsure).map(|(view, _)| *view).collect();
        let found = verified(api, trusted, &unsure).await?;
        self.keep_published(found);
        let mut refused = Vec::new();
        for (view, next) in claims {
            let seen = self.of(&view.machine);
            match judge(&view.machine, *next, seen, jump_to) {
                Ok(()) => tell_gap(&view.machine, *next, seen),
                Err(jump) => refused.push(jump),
            }
        }
        Ok(refused)
    }

    /// The same, where one refusal is enough.
    pub async fn require(
        &mut self,
        api: &Api,
        trusted: &Trusted,
        claims: &[(&MachineView, Generation)],
        jump_to: Option<Generation>,
    ) -> Result<()> {
        match self.refused(api, trusted, claims, jump_to).await?.into_iter().next() {
            Some(jump) => Err(jump.into_error()),
            None => Ok(()),
        }
    }
}

impl Jump {
    pub fn into_error(self) -> anyhow::Error {
        let hint = format!(
            "sign nothing for it before you know who set it so. If it is right, repeat with --jump-to {}; if \
             a number that is too high was signed already, root holders leave it behind with `muster keys \
             new-epoch`",
            self.next
        );
        anyhow::Error::new(self).context(Hint(hint))
    }
}

fn tell_gap(machine: &MachineName, next: Generation, seen: Option<Generation>) {
    let seen = seen.filter(|seen| seen.epoch() == next.epoch());
    if let Some(seen) = seen.filter(|seen| next.get() > seen.get() + 1) {
        say!(
            "{machine}: the next generation is {next} by the controller's word; the last that was seen \
             signed is {seen}."
        );
    }
}

/// The published generations that a threshold of today's operators signed. Whatever cannot be verified is
/// left out.
async fn verified(api: &Api, trusted: &Trusted, views: &[&MachineView]) -> Result<Vec<(MachineName, Seen)>> {
    let epoch = trusted.root.epoch();
    let published = |view: &&MachineView| {
        let generation = view.published.as_ref().map(|published| published.target.generation);
        let generation = generation.filter(|generation| generation.epoch() == epoch)?;
        Some((view.machine.clone(), generation))
    };
    let claims: Vec<(MachineName, Generation)> = views.iter().filter_map(published).collect();
    if claims.is_empty() {
        return Ok(Vec::new());
    }
    let session: Session = api.post(OPERATOR_SESSION, &()).await?;
    let found = futures_util::stream::iter(claims)
        .map(|(machine, claimed)| {
            let bearer = session.bearer.as_str();
            async move {
                let path = format!("{}/{}.targets.json", tuf_path(&machine), claimed.get());
                let bytes = api.file(&path, MAX_TARGETS_BYTES, Some(bearer)).await.ok()??;
                let signed = signed_generation(&trusted.root, &machine, &bytes).ok()?;
                let is_gated = lists(&bytes, &gated_name(&machine));
                Some((machine, Seen { generation: signed, is_gated }))
            }
        })
        .buffered(AT_ONCE);
    Ok(found.filter_map(std::future::ready).collect().await)
}

/// Whether metadata of targets, which is verified already, lists a target under this name.
fn lists(targets: &[u8], name: &str) -> bool {
    let read: Result<serde_json::Value, _> = serde_json::from_slice(targets);
    read.is_ok_and(|read| read["signed"]["targets"].get(name).is_some())
}

/// The lowest generation for a new token: the one published for the machine, unless it is implausibly high.
pub async fn lowest(
    config: &Config,
    api: &Api,
    trusted: &Trusted,
    view: Option<&MachineView>,
) -> Result<Generation> {
    let epoch: Epoch = trusted.root.epoch();
    let published = view.and_then(|view| Some((view, view.published.as_ref()?.target.generation)));
    let Some((view, published)) = published.filter(|(_, published)| published.epoch() == epoch) else {
        return Ok(Generation::first_of(epoch));
    };
    let jump = HighestSigned::load(config)?.refused(api, trusted, &[(view, published)], None).await?.pop();
    jump.map_or(Ok(published), |jump| {
        let machine = jump.machine;
        let what = format!(
            "the controller says that generation {published} of {machine} is published, far above what was \
             seen signed here"
        );
        let hint = format!(
            "make no token before you know who set it so; if it is right, run `muster update {machine} \
             --jump-to NUMBER` first"
        );
        Err(anyhow::anyhow!(what).context(Hint(hint)))
    })
}

fn merge(
    machines: &mut BTreeMap<MachineName, Generation>,
    more: impl IntoIterator<Item = (MachineName, Generation)>,
) {
    for (machine, generation) in more {
        let held = machines.entry(machine).or_insert(generation);
        *held = generation.max(*held);
    }
}

/// Of two with one number, the one that waits counts.
fn merge_seen(
    published: &mut BTreeMap<MachineName, Seen>,
    more: impl IntoIterator<Item = (MachineName, Seen)>,
) {
    for (machine, seen) in more {
        let held = published.entry(machine).or_insert(seen);
        *held = [seen, *held].into_iter().max_by_key(|one| (one.generation, one.is_gated)).unwrap_or(seen);
    }
}

/// Numbers of another fleet say nothing about this one.
fn read(path: &Path, fleet: Sha256) -> Result<Kept> {
    let nothing = Kept { fleet, machines: BTreeMap::new(), published: BTreeMap::new() };
    let kept: Kept = match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is not what muster wrote", path.display()))
            .hint(
                "remove it if you know why; numbers are then believed only as far as signed metadata says \
                 them",
            )?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(nothing),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    Ok(if kept.fleet == fleet { kept } else { nothing })
}

fn write(path: &Path, kept: &Kept) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = tempfile::NamedTempFile::new_in(folder).map_err(anyhow::Error::new).and_then(|mut file| {
        file.write_all(&serde_json::to_vec(kept)?)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(std::fs::File::open(folder)?.sync_all()?)
    });
    written.with_context(|| format!("what is signed cannot be remembered in {}", path.display()))
}

#[cfg(test)]
mod tests {
    use muster_protocol::ids::{MAX_JUMP, MAX_NUMBER};

    use super::*;

    fn generation(text: &str) -> Generation {
        text.parse().unwrap()
    }
    fn name() -> MachineName {
        "cinnabar".parse().unwrap()
    }

    #[test]
    fn a_number_that_skips_more_than_a_few_wants_an_explicit_word() {
        let judged = |next: u64, seen: Option<u64>, word: Option<u64>| {
            let of = |number| Generation::new(number).unwrap();
            judge(&name(), of(next), seen.map(of), word.map(of)).is_ok()
        };
        assert!(judged(5, Some(4), None) && judged(4, Some(4), None) && judged(1, None, None));
        assert!(judged(5 + MOST_UNSEEN, Some(4), None) && judged(1 + MOST_UNSEEN, None, None));
        assert!(!judged(6 + MOST_UNSEEN, Some(4), None) && !judged(2 + MOST_UNSEEN, None, None));
        assert!(!judged(MAX_JUMP, Some(4), None) && !judged(MAX_NUMBER, Some(4), None));
        assert!(judged(MAX_JUMP, Some(4), Some(MAX_JUMP)) && judged(MAX_JUMP, Some(4), Some(MAX_NUMBER)));
        assert!(!judged(MAX_JUMP + 1, Some(4), Some(MAX_JUMP)), "a word counts for the number that it names");
        let refused =
            judge(&name(), generation("1048577"), Some(generation("4")), None).unwrap_err().to_string();
        assert!(refused.contains("1048577") && refused.ends_with("is 4"), "{refused}");
    }

    #[test]
    fn each_epoch_counts_by_itself() {
        let judged = |next, seen, word: Option<&str>| {
            judge(&name(), generation(next), Some(generation(seen)), word.map(generation)).is_ok()
        };
        assert!(judged("1.1", "281474976710656", None), "numbers begin anew");
        assert!(!judged("1.5000", "4999", None), "what was seen in the epoch before proves nothing");
        assert!(judged("1.5000", "1.4999", None) && judged("1.5000", "4", Some("1.5000")));
        assert!(!judged("1.5000", "4", Some("9000")), "a word of one epoch is none of another");
    }

    #[test]
    fn the_highest_stays_also_where_two_write_and_another_fleets_numbers_count_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let fleet = Sha256::of(b"one");
        let open = |fleet| HighestSigned { path: path.clone(), kept: read(&path, fleet).unwrap() };
        let (mut one, mut other) = (open(fleet), open(fleet));
        one.keep([(name(), generation("7")), ("realgar".parse().unwrap(), generation("2"))]);
        other.keep([(name(), generation("5"))]);
        assert_eq!(open(fleet).of(&name()), Some(generation("7")));
        other.keep([(name(), generation("1.1"))]);
        one.keep([(name(), generation("9"))]);
        assert_eq!(open(fleet).of(&name()), Some(generation("1.1")));
        assert_eq!(open(fleet).of(&"realgar".parse().unwrap()), Some(generation("2")));
        assert_eq!(open(Sha256::of(b"two")).of(&name()), None);
        // What was published is remembered beside it, and a file of version 0.1 has none of it.
        let seen = |text, is_gated| (name(), Seen { generation: generation(text), is_gated });
        assert_eq!(open(fleet).published(&name()), None);
        one.keep_published([seen("1.4", true)]);
        other.keep_published([seen("1.3", false), seen("1.4", false)]);
        assert_eq!(open(fleet).published(&name()), Some(seen("1.4", true).1));
        assert_eq!(open(fleet).of(&name()), Some(generation("1.4")));
        std::fs::write(&path, format!(r#"{{"fleet":"{fleet}","machines":{{"cinnabar":3}}}}"#)).unwrap();
        let old = open(fleet);
        assert_eq!((old.of(&name()), old.published(&name())), (Some(generation("3")), None));
        std::fs::write(&path, "{").unwrap();
        assert!(read(&path, fleet).is_err(), "what is damaged is told, and not begun anew in silence");
    }
}
