//! Why the store failed.

/// The database failed; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the controller's disk is full: nothing of this was stored; free some space and repeat")]
    Full,
    #[error("the controller's database is busy: repeat in a moment")]
    Busy,
    /// The transaction conflicted with another: it may succeed when repeated as a whole.
    #[error("the controller's database is busy: repeat in a moment")]
    Conflict,
    #[error("the controller's database fails: {0}")]
    Database(String),
    #[error("the controller's database cannot be opened: {0}")]
    Open(String),
    #[error(
        "the controller's database belongs to fleet {found}, but the root folder to fleet {wanted}: correct \
            data or root in controller.toml"
    )]
    OtherFleet { wanted: String, found: String },
    #[error("the controller's database holds {0} that it cannot read: restore a backup")]
    Damaged(&'static str),
    #[error(transparent)]
    Random(#[from] muster_protocol::random::RandomError),
}

/// A decision that was not carried out: it refused, or the store failed.
#[derive(Debug, thiserror::Error)]
pub enum Failed<E> {
    #[error(transparent)]
    Refused(E),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failed<std::convert::Infallible> {
    /// The store's failure, for a decision that never refuses.
    pub(super) fn into_store(self) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Refused(never) => match never {},
        }
    }
}
