//! The earlier check-ins of a machine, as a column holds them.

use crate::core::rows::EarlierCheckIn;

/// What is kept of each: its number, and the first bytes of its body's hash.
const BYTES: usize = 8 + 16;

pub fn read(column: &[u8]) -> Vec<EarlierCheckIn> {
    let (entries, _) = column.as_chunks::<BYTES>();
    let entries = entries.iter().filter_map(|entry| {
        let (seq, body) = entry.split_first_chunk::<8>()?;
        Some(EarlierCheckIn { seq: u64::from_be_bytes(*seq), body: body.try_into().ok()? })
    });
    entries.collect()
}

pub fn column(earlier: &[EarlierCheckIn]) -> Vec<u8> {
    let mut column = Vec::with_capacity(earlier.len() * BYTES);
    for entry in earlier {
        column.extend_from_slice(&entry.seq.to_be_bytes());
        column.extend_from_slice(&entry.body);
    }
    column
}
