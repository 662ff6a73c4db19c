//! Drafts on their way from one signer to the next. The controller keeps them and can do nothing with them: what they
//! hold is signed, and what is missing only the holders of keys can add.

use muster_protocol::draft::{Draft, DraftError, DraftKind, Drafted};
use muster_protocol::ids::Sha256;
use muster_protocol::tuf::metadata::Root;

use super::audit::{Act, log};
use super::{Deed, Store, StoreError};

/// How many drafts may wait at once.
const MOST_DRAFTS: i64 = 256;

/// A draft as it is kept.
#[derive(Debug, Clone)]
pub struct StoredDraft {
    pub id: Sha256,
    pub draft: Draft,
}

#[derive(Debug, thiserror::Error)]
pub enum DraftRefusal {
    #[error("there is no draft {0}: `muster drafts list` shows those that wait")]
    Unknown(String),
    #[error("{MOST_DRAFTS} drafts wait already: sign them, or end some with `muster drafts drop`")]
    TooMany,
    #[error("{0}")]
    Draft(#[from] DraftError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
impl From<sqlx::Error> for DraftRefusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

fn kind(draft: &Draft) -> (DraftKind, &'static str) {
    match draft.what {
        Drafted::Generations { .. } => (DraftKind::Generations, "generations"),
        Drafted::Root { .. } => (DraftKind::Root, "root"),
    }
}

impl Store {
    /// Keeps a draft, or adds its good signatures to the copy that is kept. Gives what is kept then.
    pub async fn keep_draft(
        &self,
        draft: &Draft,
        root: &Root,
        deed: &Deed<'_>,
    ) -> Result<StoredDraft, DraftRefusal> {
        let id = draft.id()?;
        let mut tx = self.sql.begin().await?;
        let held: Option<String> = sqlx::query_scalar("SELECT document FROM drafts WHERE id = $1")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&mut *tx)
            .await?;
        let held = held.map(|text| Draft::parse(text.as_bytes())).transpose()?;
        // Also where it is new: what strangers signed is not kept.
        let merged = held.as_ref().unwrap_or(draft).merge(draft, root)?;
        let action = if held.is_some() { "draft-signed" } else { "draft-made" };
        if held.as_ref() == Some(&merged) {
            return Ok(StoredDraft { id, draft: merged });
        }
        if held.is_none() {
            let count: i64 = sqlx::query_scalar("SELECT count(*) FROM drafts").fetch_one(&mut *tx).await?;
            if count >= MOST_DRAFTS {
                return Err(DraftRefusal::TooMany);
            }
        }
        let document = serde_json::to_string(&merged).map_err(DraftError::from)?;
        sqlx::query(
            "INSERT INTO drafts (id, kind, made_at, ends, document) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (id) DO UPDATE SET document = excluded.document",
        )
        .bind(id.as_bytes().as_slice())
        .bind(kind(&merged).1)
        .bind(merged.made_at)
        .bind(merged.ends)
        .bind(document)
        .execute(&mut *tx)
        .await?;
        log(&mut tx, Act::of(deed, action, &id.short())).await?;
        tx.commit().await?;
        Ok(StoredDraft { id, draft: merged })
    }

    /// Everything that waits, the oldest first.
    pub async fn drafts(&self, now_s: i64) -> Result<Vec<StoredDraft>, StoreError> {
        let rows: Vec<(Vec<u8>, String)> =
            sqlx::query_as("SELECT id, document FROM drafts WHERE ends > $1 ORDER BY made_at, id")
                .bind(now_s)
                .fetch_all(self.sql.read())
                .await?;
        rows.into_iter()
            .map(|(id, text)| {
                let draft = Draft::parse(text.as_bytes()).map_err(|_| StoreError::Damaged("a draft"))?;
                Ok(StoredDraft { id: super::sha256(&id)?, draft })
            })
            .collect()
    }

    /// The draft whose id begins like this, if there is exactly one.
    pub async fn draft(&self, prefix: &str, now_s: i64) -> Result<StoredDraft, DraftRefusal> {
        let unknown = || DraftRefusal::Unknown(prefix.chars().take(64).collect());
        let digits = (8..=64).contains(&prefix.len())
            && prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !digits {
            return Err(unknown());
        }
        let rows: Vec<(Vec<u8>, String)> = sqlx::query_as(
            "SELECT id, document FROM drafts WHERE ends > $1 AND lower(hex(id)) LIKE $2 || '%' LIMIT 2",
        )
        .bind(now_s)
        .bind(prefix)
        .fetch_all(self.sql.read())
        .await?;
        match <[_; 1]>::try_from(rows) {
            Ok([(id, text)]) => {
                Ok(StoredDraft { id: super::sha256(&id)?, draft: Draft::parse(text.as_bytes())? })
            }
            Err(_) => Err(unknown()),
        }
    }

    /// Forgets a draft: it was published, or an operator does not want it.
    pub async fn drop_draft(&self, id: &Sha256, deed: &Deed<'_>) -> Result<(), DraftRefusal> {
        let mut tx = self.sql.begin().await?;
        let done = sqlx::query("DELETE FROM drafts WHERE id = $1")
            .bind(id.as_bytes().as_slice())
            .execute(&mut *tx)
            .await?;
        if done.rows_affected() == 0 {
            return Err(DraftRefusal::Unknown(id.short()));
        }
        log(&mut tx, Act::of(deed, "draft-dropped", &id.short())).await?;
        Ok(tx.commit().await?)
    }
}
