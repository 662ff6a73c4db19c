//! Publishing generations, and the timestamps that point to them.

pub mod batch;

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_protocol::checkin::Holds;
use muster_protocol::ids::{Generation, IdError, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::{Class, MachineError, System, can_take};
use muster_protocol::operator::{Publication, Standing, next_generation};
use muster_protocol::plan::{FEATURE, Plan, PlanError};
use muster_protocol::target::Target;
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::metadata::Root;
use muster_protocol::tuf::repository::{CheckedPublication, check_publication};

use super::audit::{AuditContext, NewEntry};
use super::change::{Change, Decided};
use super::rollouts::Turn;
use super::rows::{GenerationFiles, Machine, StoredGeneration, Timestamp};

/// A publication checked against the root and the machine.
#[derive(Debug, Clone)]
pub struct NewGeneration<'a> {
    pub machine: &'a MachineName,
    /// The machine's class when this was checked.
    pub class: Class,
    pub system: &'a System,
    pub publication: &'a Publication,
    pub target_sha256: Sha256,
    /// When the operators' signature expires, in Unix seconds.
    pub expires: i64,
    /// The operators who signed it.
    pub signers: Vec<PublicKey>,
    /// Where the machine begins in the rollout that the target names.
    pub turn: Option<Box<Turn>>,
}

/// What the places of targets are checked against.
#[derive(Debug, Clone)]
pub struct Plans {
    /// The fleet that all plans must be of.
    pub fleet: Sha256,
    /// Those that are stored, of those that the targets name.
    pub stored: BTreeMap<Sha256, Arc<Plan>>,
}

impl Plans {
    /// For targets without a place.
    pub fn none(fleet: Sha256) -> Self {
        Self { fleet, stored: BTreeMap::new() }
    }

    /// Where the target's machine begins, if the target has a place; refuses one that is not in its plan.
    pub fn place(&self, target: &Target) -> Result<Option<Turn>, PlacingRefusal> {
        let Some(place) = target.rollout else { return Ok(None) };
        let plan = self.stored.get(&place.plan).ok_or(PlacingRefusal::NoPlan(place.plan))?;
        let of = (&self.fleet, target.generation.epoch());
        plan.require_place(of, &target.machine, &target.output, &place)?;
        Ok(Turn::of_new(plan, place))
    }
}

/// Why a target has no such place.
#[derive(Debug, thiserror::Error)]
pub enum PlacingRefusal {
    #[error("it names the rollout plan {}, which was not sent before: repeat `muster update`", .0.short())]
    NoPlan(Sha256),
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl<'a> NewGeneration<'a> {
    /// Checks a publication as its machine will: signed by the operators of this root, and for the machine's
    /// system.
    pub fn check(
        (root, plans): (&Root, &Plans),
        machine: &'a Machine,
        publication: &'a Publication,
        now_s: i64,
    ) -> Result<Self, PublishRefusal> {
        let revoked = machine.standing() == Standing::Revoked;
        let known = Known { class: machine.class, system: &machine.system, revoked };
        Self::check_for((root, plans), &machine.name, known, publication, now_s)
    }

    /// The same, where less is known of the machine.
    pub fn check_stored(
        of: (&Root, &Plans),
        machine: &'a MachineName,
        stored: Option<&'a Stored>,
        publication: &'a Publication,
        now_s: i64,
    ) -> Result<Self, PublishRefusal> {
        let stored = stored.ok_or_else(|| PublishRefusal::Unknown(machine.clone()))?;
        let known = Known { class: stored.class, system: &stored.system, revoked: stored.revoked };
        Self::check_for(of, machine, known, publication, now_s)
    }

    fn check_for(
        (root, plans): (&Root, &Plans),
        name: &'a MachineName,
        Known { class, system, revoked }: Known<'a>,
        publication: &'a Publication,
        now_s: i64,
    ) -> Result<Self, PublishRefusal> {
        if revoked {
            return Err(PublishRefusal::Revoked(name.clone()));
        }
        let checked =
            check_publication(root, name, class, publication, now_s).map_err(PublishRefusal::Unsound)?;
        // Invariant I6 also covers the CPU, which is not in the signed metadata.
        let target = &checked.target;
        can_take((class, system), target.class, &target.system)
            .map_err(|source| PublishRefusal::CannotTake { machine: name.clone(), source })?;
        let turn = plans
            .place(target)
            .map_err(|source| PublishRefusal::Misplaced { machine: name.clone(), source })?
            .map(Box::new);
        let CheckedPublication { target_sha256, targets_expires: expires, signers, .. } = checked;
        Ok(Self { machine: name, class, system, publication, target_sha256, expires, signers, turn })
    }

    fn files(&self) -> GenerationFiles {
        GenerationFiles {
            targets: self.publication.targets.clone().into_bytes(),
            snapshot: self.publication.snapshot.clone().into_bytes(),
            target: self.publication.target.clone().into_bytes(),
        }
    }
}

/// What a publication is checked against.
#[derive(Clone, Copy)]
struct Known<'a> {
    class: Class,
    system: &'a System,
    revoked: bool,
}

/// What is stored of the machine that a generation is published for.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub class: Class,
    pub system: System,
    pub revoked: bool,
    pub published: Option<Generation>,
    pub timestamp_version: u64,
    /// What the machine holds, according to its last check-in.
    pub holds: Holds,
    /// What its agent understands, according to the same; `None` if it never checked in.
    pub understands: Option<Vec<String>>,
    /// The files of the latest generation, if that is the one offered.
    pub latest: Option<GenerationFiles>,
}

/// What is stored of a machine's timestamp and the snapshot that it points to.
#[derive(Debug, Clone, PartialEq)]
pub struct Current {
    pub timestamp: Option<Timestamp>,
    /// The last version used.
    pub version: u64,
    pub snapshot: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum PublishRefusal {
    #[error(
        "there is no machine {0}: `muster machines list --all` shows who is known, `muster machines add \
            {0}` adds it"
    )]
    Unknown(MachineName),
    #[error("the machine would refuse this generation: {0}; sign it again with `muster update`")]
    Unsound(TufError),
    #[error("{machine} cannot take this generation: {source}")]
    CannotTake { machine: MachineName, source: MachineError },
    #[error("machine {0} was revoked: add it again with `muster machines add {0}`")]
    Revoked(MachineName),
    #[error(
        "generation {offered} of {machine} cannot be published: the next one is {next}; repeat `muster \
            update`"
    )]
    NotNext { machine: MachineName, offered: Generation, next: Generation },
    #[error("{machine} has no next generation: {source}")]
    NoNext { machine: MachineName, source: IdError },
    #[error("{machine} cannot take this generation: {source}")]
    Misplaced { machine: MachineName, source: PlacingRefusal },
    #[error(
        "the agent of {0} does not know rollouts and would not find this generation: publish one without a \
            rollout for it first, with an agent that does"
    )]
    OldAgent(MachineName),
    #[error("machine {0} changed while this was published: repeat `muster update`")]
    Changed(MachineName),
    #[error("the timestamp cannot be signed: {0}")]
    Sign(#[from] TufError),
}

/// The version of a machine's next timestamp: the current time, so that a restored backup locks out no
/// machine, and always
/// higher than the last one.
pub fn timestamp_version(last: u64, now_s: i64) -> u64 {
    u64::try_from(now_s).unwrap_or(0).max(last.saturating_add(1))
}

/// Stores a generation and the timestamp that points to it, both or neither. `sign` signs a timestamp over a
/// snapshot, given the last version used. Answers with the timestamp; nothing changes, and there is none, if
/// exactly this generation is already published.
pub fn publish(
    stored: Option<&Stored>,
    new: &NewGeneration<'_>,
    context: &AuditContext<'_>,
    sign: impl Fn(u64, &[u8]) -> Result<Timestamp, TufError>,
) -> Result<Decided<Option<Timestamp>>, PublishRefusal> {
    let Some(next) = next(stored, new, sign)? else { return Ok(Decided::unchanged(None)) };
    let answer = Some(next.timestamp.clone());
    Ok(Decided { changes: next.changes(context).into(), answer })
}

/// A generation that is the next one of its machine, and its timestamp.
struct Next<'a> {
    new: &'a NewGeneration<'a>,
    timestamp: Timestamp,
}

impl Next<'_> {
    fn changes(self, context: &AuditContext<'_>) -> [Change; 5] {
        let (machine, generation) = (self.new.machine, self.new.publication.generation);
        [
            Change::GenerationStored(Box::new(StoredGeneration {
                machine: machine.clone(),
                generation,
                files: self.new.files(),
                target_sha256: self.new.target_sha256,
                expires: self.new.expires,
                published_at: context.at,
                published_by: *context.operator,
                signers: self.new.signers.clone(),
                plan: self.new.turn.as_ref().map(|turn| turn.at.plan),
            })),
            Change::TimestampStored { machine: machine.clone(), timestamp: self.timestamp },
            Change::Published { machine: machine.clone(), generation, turn: self.new.turn.clone() },
            Change::Audited(
                NewEntry::by(context, "generation-published", generation.to_string()).on(machine),
            ),
            Change::MachineChanged { machine: machine.clone() },
        ]
    }
}

/// Decides on one generation; `None` if exactly this one is already published.
fn next<'a>(
    stored: Option<&Stored>,
    new: &'a NewGeneration<'a>,
    sign: impl Fn(u64, &[u8]) -> Result<Timestamp, TufError>,
) -> Result<Option<Next<'a>>, PublishRefusal> {
    let machine = new.machine;
    let stored = stored.ok_or_else(|| PublishRefusal::Unknown(machine.clone()))?;
    if stored.revoked {
        return Err(PublishRefusal::Revoked(machine.clone()));
    }
    if stored.class != new.class || stored.system != *new.system {
        return Err(PublishRefusal::Changed(machine.clone()));
    }
    let (offered, publication) = (new.publication.generation, new.publication);
    if stored.published == Some(offered) && stored.latest.as_ref().is_some_and(|held| held.is(publication)) {
        return Ok(None);
    }
    // The offered generation was of the root's epoch when its signatures were checked. A newer root may be
    // in force by now: a machine is never pointed back to an earlier epoch.
    let epoch = stored.published.map_or(offered.epoch(), |held| held.epoch().max(offered.epoch()));
    let next = next_generation(epoch, stored.published, &stored.holds)
        .map_err(|source| PublishRefusal::NoNext { machine: machine.clone(), source })?;
    if offered != next {
        return Err(PublishRefusal::NotNext { machine: machine.clone(), offered, next });
    }
    let knows = |words: &Vec<String>| words.iter().any(|word| word == FEATURE);
    if new.turn.is_some() && !stored.understands.as_ref().is_none_or(knows) {
        return Err(PublishRefusal::OldAgent(machine.clone()));
    }
    let timestamp = sign(stored.timestamp_version, publication.snapshot.as_bytes())?;
    Ok(Some(Next { new, timestamp }))
}

/// The current timestamp of a machine; signed again unless `is_good` accepts the stored one. `None` if
/// nothing was published.
pub fn timestamp(
    current: Option<&Current>,
    machine: &MachineName,
    is_good: impl Fn(&Timestamp) -> bool,
    sign: impl Fn(u64, &[u8]) -> Result<Timestamp, TufError>,
) -> Result<Decided<Option<Timestamp>>, PublishRefusal> {
    let Some(current) = current else { return Ok(Decided::unchanged(None)) };
    if let Some(timestamp) = current.timestamp.as_ref().filter(|held| is_good(held)) {
        return Ok(Decided::unchanged(Some(timestamp.clone())));
    }
    let timestamp = sign(current.version, &current.snapshot)?;
    let changes = vec![Change::TimestampStored { machine: machine.clone(), timestamp: timestamp.clone() }];
    Ok(Decided { changes, answer: Some(timestamp) })
}

#[cfg(test)]
mod tests;
