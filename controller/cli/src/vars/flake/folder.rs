//! Which local folder a flake is in: only there can anything be written.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::flake::nix::{EVALUATION_LIMIT, NixError, nix};

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("cannot read the flake {reference}: {source}")]
    Metadata { reference: String, source: NixError },
    #[error(
        "the flake {0} is not in a folder here, and variables can be written only there: clone it, and give \
         --flake its folder"
    )]
    NotLocal(String),
}

#[derive(Deserialize)]
struct Metadata {
    resolved: Resolved,
}

#[derive(Deserialize)]
struct Resolved {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    path: Option<PathBuf>,
    #[serde(default)]
    dir: Option<String>,
}

impl Resolved {
    /// The candidate folders. Newer versions escape the URL and keep `dir` out of it; 2.8 does neither.
    fn folders(&self) -> Vec<PathBuf> {
        let dir = self.dir.as_deref().unwrap_or_default().trim_matches('/');
        let sources = match self.kind.as_str() {
            "git" => {
                let Some(path) = self.url.as_deref().and_then(|url| url.strip_prefix("file://")) else {
                    return vec![];
                };
                let short = path.split_once('?').map_or(path, |(path, _)| path);
                vec![unescaped(short), Some(short.into()), unescaped(path), Some(path.into())]
            }
            "path" => vec![self.path.as_deref().and_then(|path| std::path::absolute(path).ok())],
            _ => return vec![],
        };
        sources
            .into_iter()
            .flatten()
            .map(|source| source.join(dir))
            .filter(|folder| folder.is_absolute())
            .collect()
    }
}

pub async fn local(reference: &str) -> Result<PathBuf, FolderError> {
    let failed = |source| FolderError::Metadata { reference: reference.to_owned(), source };
    let arguments = ["flake", "metadata", "--json", "--no-write-lock-file", reference];
    let printed = nix(&arguments, EVALUATION_LIMIT).await.map_err(failed)?;
    let metadata: Metadata = serde_json::from_slice(&printed)
        .map_err(|error| failed(NixError::Format { program: "nix", reason: error.to_string() }))?;
    let is_here = |folder: &PathBuf| !folder.starts_with("/nix/store") && folder.join("flake.nix").exists();
    metadata
        .resolved
        .folders()
        .into_iter()
        .find(is_here)
        .ok_or_else(|| FolderError::NotLocal(reference.to_owned()))
}

/// A path of a URL (RFC 3986, section 2.1).
fn unescaped(text: &str) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
        }
    }
    Some(Path::new(&String::from_utf8(bytes).ok()?).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(text: &str) -> Option<PathBuf> {
        serde_json::from_str::<Metadata>(text).unwrap().resolved.folders().into_iter().next()
    }

    #[test]
    fn folders_are_found_in_every_way_that_nix_tells_them() {
        let git = r#"{"resolved":{"type":"git","url":"file:///home/a%20b/fleet"},"locked":{}}"#;
        assert_eq!(folder(git).unwrap(), Path::new("/home/a b/fleet"));
        let below = r#"{"resolved":{"type":"git","url":"file:///fleet","dir":"nix/clan"}}"#;
        assert_eq!(folder(below).unwrap(), Path::new("/fleet/nix/clan"));
        let of_2_8 = r#"{"resolved":{"type":"git","url":"file:///fleet?dir=nix%2fclan","dir":"nix/clan"}}"#;
        assert_eq!(folder(of_2_8).unwrap(), Path::new("/fleet/nix/clan"));
        let unescaped = r#"{"resolved":{"type":"git","url":"file:///home/100%"}}"#;
        assert_eq!(folder(unescaped).unwrap(), Path::new("/home/100%"));
        assert_eq!(folder(r#"{"resolved":{"type":"path","path":"/fleet"}}"#).unwrap(), Path::new("/fleet"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(folder(r#"{"resolved":{"type":"path","path":"below"}}"#).unwrap(), here.join("below"));
        for elsewhere in [
            r#"{"resolved":{"type":"github","owner":"a","repo":"b"}}"#,
            r#"{"resolved":{"type":"git","url":"https://example.org/fleet"}}"#,
        ] {
            assert_eq!(folder(elsewhere), None, "{elsewhere}");
        }
    }
}
