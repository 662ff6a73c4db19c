//! Changes to the fleet's folder, as data, and how they are shown. Pure.

use std::path::{Path, PathBuf};

use super::keys::Recipients;

/// One change to the folder. Contents are public or encrypted, never plaintext secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Write {
        path: PathBuf,
        contents: Vec<u8>,
    },
    Link {
        path: PathBuf,
        target: PathBuf,
    },
    /// A file or a link; folders that become empty are removed too.
    Remove {
        path: PathBuf,
    },
    RemoveTree {
        path: PathBuf,
    },
}

impl Change {
    pub fn path(&self) -> &Path {
        match self {
            Self::Write { path, .. }
            | Self::Link { path, .. }
            | Self::Remove { path }
            | Self::RemoveTree { path } => path,
        }
    }
}

/// A secret that gets other recipients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rekey {
    /// Its folder.
    pub secret: PathBuf,
    pub recipients: Recipients,
    /// Who gains and who loses access, by name or key, for display.
    pub gains: Vec<String>,
    pub loses: Vec<String>,
}

/// Changes that are known before sops has run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    pub changes: Vec<Change>,
    pub rekeys: Vec<Rekey>,
}

impl Draft {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.rekeys.is_empty()
    }
    pub fn extend(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.rekeys.extend(other.rekeys);
    }

    /// One line per path, like git's short status: A(dded or changed), L(inked), D(eleted), R(e-encrypted).
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<(PathBuf, String)> = Vec::new();
        for change in &self.changes {
            let shown = change.path().display();
            let line = match change {
                Change::Write { .. } => format!("A {shown}"),
                Change::Link { target, .. } => format!("L {shown} -> {}", target.display()),
                Change::Remove { .. } => format!("D {shown}"),
                Change::RemoveTree { .. } => format!("D {shown}/"),
            };
            lines.push((change.path().to_owned(), line));
        }
        for rekey in &self.rekeys {
            let path = rekey.secret.join(super::layout::SECRET);
            let mut line = format!("R {}", path.display());
            for (sign, names) in [('+', &rekey.gains), ('-', &rekey.loses)] {
                for name in names {
                    line.push_str(&format!("  {sign}{name}"));
                }
            }
            lines.push((path, line));
        }
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_shown_by_path_with_who_gains_and_loses() {
        let draft = Draft {
            changes: vec![
                Change::Link { path: "vars/b/machines/tin".into(), target: "../x".into() },
                Change::Write { path: "sops/machines/tin/key.json".into(), contents: b"[]".to_vec() },
                Change::Remove { path: "vars/a/machines/tin".into() },
            ],
            rekeys: vec![Rekey {
                secret: "vars/b".into(),
                recipients: Recipients::new(),
                gains: vec!["tin".into()],
                loses: vec!["lead".into()],
            }],
        };
        assert_eq!(
            draft.lines(),
            [
                "A sops/machines/tin/key.json",
                "D vars/a/machines/tin",
                "L vars/b/machines/tin -> ../x",
                "R vars/b/secret  +tin  -lead"
            ]
        );
    }
}
