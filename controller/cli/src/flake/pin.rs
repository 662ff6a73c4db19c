//! Pins a tree: a reference to what was locked, in a form that cannot change.

use serde::Deserialize;

use super::nix::{EVALUATION_LIMIT, NixError, nix_noting};

/// The part of `nix flake metadata`'s output that is used.
#[doc(hidden)]
#[derive(Debug, Clone, Deserialize)]
pub struct Metadata {
    /// The tree's path in the store.
    #[serde(default)]
    pub path: Option<String>,
    #[serde(default)]
    pub locked: Locked,
}

/// One lock entry. Numbers and strings are Nix's own; unknown fields are ignored.
#[doc(hidden)]
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Locked {
    #[serde(rename = "type")]
    pub kind: String,
    pub nar_hash: Option<String>,
    pub rev: Option<String>,
    pub rev_count: Option<u64>,
    pub last_modified: Option<u64>,
    pub dir: Option<String>,
    pub dirty_rev: Option<String>,
}

/// What is evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pin {
    /// The tree in the store, with what its lock said of it: the folder is not read again.
    Snapshot(String),
    /// The reference itself, where a tree in the store would evaluate differently: to be checked again at the
    /// end.
    Live(String),
}

impl Pin {
    pub fn url(&self) -> &str {
        match self {
            Self::Snapshot(url) | Self::Live(url) => url,
        }
    }
}

/// A reference, locked.
#[derive(Debug)]
pub struct Tree {
    pub pin: Pin,
    pub hash: Option<String>,
    /// Its path in the store.
    pub path: Option<String>,
    /// Whether it has uncommitted changes.
    pub is_dirty: bool,
    pub warnings: Vec<String>,
}

/// Locks a reference, with the same arguments that the operator would give Nix.
pub async fn lock(reference: &str, arguments: &[String]) -> Result<Tree, NixError> {
    let (metadata, warnings) = metadata(reference, arguments).await?;
    let live = Pin::Live(reference.to_owned());
    let pin = match snapshot(&metadata) {
        Some(url) if metadata.locked.dir.is_none() => Pin::Snapshot(url),
        // Older versions do not support a subfolder of a tree in the store.
        Some(url) => match self::metadata(&url, &[NO_WRITE.to_owned()]).await {
            Ok((again, _)) if again.locked.nar_hash == metadata.locked.nar_hash => Pin::Snapshot(url),
            _ => live,
        },
        None => live,
    };
    Ok(Tree {
        pin,
        hash: metadata.locked.nar_hash.clone(),
        is_dirty: metadata.is_dirty(),
        path: metadata.path,
        warnings,
    })
}

/// An input taken from elsewhere. It need not be a flake.
pub async fn lock_input(reference: &str) -> Result<Tree, NixError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Prefetched {
        hash: String,
        store_path: String,
    }
    let as_flake = match lock(reference, &[NO_WRITE.to_owned()]).await {
        Ok(tree) => return Ok(tree),
        Err(error) => error,
    };
    let printed = match nix_noting(&["flake", "prefetch", "--json", reference], EVALUATION_LIMIT).await {
        Ok(printed) => printed,
        Err(_) => return Err(as_flake),
    };
    let fetched: Prefetched = parsed(&printed.stdout)?;
    let metadata = Metadata {
        path: Some(fetched.store_path),
        locked: Locked { nar_hash: Some(fetched.hash), ..Locked::default() },
    };
    Ok(Tree {
        pin: snapshot(&metadata).map_or_else(|| Pin::Live(reference.to_owned()), Pin::Snapshot),
        hash: metadata.locked.nar_hash,
        path: metadata.path,
        is_dirty: false,
        warnings: printed.warnings,
    })
}

/// For commands that only read.
pub const NO_WRITE: &str = "--no-write-lock-file";

async fn metadata(reference: &str, arguments: &[String]) -> Result<(Metadata, Vec<String>), NixError> {
    let mut all = vec!["flake", "metadata", "--json"];
    all.extend(arguments.iter().map(String::as_str));
    all.push(reference);
    let printed = nix_noting(&all, EVALUATION_LIMIT).await?;
    Ok((parsed(&printed.stdout)?, printed.warnings))
}

fn parsed<T: serde::de::DeserializeOwned>(printed: &[u8]) -> Result<T, NixError> {
    serde_json::from_slice(printed)
        .map_err(|error| NixError::Format { program: "nix", reason: error.to_string() })
}

impl Metadata {
    fn is_dirty(&self) -> bool {
        self.locked.dirty_rev.is_some() || self.locked.kind == "git" && self.locked.rev.is_none()
    }
}

/// The tree in the store as a locked reference, with what `self` is told of it. `None` where `self` is told
/// more than such a reference can say: newer versions tell a dirty tree its base commit.
#[doc(hidden)]
pub fn snapshot(metadata: &Metadata) -> Option<String> {
    let Locked { nar_hash, rev, rev_count, last_modified, dir, dirty_rev, .. } = &metadata.locked;
    let path = metadata.path.as_deref().filter(|path| path.starts_with('/'))?;
    if dirty_rev.is_some() {
        return None;
    }
    let mut said = vec![format!("narHash={}", escaped(nar_hash.as_deref()?))];
    said.extend(last_modified.map(|time| format!("lastModified={time}")));
    said.extend(rev.as_ref().map(|rev| format!("rev={}", escaped(rev))));
    said.extend(rev_count.map(|count| format!("revCount={count}")));
    said.extend(dir.as_ref().map(|dir| format!("dir={}", escaped(dir))));
    Some(format!("path:{path}?{}", said.join("&")))
}

/// A value in a URL's query (RFC 3986, section 3.4).
fn escaped(text: &str) -> String {
    let mut url = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                url.push(char::from(byte));
            }
            other => url.push_str(&format!("%{other:02X}")),
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Metadata {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_tree_in_the_store_says_all_that_its_lock_said() {
        let clean = r#"{"path":"/nix/store/q-source","url":"x","locked":{"type":"git","rev":"ab","revCount":3,
            "lastModified":5,
            "narHash":"sha256-a+/b=","dir":"nix/a b","__final":true}}"#;
        assert_eq!(
            snapshot(&read(clean)).unwrap(),
            "path:/nix/store/q-source?narHash=sha256-a%2B/b%3D&lastModified=5&rev=ab&revCount=3&dir=nix/a%20b"
        );
        assert!(!read(clean).is_dirty());
    }

    #[test]
    fn a_tree_that_could_not_say_all_is_not_put_in_the_place_of_the_reference() {
        let dirty = read(
            r#"{"path":"/nix/store/q-source","locked":{"type":"git","narHash":"sha256-a",
            "dirtyRev":"ab-dirty"}}"#,
        );
        assert!(dirty.is_dirty() && snapshot(&dirty).is_none());
        for text in ["{}", r#"{"path":"/nix/store/q-source"}"#, r#"{"locked":{"narHash":"sha256-a"}}"#] {
            assert!(snapshot(&read(text)).is_none(), "{text}");
        }
    }
}
