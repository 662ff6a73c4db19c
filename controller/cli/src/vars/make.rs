//! From values in memory to files: public ones as they are, secret ones encrypted.

use anyhow::Result;

use super::change::Change;
use super::generators::{File, Generator};
use super::layout::{self, Kind};
use super::names::VarName;
use super::recipients::{relink, wanted_links};
use super::repository::Secret;
use super::sops::Sops;
use super::workspace::{Held, Operator};

/// The changes that store one value.
pub async fn file(
    held: &Held,
    sops: &Sops,
    operator: &Operator,
    (generator, name, file): (&Generator, &VarName, &File),
    value: &[u8],
) -> Result<Vec<Change>> {
    let folder = layout::file(&generator.id, name);
    let there = held.snapshot.secrets.get(&folder);
    let mut changes = Vec::new();
    if !file.secret {
        // It was secret and is public now: remove what belonged to the secret.
        if let Some(secret) = there {
            changes.push(Change::Remove { path: folder.join(layout::SECRET) });
            changes.extend(relink(&folder, secret, &Default::default()));
        }
        changes.push(Change::Write { path: folder.join(layout::VALUE), contents: value.to_vec() });
        return Ok(changes);
    }
    let mut links = wanted_links(&held.snapshot.members, generator, file, there)?;
    links.insert((Kind::User, operator.name.clone()));
    let recipients = held.snapshot.members.recipients(&links)?;
    let contents = sops.encrypt(value, &recipients, &layout::shown(&folder)).await?;
    let none = Secret { links: Default::default(), recipients: Ok(Default::default()) };
    changes.extend(relink(&folder, there.unwrap_or(&none), &links));
    changes.push(Change::Write { path: folder.join(layout::SECRET), contents });
    if held.snapshot.values.contains(&folder) {
        changes.push(Change::Remove { path: folder.join(layout::VALUE) });
    }
    Ok(changes)
}

/// The change that records the generator's current validation hash.
pub fn validation(held: &Held, generator: &Generator) -> Option<Change> {
    let path = layout::validation_hash(&generator.id);
    let known = held.snapshot.hashes.get(&layout::generator(&generator.id));
    match &generator.validation {
        Some(hash) if known != Some(hash) => {
            Some(Change::Write { path, contents: hash.clone().into_bytes() })
        }
        None if known.is_some() => Some(Change::Remove { path }),
        _ => None,
    }
}
