//! Conversion of numbers, hashes and keys to and from column values.

use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::PublicKey;

use crate::store::error::StoreError;

pub fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
/// SQL integers are signed; nothing that is counted here comes near the limit.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
pub fn sha256(bytes: &[u8]) -> Result<Sha256, StoreError> {
    bytes.try_into().map(Sha256::from_bytes).map_err(|_| StoreError::Damaged("a hash"))
}
pub fn public_key(bytes: &[u8]) -> Result<PublicKey, StoreError> {
    PublicKey::parse(bytes).map_err(|_| StoreError::Damaged("a key"))
}
pub fn generation(number: i64) -> Result<Generation, StoreError> {
    Generation::from_packed(number).map_err(|_| StoreError::Damaged("a generation's number"))
}
/// A number that no generation has is `None`: earlier versions may have accepted it, or a machine made it up.
pub fn some_generation(number: Option<i64>) -> Option<Generation> {
    number.and_then(|number| generation(number).ok())
}
pub fn machine(name: &str) -> Result<MachineName, StoreError> {
    name.parse().map_err(|_| StoreError::Damaged("a machine's name"))
}
/// Serialises a document that was parsed from JSON.
pub fn json(document: &impl serde::Serialize, what: &'static str) -> Result<String, StoreError> {
    serde_json::to_string(document).map_err(|_| StoreError::Damaged(what))
}
