//! Conversion of numbers, hashes, keys and texts to and from column values, and queries that leave no named
//! statement behind.

use std::borrow::Cow;

use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::{Query, QueryAs, QueryScalar};

use crate::store::error::StoreError;

/// A statement without a name is prepared anew each time. A pooler in transaction mode hands each transaction
/// to another connection, where a named one is not known, or is somebody else's.
pub fn query<'q>(sql: &'static str) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql).persistent(false)
}
pub fn query_as<'q, R: for<'r> sqlx::FromRow<'r, PgRow>>(
    sql: &'static str,
) -> QueryAs<'q, Postgres, R, PgArguments> {
    sqlx::query_as(sql).persistent(false)
}
pub fn query_scalar<'q, T>(sql: &'static str) -> QueryScalar<'q, Postgres, T, PgArguments>
where
    (T,): for<'r> sqlx::FromRow<'r, PgRow>,
{
    sqlx::query_scalar(sql).persistent(false)
}

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

/// Begins an escape of two characters. It is in no text that people write.
const ESCAPE: char = '\u{1a}';

/// A text for a column. PostgreSQL's texts cannot hold the character 0, which machines may send.
pub fn text(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', ESCAPE]) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace(ESCAPE, "\u{1a}1").replace('\0', "\u{1a}0"))
}
/// A text from a column.
pub fn plain(column: String) -> String {
    if !column.contains(ESCAPE) {
        return column;
    }
    column.replace("\u{1a}0", "\0").replace("\u{1a}1", "\u{1a}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_comes_back_from_a_column_without_the_character_that_columns_cannot_hold() {
        for told in ["", "plain", "\0", "a\0b\u{1a}", "\u{1a}0", "\u{1a}\u{1a}1\0\0"] {
            let column = text(told).into_owned();
            assert!(!column.contains('\0'));
            assert_eq!(plain(column), told);
        }
    }
}
