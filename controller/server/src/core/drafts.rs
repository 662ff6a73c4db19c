//! Drafts on their way from one signer to the next. The controller keeps them and can do nothing with them: what they
//! hold is signed, and what is missing only the holders of keys can add.

use muster_protocol::draft::{Draft, DraftError};
use muster_protocol::ids::Sha256;
use muster_protocol::tuf::metadata::Root;

use super::audit::{AuditContext, NewEntry};
use super::change::{Change, Decided};
use super::rows::StoredDraft;

/// How many drafts may wait at once.
const MOST_DRAFTS: u64 = 256;

/// What is stored around a draft.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// The copy that is kept, as a text of JSON.
    pub held: Option<String>,
    /// How many drafts are kept.
    pub waiting: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum DraftRefusal {
    #[error("there is no draft {0}: `muster drafts list` shows those that wait")]
    Unknown(String),
    #[error("{MOST_DRAFTS} drafts wait already: sign them, or end some with `muster drafts drop`")]
    TooMany,
    #[error("{0}")]
    Draft(#[from] DraftError),
}

/// Keeps a draft, or adds its good signatures to the copy that is kept. Answers with what is kept then.
pub fn keep(
    stored: &Stored,
    draft: &Draft,
    root: &Root,
    context: &AuditContext<'_>,
) -> Result<Decided<StoredDraft>, DraftRefusal> {
    let id = draft.id()?;
    let held = stored.held.as_ref().map(|text| Draft::parse(text.as_bytes())).transpose()?;
    // Also where it is new: what strangers signed is not kept.
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

/// Forgets a draft: it was published, or an operator does not want it.
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
