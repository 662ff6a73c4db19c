//! What every generation brings along: an archive in the cache, uploaded before the generation is published.
//! An upload that was answered is read by the machine, and at the end by everybody, whatever died meanwhile.

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use muster_protocol::api::{self, CACHE};
use muster_protocol::ids::{MachineName, Sha256, nix_base32};
use muster_protocol::operator::Session;

use super::dice::Dice;
use crate::client::Connection;
use crate::fleet::Fleet;

const KIB: usize = 1024;
/// Most archives are at most this large, …
const USUAL: usize = 256 * KIB;
/// … and one in so many has more than one part of an upload to S3.
const LARGE_ONE_IN: usize = 16;
const LARGE: usize = 6 * KIB * KIB;

/// The archive of a generation: arbitrary bytes, the same each time.
pub fn archive(machine: &MachineName, number: u64) -> Vec<u8> {
    let seed = Sha256::of(format!("{machine} {number}").as_bytes());
    let seed = seed.as_bytes().iter().fold(0, |sum: u64, byte| sum.rotate_left(8) ^ u64::from(*byte));
    let mut dice = Dice::new(seed);
    let length = if dice.below(LARGE_ONE_IN) == 0 { LARGE } else { KIB + dice.below(USUAL) };
    (0..length.div_ceil(8)).flat_map(|_| dice.number().to_le_bytes()).take(length).collect()
}

/// Where it is in the cache.
pub fn path(archive: &[u8]) -> String {
    format!("{CACHE}/nar/{}.nar.zst", nix_base32(&Sha256::of(archive)))
}

/// An upload by an operator with this bearer.
pub fn put(archive: Vec<u8>, bearer: &str) -> Result<Request<Full<Bytes>>> {
    let request = Request::builder().method("PUT").uri(path(&archive)).header("host", "localhost");
    let request = request.header("authorization", format!("Bearer {bearer}"));
    Ok(request.body(Full::new(archive.into()))?)
}

/// A bearer of the operator for the cache, good at every controller.
pub async fn bearer(fleet: &Fleet, connection: &mut Connection) -> Result<String> {
    let request = fleet.signed("POST", api::OPERATOR_SESSION, vec![])?;
    Ok(connection.send(request).await?.good::<Session>()?.bearer)
}

/// Requires that a controller has it, byte for byte.
pub async fn require(
    connection: &mut Connection,
    machine: &MachineName,
    number: u64,
    bearer: &str,
) -> Result<u64> {
    let archive = archive(machine, number);
    let request = Request::builder().uri(path(&archive)).header("host", "localhost");
    let request = request.header("authorization", format!("Bearer {bearer}")).body(Full::default())?;
    let answer = connection.send(request).await?;
    if answer.status != 200 {
        bail!("the archive of generation {number} was stored, and is answered with {}", answer.status);
    }
    ensure!(answer.body == archive, "the archive of generation {number} is not what was stored");
    Ok(archive.len() as u64)
}
