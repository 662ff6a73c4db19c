//! The names of the cache's files.

use muster_protocol::narinfo::is_base32;

use crate::http::problem::Refused;

pub fn not_cached(file: &str) -> Refused {
    Refused::not_found(format!("the cache has no {file}"))
}

pub fn narinfo_name(file: &str) -> Result<String, Refused> {
    match file.strip_suffix(".narinfo") {
        Some(hash) if is_base32(hash, 32) => Ok(file.to_owned()),
        _ => Err(not_cached(file)),
    }
}
