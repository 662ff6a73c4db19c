//! Parties, as the ones who are charged: an address until somebody proves who they are, then that machine or
//! operator.

use muster_protocol::ids::MachineName;

use crate::rates::Neighbourhood;

/// Who is charged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Payer {
    /// Somebody who proved nothing yet.
    Address(Neighbourhood),
    Machine(MachineName),
    Operator([u8; 32]),
    /// All keys together that this operator signed in to read.
    Reader([u8; 32]),
}

impl Payer {
    /// An operator, and the keys that they signed in.
    pub fn is_same_person(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Operator(one), Self::Reader(two)) | (Self::Reader(one), Self::Operator(two)) => one == two,
            _ => self == other,
        }
    }
}
