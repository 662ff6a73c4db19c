//! Drafts: fetching, reading, writing and checking them.

use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::api::{OPERATOR_DRAFTS, ProblemCode};
use muster_protocol::draft::{Checked, Draft, MAX_DRAFT_BYTES};

use crate::api::client::{Api, Refused};
use crate::config::Config;
use crate::terminal::error::{Hint, WithHint as _};
use crate::trust::roots::Trusted;

/// A draft by its ID, or from a file.
pub async fn get(api: &Api, which: &str) -> Result<Draft> {
    let path = Path::new(which);
    if path.is_file() {
        return from_file(path);
    }
    let draft: Result<Draft> = api.get(&format!("{OPERATOR_DRAFTS}/{}", digits(which)?)).await;
    draft.map_err(gone)
}

pub fn digits(which: &str) -> Result<String> {
    let is_id = which.len() >= 8 && which.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_id {
        return Err(anyhow!("'{which}' is neither a file nor a draft's id"))
            .hint("an id has 8 digits or more: `muster drafts list` shows them");
    }
    Ok(which.to_ascii_lowercase())
}

/// Explains what may have become of a missing draft.
pub fn gone(error: anyhow::Error) -> anyhow::Error {
    match is(&error, &[ProblemCode::NotFound]) {
        true => error.context(Hint(
            "it was published or dropped, or its time has ended: `muster audit` tells which".to_owned(),
        )),
        false => error,
    }
}

/// Whether the controller refused for one of these reasons.
pub fn is(error: &anyhow::Error, codes: &[ProblemCode]) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| codes.contains(&refused.code))
}

pub fn from_file(path: &Path) -> Result<Draft> {
    Draft::parse(&read_file(path)?)
        .with_context(|| path.display().to_string())
        .hint("name a file that `muster drafts export` or `muster update --draft-file` wrote")
}

pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = MAX_DRAFT_BYTES as u64;
    std::fs::File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > limit {
        return Err(anyhow!("{} has more than {limit} bytes, so it is not a draft", path.display()));
    }
    Ok(bytes)
}

/// Writes a draft atomically.
pub fn write(draft: &Draft, path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = tempfile::NamedTempFile::new_in(folder).map_err(anyhow::Error::new).and_then(|mut file| {
        file.write_all(&serde_json::to_vec_pretty(draft)?)?;
        file.as_file().sync_all()?;
        let kept = file.persist(path)?;
        Ok(kept.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?)
    });
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Refuses a draft that is not sound, or belongs to another fleet.
pub fn check(draft: &Draft, config: &Config, trusted: &Trusted, now: i64) -> Result<Checked> {
    draft
        .check(&config.file.fleet, &trusted.root, now)
        .hint("do not sign it: have it made anew with `muster update`, or `muster keys` for a root")
}
