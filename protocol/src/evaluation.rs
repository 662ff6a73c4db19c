//! What an operator told Nix besides the flake. It is signed with the system that resulted, so that later
//! signers and the history know that the flake alone does not produce it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::shown::command;

/// Everything that changes what a flake evaluates to. Empty: the flake and its lock determined all of it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Evaluation {
    /// `--impure`: files and the environment of the operator's computer counted too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub impure: bool,
    /// `--override-input`, in the order given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
    /// `--option`, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// One input that came from somewhere other than the lock says.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Override {
    /// Its path, `nixpkgs` or `home-manager/nixpkgs`.
    pub input: String,
    /// What the operator wrote.
    pub reference: String,
    /// The hash of the source tree at that moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
}

impl Evaluation {
    /// Whether the flake and its lock determined all of it.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// The options as typed in a shell, one line each, with the hash of what an override resolved to.
    pub fn describe(&self) -> Vec<String> {
        let impure = self.impure.then(|| "--impure".to_owned());
        let overrides = self.overrides.iter().map(|one| {
            let hash = one.hash.as_ref().map(|hash| format!(" ({hash})")).unwrap_or_default();
            format!("{}{hash}", command(&["--override-input", &one.input, &one.reference]))
        });
        let options = self.options.iter().map(|(name, value)| command(&["--option", name, value]));
        impure.into_iter().chain(overrides).chain(options).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_to_nix_is_signed_in_words_and_nothing_is_written_where_nothing_was_told() {
        assert_eq!(serde_json::to_string(&Evaluation::default()).unwrap(), "{}");
        let all = Evaluation {
            impure: true,
            overrides: vec![Override {
                input: "nixpkgs".into(),
                reference: "../nixpkgs".into(),
                hash: Some("sha256-x".into()),
            }],
            options: BTreeMap::from([("substituters".into(), "a b".into())]),
        };
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Evaluation>(&text).unwrap(), all);
        assert_eq!(
            all.describe(),
            ["--impure", "--override-input nixpkgs ../nixpkgs (sha256-x)", "--option substituters 'a b'"]
        );
    }
}
