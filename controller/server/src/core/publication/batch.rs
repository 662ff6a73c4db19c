//! Publishing the generations of many machines: all of them, or none.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use muster_protocol::api::MAX_MESSAGE_BYTES;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::MachinePublication;
use muster_protocol::tuf::TufError;

use super::{NewGeneration, PublishRefusal, Stored, next};
use crate::core::audit::AuditContext;
use crate::core::change::{Change, Decided};
use crate::core::rows::Timestamp;

/// How many bytes a refusal may spend on naming machines.
const MOST_NAMED: usize = MAX_MESSAGE_BYTES - 512;

#[derive(Debug, thiserror::Error)]
pub enum BatchRefusal {
    #[error("there is no generation in this request: send one for each machine")]
    Empty,
    #[error("{0} is named twice in this request: send one generation for each machine")]
    Twice(MachineName),
    #[error("a new root came into force while this was checked: repeat `muster update`")]
    NewRoot,
    /// Never empty.
    #[error("none of the {all} generations was published: {}", named(refused))]
    Refused { all: usize, refused: Vec<(MachineName, PublishRefusal)> },
}

/// Each machine with the reason why it is refused, as far as there is room.
fn named(refused: &[(MachineName, PublishRefusal)]) -> String {
    let mut text = String::new();
    for (done, (machine, refusal)) in refused.iter().enumerate() {
        let one = format!("{machine}: {refusal}");
        if done > 0 && text.len() + one.len() > MOST_NAMED {
            let _ = write!(text, "; and {} more", refused.len() - done);
            break;
        }
        let _ = write!(text, "{}{one}", if done > 0 { "; " } else { "" });
    }
    text
}

/// Requires one generation for each machine.
pub fn require_batch(generations: &[MachinePublication]) -> Result<(), BatchRefusal> {
    let mut names = BTreeSet::new();
    match generations.iter().find(|one| !names.insert(&one.machine)) {
        Some(twice) => Err(BatchRefusal::Twice(twice.machine.clone())),
        None if names.is_empty() => Err(BatchRefusal::Empty),
        None => Ok(()),
    }
}

/// Decides on each generation as [`super::publish`] does; one refusal refuses all. Answers with the
/// timestamps of those that are published now, by their place in `new`.
///
/// The log has an entry for each machine, as if each had been published alone: whoever looks for what became
/// of one machine finds it by its name, however it was published. The changes are ordered by kind, so that a
/// store can write many of a kind with one statement.
pub fn publish_all(
    stored: &BTreeMap<MachineName, Stored>,
    new: &[NewGeneration<'_>],
    context: &AuditContext<'_>,
    sign: impl Fn(&MachineName, u64, &[u8]) -> Result<Timestamp, TufError>,
) -> Result<Decided<Vec<(usize, Timestamp)>>, BatchRefusal> {
    let (mut kinds, mut published, mut refused) = ([const { Vec::new() }; 5], Vec::new(), Vec::new());
    for (place, one) in new.iter().enumerate() {
        let machine = one.machine;
        match next(stored.get(machine), one, |last, snapshot| sign(machine, last, snapshot)) {
            Ok(Some(next)) => {
                published.push((place, next.timestamp.clone()));
                let changes = next.changes(context).into_iter();
                kinds
                    .iter_mut()
                    .zip(changes)
                    .for_each(|(kind, change): (&mut Vec<Change>, _)| kind.push(change));
            }
            Ok(None) => {}
            Err(refusal) => refused.push((machine.clone(), refusal)),
        }
    }
    if refused.is_empty() {
        return Ok(Decided { changes: kinds.into_iter().flatten().collect(), answer: published });
    }
    Err(BatchRefusal::Refused { all: new.len(), refused })
}
