//! How a log begins, and why that is believed or not.

use std::fmt;

use muster_protocol::audit::{CUT_DAYS, Checkpoint};
use muster_protocol::clock::UnixMillis;
use muster_protocol::keys::PublicKey;
use serde::{Deserialize, Serialize};

use crate::terminal::table;
use crate::trust::roots::Trusted;

/// How a log begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// With its first entry.
    Whole,
    /// After the entry that an operator cut it at.
    Proven(Box<Proven>),
    /// In the middle, as a file does: it hides nothing that somebody else could not show.
    File,
    /// After an entry that nobody is known to have cut it at.
    Unproven(Why),
}

/// A cut that is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proven {
    /// The last entry that was forgotten.
    pub at_entry: Checkpoint,
    /// The operator who signed the request; `None` if the cut was accepted here without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<PublicKey>,
    /// When they signed, by their clock, or when it was accepted.
    pub at: UnixMillis,
}

/// Why a cut is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// No entry keeps a request for it.
    Untold,
    /// The request in this entry was not signed by an operator.
    Forged(u64),
    /// This entry, which was seen here, is too young to be forgotten.
    Young(u64, UnixMillis),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untold => f.write_str("no entry after it holds an operator's signed request for that"),
            Self::Forged(id) => {
                write!(f, "the request for that in entry {id} is not signed by an operator of this fleet")
            }
            Self::Young(id, made) => write!(
                f,
                "entry {id}, seen here before, was made on {}: entries stay for {CUT_DAYS} days",
                table::date(*made)
            ),
        }
    }
}

impl Proven {
    /// `by alice (3f2a…) on 2026-11-28 10:00:00`.
    pub fn who_and_when(&self, trusted: &Trusted) -> String {
        let when = table::date(self.at);
        match &self.by {
            Some(key) => format!("by {} on {when}", trusted.name(key)),
            None => format!("by nobody who is known; accepted here on {when}"),
        }
    }
}
