//! Names of generators, files, prompts, operators and groups: each is one path segment, checked when it is
//! made.

use std::fmt;
use std::str::FromStr;

use muster_protocol::ids::MachineName;

/// The longest name, in bytes: less than file systems allow.
const MAX_NAME: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error(
        "'{0}' is not a name for a generator, file or prompt: it must be one segment of a path that does not \
         begin with a dot"
    )]
    Var(String),
    #[error("'{0}' names no variable: write GENERATOR/FILE")]
    VarId(String),
    #[error(
        "'{0}' is not a name for an operator or group: 1 to 32 of a-z, 0-9, '_' and '-', beginning with a \
         letter or '_'"
    )]
    Member(String),
}

text_id!(
    /// A generator's, file's or prompt's name. Clan takes any attribute name; one that leads elsewhere is
    /// refused here.
    VarName,
    NameError::Var,
    is_segment
);
text_id!(
    /// An operator's or group's name (Clan's `user_name_type`).
    MemberName,
    NameError::Member,
    is_user_name
);

fn is_segment(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && !text.starts_with('.')
        && !text.contains(|c: char| c == '/' || c == '\\' || c.is_control())
}

fn is_user_name(text: &str) -> bool {
    let first = text.bytes().next();
    (1..=32).contains(&text.len())
        && first.is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
}

/// `GENERATOR/FILE`, as people write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VarId {
    pub generator: VarName,
    pub file: VarName,
}

impl FromStr for VarId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (generator, file) = text.split_once('/').ok_or_else(|| NameError::VarId(text.to_owned()))?;
        Ok(Self { generator: generator.parse()?, file: file.parse()? })
    }
}
impl fmt::Display for VarId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.generator, self.file)
    }
}

/// Where a generator's files belong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Made once, for all machines that declare it.
    Shared,
    Machine(MachineName),
}

/// One generator of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GeneratorId {
    pub place: Place,
    pub name: VarName,
}

impl fmt::Display for GeneratorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Shared => write!(f, "{} (shared)", self.name),
            Place::Machine(machine) => write!(f, "{} of {machine}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leads_out_of_its_folder() {
        for good in ["openssh", "ssh.id_ed25519-cert.pub", "wifi.fleet", "zerotier-ip-a-b", "a b", "@x:y"] {
            assert!(good.parse::<VarName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".validation-hash", "a/b", "a\nb", "a\\b", "\u{7}", &"x".repeat(201)] {
            assert!(bad.parse::<VarName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn operators_have_names_that_clan_takes() {
        for good in ["joerg", "_x", "a-1"] {
            assert!(good.parse::<MemberName>().is_ok(), "{good}");
        }
        for bad in ["", "Joerg", "1a", "a.b", "a/b", &"x".repeat(33)] {
            assert!(bad.parse::<MemberName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_variable_is_named_by_generator_and_file() {
        let id: VarId = "openssh/ssh.id_ed25519".parse().unwrap();
        assert_eq!(id.to_string(), "openssh/ssh.id_ed25519");
        for bad in ["openssh", "openssh/", "/x", "a/b/c", "../x"] {
            assert!(bad.parse::<VarId>().is_err(), "{bad}");
        }
    }
}
