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
    /// There is no connection to it.
    #[error("PostgreSQL at {place} cannot be reached ({why}): {advice}")]
    Unreachable { place: String, why: String, advice: &'static str },
    /// It stops, starts, is a standby, or does not answer.
    #[error("the controller's database cannot be used now ({0}): repeat in a moment")]
    Unavailable(String),
    #[error("the controller's database fails: {0}")]
    Database(String),
    #[error("the controller's database cannot be opened: {0}")]
    Open(String),
    #[error(
        "the controller's database belongs to fleet {found}, but the root folder to fleet {wanted}: correct \
            data or root in controller.toml"
    )]
    OtherFleet { wanted: String, found: String },
    #[error(
        "the controller's database was copied to the one that {to} names, and that one counts since: start the \
            controller with it; to give up that copy and go on here, {undo}"
    )]
    Moved { to: String, undo: String },
    #[error("the controller's database holds {0} that it cannot read: restore a backup")]
    Damaged(&'static str),
    #[error(transparent)]
    Random(#[from] muster_protocol::random::RandomError),
}

impl StoreError {
    /// Whether the database as a whole is out of reach, so that nothing else will succeed either.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Unavailable(_))
    }

    /// The same for everybody else who would ask the database now; `None` if it is about what one of them
    /// wants.
    pub fn for_all(&self) -> Option<Self> {
        match self {
            Self::Full => Some(Self::Full),
            Self::Busy => Some(Self::Busy),
            Self::Unavailable(why) => Some(Self::Unavailable(why.clone())),
            Self::Unreachable { place, why, advice } => {
                Some(Self::Unreachable { place: place.clone(), why: why.clone(), advice })
            }
            _ => None,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if let Some(told) = error.as_database_error() {
            return match told.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
                Some(told) => of_sqlstate(told.code(), told.message()),
                None => of_result_code(told),
            };
        }
        match error {
            sqlx::Error::PoolTimedOut => Self::Busy,
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) => Self::Unavailable(error.to_string()),
            // As where something before the server accepts a connection and ends it without a word.
            sqlx::Error::Protocol(why) => Self::Unavailable(format!(
                "what answers there ended the connection, or is not the database: {why}"
            )),
            _ => Self::Database(error.to_string()),
        }
    }
}

/// What an error of SQLite means here. Its primary result codes (sqlite3.h) are the low byte of the extended
/// ones. 517: another connection has written since this transaction read.
fn of_result_code(error: &dyn sqlx::error::DatabaseError) -> StoreError {
    let code = error.code().and_then(|code| code.parse::<u32>().ok());
    match code.map(|code| code & 0xff) {
        Some(13) => StoreError::Full,
        Some(5) if code == Some(517) => StoreError::Conflict,
        Some(5 | 6) => StoreError::Busy,
        _ => StoreError::Database(error.to_string()),
    }
}

/// What an error of PostgreSQL means here, by its SQLSTATE.
fn of_sqlstate(code: &str, message: &str) -> StoreError {
    match code {
        // Serialisation, deadlock, and a row that another transaction has inserted since this one looked.
        "40001" | "40P01" | "23505" => StoreError::Conflict,
        "53100" => StoreError::Full,
        // Too many connections, no lock in time, a statement that took too long or was cancelled.
        "53300" | "55P03" | "57014" => StoreError::Busy,
        // The server stops, starts, has failed over to a standby, or gave up a transaction that waited.
        "57P01" | "57P02" | "57P03" | "25006" | "25P03" => StoreError::Unavailable(message.to_owned()),
        _ if code.starts_with("08") => StoreError::Unavailable(message.to_owned()),
        _ => StoreError::Database(message.to_owned()),
    }
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
