//! Public keys that secrets are encrypted to, as in `key.json` and sops files. Pure.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde_json::{Value, json};

/// The kind of key: sops keeps the two apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyKind {
    Age,
    Pgp,
}

impl KeyKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Pgp => "pgp",
        }
    }
}

/// One recipient. Ordered by text first, as Clan sorts them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recipient {
    pub key: String,
    pub kind: KeyKind,
}

pub type Recipients = BTreeSet<Recipient>;

impl Recipient {
    /// A native age key, or an SSH key that age accepts as a recipient; a trailing comment is dropped.
    pub fn age(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let key = match (words.next()?, words.next()) {
            (kind @ ("ssh-ed25519" | "ssh-rsa"), Some(key)) => format!("{kind} {key}"),
            (key, None) if is_age(key) => key.to_owned(),
            _ => return None,
        };
        Some(Self { key, kind: KeyKind::Age })
    }

    pub fn pgp(fingerprint: &str) -> Option<Self> {
        let good =
            (16..=64).contains(&fingerprint.len()) && fingerprint.bytes().all(|b| b.is_ascii_hexdigit());
        good.then(|| Self { key: fingerprint.to_owned(), kind: KeyKind::Pgp })
    }
}
impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

/// `age1…` in lower case, of a plausible length; plugin recipients have other letters after the 1.
fn is_age(text: &str) -> bool {
    text.strip_prefix("age1").is_some_and(|rest| {
        (10..=2000).contains(&rest.len())
            && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    })
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    #[error("it is not JSON ({0})")]
    Json(String),
    #[error("it is neither a key nor a list of keys")]
    Shape,
    #[error("it has a key of the type '{0}', and age and pgp are known")]
    Kind(String),
    #[error("'{0}' is not a public key")]
    Key(String),
    #[error("it holds no key")]
    Empty,
}

#[derive(Deserialize)]
struct Entry {
    publickey: String,
    r#type: String,
}

/// Reads `key.json`: one key (as Clan wrote it until 2024) or a list of them.
pub fn parse_key_file(text: &[u8]) -> Result<Recipients, KeyFileError> {
    let value: Value = serde_json::from_slice(text).map_err(|error| KeyFileError::Json(error.to_string()))?;
    let entries = match value {
        Value::Array(entries) => entries,
        entry @ Value::Object(_) => vec![entry],
        _ => return Err(KeyFileError::Shape),
    };
    let keys: Recipients = entries
        .into_iter()
        .map(|entry| {
            let entry: Entry = serde_json::from_value(entry).map_err(|_| KeyFileError::Shape)?;
            let key = match entry.r#type.to_ascii_lowercase().as_str() {
                "age" => Recipient::age(&entry.publickey),
                "pgp" => Recipient::pgp(&entry.publickey),
                _ => return Err(KeyFileError::Kind(entry.r#type)),
            };
            key.ok_or(KeyFileError::Key(entry.publickey))
        })
        .collect::<Result<_, _>>()?;
    if keys.is_empty() { Err(KeyFileError::Empty) } else { Ok(keys) }
}

/// `key.json` as Clan writes it: a list, two spaces, no newline at the end.
pub fn key_file(keys: &Recipients) -> String {
    let entries: Vec<String> = keys
        .iter()
        .map(|key| {
            format!(
                "  {{\n    \"publickey\": {},\n    \"type\": \"{}\"\n  }}",
                json!(key.key),
                key.kind.as_str()
            )
        })
        .collect();
    format!("[\n{}\n]", entries.join(",\n"))
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SopsFileError {
    #[error("it is not JSON ({0})")]
    Json(String),
    #[error("it has no part that sops wrote")]
    NotSops,
    #[error("it is encrypted to several groups of keys at once, which Muster does not write")]
    KeyGroups,
}

/// The recipients of a binary sops file, according to its metadata.
pub fn recipients_of(file: &[u8]) -> Result<Recipients, SopsFileError> {
    let value: Value =
        serde_json::from_slice(file).map_err(|error| SopsFileError::Json(error.to_string()))?;
    let sops = value.get("sops").and_then(Value::as_object).ok_or(SopsFileError::NotSops)?;
    if !value.get("data").is_some_and(Value::is_string) || !sops.contains_key("mac") {
        return Err(SopsFileError::NotSops);
    }
    if sops.get("key_groups").and_then(Value::as_array).is_some_and(|groups| groups.len() > 1) {
        return Err(SopsFileError::KeyGroups);
    }
    let keys = |name: &str, attribute: &str, kind: KeyKind| -> Vec<Recipient> {
        let entries = sops.get(name).and_then(Value::as_array);
        let texts = entries.into_iter().flatten().filter_map(|entry| entry.get(attribute)?.as_str());
        texts.map(|key| Recipient { key: key.to_owned(), kind }).collect()
    };
    let age = keys("age", "recipient", KeyKind::Age);
    Ok(age.into_iter().chain(keys("pgp", "fp", KeyKind::Pgp)).collect())
}

/// A configuration for sops' `--config`: one rule with these recipients.
pub fn sops_config(recipients: &Recipients) -> String {
    let of = |kind| -> Vec<&str> {
        recipients
            .iter()
            .filter(|recipient| recipient.kind == kind)
            .map(|recipient| recipient.key.as_str())
            .collect()
    };
    json!({ "creation_rules": [{ "key_groups": [{ "age": of(KeyKind::Age), "pgp": of(KeyKind::Pgp) }] }] })
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "age1vn8fpkmkzkjttcuc3prq3jrp7t5fsrdqey74ydu5p88keqmcupvs8jtmv8";

    #[test]
    fn a_key_file_is_written_as_clan_writes_it() {
        let keys = Recipients::from([Recipient::age(KEY).unwrap()]);
        let text = key_file(&keys);
        assert_eq!(text, format!("[\n  {{\n    \"publickey\": \"{KEY}\",\n    \"type\": \"age\"\n  }}\n]"));
        assert_eq!(parse_key_file(text.as_bytes()).unwrap(), keys);
    }

    #[test]
    fn key_files_of_every_shape_that_clan_wrote_are_read() {
        let old = format!(r#"{{"publickey": "{KEY}", "type": "age"}}"#);
        assert_eq!(parse_key_file(old.as_bytes()).unwrap().len(), 1);
        let pgp = br#"{"publickey": "405FA8204B2DE160C850F27B402003678D8ACAC2", "type": "pgp"}"#;
        assert_eq!(parse_key_file(pgp).unwrap().first().unwrap().kind, KeyKind::Pgp);
    }

    #[test]
    fn key_files_that_hold_no_key_say_why() {
        for (text, why) in [
            ("{", "not JSON"),
            ("7", "neither"),
            ("[]", "no key"),
            (r#"[{"publickey":"age1x","type":"age"}]"#, "not a public key"),
            (
                r#"[{"publickey":"AGE-SECRET-KEY-1QPF2SQ062UDCWC2FCLQUKPPPT5QWW5A5KQYF8","type":"age"}]"#,
                "not a public",
            ),
            (r#"[{"publickey":"k","type":"kms"}]"#, "age and pgp"),
            (r#"[{"key":"k"}]"#, "neither"),
        ] {
            let error = parse_key_file(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn ssh_keys_lose_their_comment() {
        let key = Recipient::age("ssh-ed25519 AAAAC3Nz me@host").unwrap();
        assert_eq!(key.key, "ssh-ed25519 AAAAC3Nz");
        assert!(Recipient::age("ssh-ed25519").is_none());
        assert!(Recipient::age(&format!("{KEY} and more")).is_none());
    }

    #[test]
    fn a_sops_file_tells_its_recipients() {
        let file = format!(
            r#"{{"data":"ENC[..]","sops":{{"age":[{{"recipient":"{KEY}","enc":"x"}}],"pgp":[{{"fp":"AB"}}],
            "mac":"m"}}}}"#
        );
        let found = recipients_of(file.as_bytes()).unwrap();
        assert_eq!(found.iter().map(|key| key.kind).collect::<Vec<_>>(), [KeyKind::Pgp, KeyKind::Age]);
        assert_eq!(recipients_of(b"{}").unwrap_err(), SopsFileError::NotSops);
        assert!(matches!(recipients_of(b"hunter2").unwrap_err(), SopsFileError::Json(_)));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_without_its_contents() {
        let error = recipients_of(b"hunter2").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
