//! The labels of what is counted. Each is one of a few, so that a stranger cannot make more of them.

use muster_protocol::api::{self, ProblemCode};

/// A label's values: an index, and a name for each.
pub trait Named: Copy + 'static {
    const ALL: &'static [Self];
    const NAMES: &'static [&'static str];
}

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($variant),* }
        impl $name {
            pub const COUNT: usize = [$($text),*].len();
        }
        impl Named for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),*];
            const NAMES: &'static [&'static str] = &[$($text),*];
        }
    };
}

named! {
    /// Where a request went.
    Door {
        CheckIn = "checkin", Enrol = "enrol", Reports = "reports", Poll = "poll", Tuf = "tuf", Cache = "cache",
        Operator = "operator", Changes = "changes", Public = "public", Health = "health", Other = "other",
    }
}

named! {
    /// How a request ended.
    Status { Ok = "2xx", Moved = "3xx", Refused = "4xx", Failed = "5xx" }
}

named! {
    /// How a check-in ended. A conflict is a used number, or a key that another machine has.
    Checked {
        Accepted = "accepted", Conflict = "conflict", Refused = "refused", Later = "later", Failed = "failed",
    }
}

named! {
    /// A call of the database: one read, a whole transaction that writes, what its beginning waited for the
    /// writer, and its commit.
    Call { Read = "read", Write = "write", Begin = "begin", Commit = "commit" }
}

named! {
    /// A call of the blob store.
    Blob { Size = "size", Read = "read", Write = "write", Part = "part", Finish = "finish" }
}

named! {
    /// Why a connection was turned away: all are taken, or all that its address may have.
    Turned { All = "all", Address = "address" }
}

impl Door {
    /// By the path, whoever asks.
    pub fn of(path: &str) -> Self {
        match path {
            api::CHECKIN => Self::CheckIn,
            api::REPORTS => Self::Reports,
            api::ENROL => Self::Enrol,
            api::OPERATOR_CHANGES => Self::Changes,
            api::HEALTH | api::READY => Self::Health,
            api::FLEET | api::OPENAPI => Self::Public,
            _ if path.starts_with("/v1/machines/") && path.ends_with("/poll") => Self::Poll,
            _ if path.starts_with("/v1/machines/") => Self::Tuf,
            _ if path.starts_with("/v1/operator/") => Self::Operator,
            _ if path.starts_with("/v1/root/") => Self::Public,
            _ if path.starts_with("/cache/") => Self::Cache,
            _ => Self::Other,
        }
    }

    /// Whether requests here wait until there is something to say.
    pub fn waits(self) -> bool {
        matches!(self, Self::Poll | Self::Changes)
    }
}

impl Status {
    pub fn of(status: u16) -> Self {
        match status {
            0..300 => Self::Ok,
            300..400 => Self::Moved,
            400..500 => Self::Refused,
            _ => Self::Failed,
        }
    }
}

impl Checked {
    pub fn of(status: u16) -> Self {
        match status {
            0..400 => Self::Accepted,
            409 => Self::Conflict,
            429 | 503 => Self::Later,
            400..500 => Self::Refused,
            _ => Self::Failed,
        }
    }
}

macro_rules! codes {
    ($($variant:ident = $text:literal),* $(,)?) => {
        /// How many codes a problem may have.
        pub const CODES: usize = [$($text),*].len();
        /// Their names on the wire.
        pub fn code_names() -> impl Iterator<Item = &'static str> {
            [$($text),*].into_iter()
        }
        const ORDER: [ProblemCode; CODES] = [$(ProblemCode::$variant),*];
    };
}

codes! {
    Other = "other", Malformed = "malformed", TooLarge = "too-large", Unauthorised = "unauthorised",
    BadSignature = "bad-signature", UnknownMachine = "unknown-machine", Revoked = "revoked",
    TokenUnknown = "token-unknown", TokenUsed = "token-used", TokenExpired = "token-expired",
    Sequence = "sequence", Repeated = "repeated", EventNumbers = "event-numbers", Conflict = "conflict",
    WrongClass = "wrong-class", NotFound = "not-found", Busy = "busy", TooMany = "too-many",
    StorageFull = "storage-full", Internal = "internal",
}

/// The index of a code; one that is not in the table counts as another.
pub fn code_of(code: ProblemCode) -> usize {
    ORDER.iter().position(|known| *known == code).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_named_as_on_the_wire() {
        for (code, name) in ORDER.iter().zip(code_names()) {
            assert_eq!(serde_json::to_value(code).unwrap(), name);
        }
    }

    #[test]
    fn a_path_leads_to_one_door() {
        for (path, door) in [
            ("/v1/checkin", Door::CheckIn),
            ("/v1/machines/cinnabar/poll", Door::Poll),
            ("/v1/machines/cinnabar/tuf/timestamp.json", Door::Tuf),
            ("/v1/operator/changes", Door::Changes),
            ("/v1/operator/machines/cinnabar", Door::Operator),
            ("/cache/nar/x.nar", Door::Cache),
            ("/v1/root/2.root.json", Door::Public),
            ("/wp-login.php", Door::Other),
        ] {
            assert_eq!(Door::of(path), door, "{path}");
        }
    }
}
