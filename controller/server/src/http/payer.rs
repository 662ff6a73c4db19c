//! The parties that are charged: an address until the sender is authenticated, then that machine or operator.

use muster_protocol::ids::MachineName;

use crate::rates::Neighbourhood;

/// Who is charged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Payer {
    /// An unauthenticated address.
    Address(Neighbourhood),
    Machine(MachineName),
    Operator([u8; 32]),
    /// All keys together that this operator has signed in for reading.
    Reader([u8; 32]),
}

impl Payer {
    /// An operator, and the keys they have signed in.
    pub fn is_same_person(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Operator(one), Self::Reader(two)) | (Self::Reader(one), Self::Operator(two)) => one == two,
            _ => self == other,
        }
    }
}
