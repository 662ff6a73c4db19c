//! Drafts on their way from one signer to the next. The controller stores them and can do nothing with them:
//! their contents are signed, and only key holders can add what is missing.

use muster_protocol::draft::{Checked, DRAFT_SECONDS, Draft, DraftError, DraftKind, DraftView, Drafted};
use muster_protocol::ids::{Epoch, Generation, IdError, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::{MachineError, can_take};
use muster_protocol::operator::{Standing, next_generation};
use muster_protocol::target::Target;
use muster_protocol::tuf::metadata::{Role, Root};

use super::audit::{AuditContext, NewEntry};
use super::change::{Change, Decided};
use super::rows::{Machine, StoredDraft};

/// How many drafts may wait at once.
const MOST_DRAFTS: u64 = 256;

/// What is stored of a draft and around it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// The stored copy, as JSON text.
    pub held: Option<String>,
    /// How many drafts are stored.
    pub waiting: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum DraftRefusal {
    #[error("there is no draft {0}: `muster drafts list` shows those that wait")]
    Unknown(String),
    #[error("{MOST_DRAFTS} drafts are already waiting: sign them, or remove some with `muster drafts drop`")]
    TooMany,
    #[error("{0}")]
    Draft(#[from] DraftError),
    #[error("a root key signs only roots: generations are signed by operators")]
    RootKeyAlone,
    #[error("no key of the current root has signed this draft: sign it with `muster sign`")]
    Unsigned,
    #[error("{0}: make the draft again with `muster update`")]
    Void(Void),
    #[error("{machine} cannot take this generation: {source}")]
    CannotTake { machine: MachineName, source: MachineError },
    #[error("{machine} cannot take this generation: {why}")]
    Misplaced { machine: MachineName, why: String },
}

/// Why a drafted generation can no longer be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Void {
    #[error("there is no machine {0}")]
    Unknown(MachineName),
    #[error("{0} is revoked")]
    Revoked(MachineName),
    #[error("the next generation of {machine} is {next}, and this is generation {drafted}")]
    NotNext { machine: MachineName, drafted: Generation, next: Generation },
    #[error("{machine} has no next generation: {source}")]
    NoNext { machine: MachineName, source: IdError },
}

/// Operators may see and sign every draft, holders of root keys only drafts of roots.
pub fn require_concerned(root: &Root, draft: &Draft, by: &PublicKey) -> Result<(), DraftRefusal> {
    if root.keys_of(Role::Targets).contains(by) || matches!(draft.what, Drafted::Root { .. }) {
        return Ok(());
    }
    Err(DraftRefusal::RootKeyAlone)
}

/// The draft as stored. Its author, time and expiry are not signed, so the sender does not get to choose
/// them.
pub fn received(draft: Draft, context: &AuditContext<'_>) -> Draft {
    let ends = context.at.div_euclid(1000).saturating_add(DRAFT_SECONDS);
    Draft { made_at: context.at, made_by: *context.operator, ends, ..draft }
}

/// Checks that a draft is well-formed and signed by somebody of this root. Returns its generations.
pub fn check(draft: &Draft, fleet: &Sha256, root: &Root, now_s: i64) -> Result<Vec<Target>, DraftRefusal> {
    let checked = draft.check(fleet, root, now_s)?;
    if draft.progress(root)?.signed.is_empty() {
        return Err(DraftRefusal::Unsigned);
    }
    Ok(match checked {
        Checked::Root(_) => Vec::new(),
        Checked::Generations(generations) => generations.into_iter().map(|checked| checked.target).collect(),
    })
}

/// Whether a machine would accept a drafted generation next.
pub fn require_next(target: &Target, machine: Option<&Machine>, epoch: Epoch) -> Result<(), DraftRefusal> {
    let known =
        require_current(&target.machine, target.generation, machine, epoch).map_err(DraftRefusal::Void)?;
    can_take((known.class, &known.system), target.class, &target.system)
        .map_err(|source| DraftRefusal::CannotTake { machine: target.machine.clone(), source })
}

/// A drafted generation has no such place in a rollout.
pub fn misplaced(target: &Target, why: impl std::fmt::Display) -> DraftRefusal {
    DraftRefusal::Misplaced { machine: target.machine.clone(), why: why.to_string() }
}

/// Whether a drafted generation is still the next one of its machine; returns the machine.
pub fn require_current<'a>(
    name: &MachineName,
    drafted: Generation,
    machine: Option<&'a Machine>,
    epoch: Epoch,
) -> Result<&'a Machine, Void> {
    let known = machine.ok_or_else(|| Void::Unknown(name.clone()))?;
    if known.standing() == Standing::Revoked {
        return Err(Void::Revoked(name.clone()));
    }
    let holds = known.observed.as_ref().map(|observed| observed.holds).unwrap_or_default();
    let published = known.published.as_ref().map(|published| published.target.generation);
    match next_generation(epoch, published, &holds) {
        Ok(next) if next == drafted => Ok(known),
        Ok(next) => Err(Void::NotNext { machine: name.clone(), drafted, next }),
        Err(source) => Err(Void::NoNext { machine: name.clone(), source }),
    }
}

/// A draft as shown to signers. `void` says why it can no longer be published.
pub fn view(stored: &StoredDraft, root: &Root, void: Option<String>) -> Result<DraftView, DraftRefusal> {
    let draft = &stored.draft;
    let (kind, machines) = match &draft.what {
        Drafted::Root { .. } => (DraftKind::Root, Vec::new()),
        Drafted::Generations { generations } => {
            (DraftKind::Generations, generations.iter().map(|one| one.machine.clone()).collect())
        }
    };
    let progress = draft.progress(root)?;
    Ok(DraftView {
        id: stored.id,
        kind,
        made_at: draft.made_at,
        made_by: draft.made_by,
        ends: draft.ends,
        machines,
        signed: progress.signed,
        missing: progress.missing,
        void,
    })
}

/// Stores a draft, or adds its valid signatures to the stored copy. Answers with what is then stored.
pub fn keep(
    stored: &Stored,
    draft: &Draft,
    root: &Root,
    context: &AuditContext<'_>,
) -> Result<Decided<StoredDraft>, DraftRefusal> {
    let id = draft.id()?;
    let held = stored.held.as_ref().map(|text| Draft::parse(text.as_bytes())).transpose()?;
    // Also for a new draft: strangers' signatures are not stored.
    let merged = held.as_ref().unwrap_or(draft).merge(draft, root)?;
    let kept = StoredDraft { id, draft: merged };
    if held.as_ref() == Some(&kept.draft) {
        return Ok(Decided::unchanged(kept));
    }
    if held.is_none() && stored.waiting >= MOST_DRAFTS {
        return Err(DraftRefusal::TooMany);
    }
    let action = if held.is_some() { "draft-signed" } else { "draft-made" };
    let changes = vec![
        Change::DraftKept(Box::new(kept.clone())),
        Change::Audited(NewEntry::by(context, action, id.short())),
    ];
    Ok(Decided { changes, answer: kept })
}

/// Removes a draft: it was published, or an operator dropped it.
pub fn drop(stored: &Stored, id: &Sha256, context: &AuditContext<'_>) -> Result<Decided<()>, DraftRefusal> {
    if stored.held.is_none() {
        return Err(DraftRefusal::Unknown(id.short()));
    }
    let changes = vec![
        Change::DraftDropped { id: *id },
        Change::Audited(NewEntry::by(context, "draft-dropped", id.short())),
    ];
    Ok(Decided { changes, answer: () })
}

#[cfg(test)]
mod tests;
