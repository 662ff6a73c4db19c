//! Drafts waiting for signatures.

use muster_protocol::draft::Draft;
use muster_protocol::ids::Sha256;
use muster_protocol::tuf::metadata::Root;

use super::{Failed, Store, StoreError};
use crate::core::audit::AuditContext;
use crate::core::drafts::{self, DraftRefusal};
use crate::core::rows::StoredDraft;
use crate::threads;

impl Store {
    /// Stores a draft, or adds its valid signatures to the stored copy. Returns what is then stored.
    pub async fn keep_draft(
        &self,
        draft: &Draft,
        root: &Root,
        context: &AuditContext<'_>,
    ) -> Result<StoredDraft, Failed<DraftRefusal>> {
        let id = threads::on(usize::MAX, || draft.id());
        let id = id.map_err(|error| Failed::Refused(DraftRefusal::from(error)))?;
        let decided = self.decide(
            |mut transaction| async move {
                let stored = transaction.draft(&id).await?;
                Ok((transaction, stored))
            },
            |stored| threads::on(usize::MAX, || drafts::keep(stored, draft, root, context)),
        );
        Ok(decided.await?.answer)
    }

    /// All waiting drafts, oldest first.
    pub async fn drafts(&self, now_s: i64) -> Result<Vec<StoredDraft>, StoreError> {
        self.database.drafts(now_s).await
    }

    /// The draft whose ID has this prefix, if there is exactly one.
    pub async fn draft(&self, prefix: &str, now_s: i64) -> Result<StoredDraft, Failed<DraftRefusal>> {
        let unknown = || Failed::Refused(DraftRefusal::Unknown(prefix.chars().take(64).collect()));
        let digits = (8..=64).contains(&prefix.len())
            && prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !digits {
            return Err(unknown());
        }
        let found = self.database.drafts_beginning(prefix, now_s).await?;
        let [(id, text)] = <[_; 1]>::try_from(found).map_err(|_| unknown())?;
        let draft = threads::on(text.len(), || Draft::parse(text.as_bytes()));
        let draft = draft.map_err(|error| Failed::Refused(error.into()))?;
        Ok(StoredDraft { id, draft })
    }

    /// Removes a draft: it was published, or an operator dropped it.
    pub async fn drop_draft(
        &self,
        id: &Sha256,
        context: &AuditContext<'_>,
    ) -> Result<(), Failed<DraftRefusal>> {
        let decided = self.decide(
            |mut transaction| async move {
                let stored = transaction.draft(id).await?;
                Ok((transaction, stored))
            },
            |stored| drafts::drop(stored, id, context),
        );
        decided.await.map(drop)
    }
}
