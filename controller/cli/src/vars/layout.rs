//! Where everything is below the fleet's folder, as in Clan. Pure; every path is relative to that folder.
//!
//! ```text
//! vars/{per-machine/M,shared}/GENERATOR/FILE/value
//! vars/…/GENERATOR/FILE/secret
//! vars/…/GENERATOR/FILE/{machines,users,groups}/NAME  -> links into sops/
//! vars/…/GENERATOR/.validation-hash
//! sops/{machines,users}/NAME/key.json
//! sops/groups/GROUP/{machines,users}/NAME             -> links into sops/
//! sops/secrets/NAME/secret                            Clan's secrets that are no vars
//! ```

use std::fmt;
use std::path::{Component, Path, PathBuf};

use super::names::{GeneratorId, Place, VarName};

pub const VARS: &str = "vars";
pub const SOPS: &str = "sops";
pub const SHARED: &str = "shared";
pub const PER_MACHINE: &str = "per-machine";
pub const SECRET: &str = "secret";
pub const VALUE: &str = "value";
pub const KEY_FILE: &str = "key.json";
pub const VALIDATION_HASH: &str = ".validation-hash";

/// Whose keys a link refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Machine,
    User,
    Group,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Machine, Self::User, Self::Group];

    /// Its folder, in `sops/` and beside a secret.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Machine => "machines",
            Self::User => "users",
            Self::Group => "groups",
        }
    }
}
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "machine",
            Self::User => "operator",
            Self::Group => "group",
        })
    }
}

pub fn generator(id: &GeneratorId) -> PathBuf {
    let folder = Path::new(VARS);
    match &id.place {
        Place::Shared => folder.join(SHARED).join(id.name.as_str()),
        Place::Machine(machine) => folder.join(PER_MACHINE).join(machine.as_str()).join(id.name.as_str()),
    }
}

/// The folder of one file of a generator.
pub fn file(id: &GeneratorId, name: &VarName) -> PathBuf {
    generator(id).join(name.as_str())
}

pub fn validation_hash(id: &GeneratorId) -> PathBuf {
    generator(id).join(VALIDATION_HASH)
}

/// The folder of a machine, operator or group.
pub fn member(kind: Kind, name: &str) -> PathBuf {
    Path::new(SOPS).join(kind.folder()).join(name)
}

pub fn key_file(kind: Kind, name: &str) -> PathBuf {
    member(kind, name).join(KEY_FILE)
}

/// The private key that Clan made for a machine on an operator's computer. Muster makes none.
pub fn clans_machine_key(machine: &str) -> PathBuf {
    Path::new(SOPS).join("secrets").join(format!("{machine}-age.key"))
}

/// The link beside a secret (or in a group) that lets `name` read it.
pub fn link(secret: &Path, kind: Kind, name: &str) -> PathBuf {
    secret.join(kind.folder()).join(name)
}

/// The link's target: the shortest path from its folder to the member's.
pub fn link_target(secret: &Path, kind: Kind, name: &str) -> PathBuf {
    let depth = secret.join(kind.folder()).components().count();
    let (up, rest) = match secret.starts_with(SOPS) {
        true => (depth - 1, Path::new(kind.folder()).join(name)),
        false => (depth, member(kind, name)),
    };
    std::iter::repeat_n(Component::ParentDir, up).collect::<PathBuf>().join(rest)
}

/// For display: generator and file of a secret's folder, or its name in `sops/secrets`.
pub fn shown(secret: &Path) -> String {
    let parts: Vec<&str> = secret.iter().filter_map(|part| part.to_str()).collect();
    match parts.as_slice() {
        [VARS, SHARED, generator, file] => format!("{generator}/{file} (shared)"),
        [VARS, PER_MACHINE, machine, generator, file] => format!("{generator}/{file} of {machine}"),
        _ => secret.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(machine: Option<&str>, name: &str) -> GeneratorId {
        let place = machine.map_or(Place::Shared, |machine| Place::Machine(machine.parse().unwrap()));
        GeneratorId { place, name: name.parse().unwrap() }
    }

    #[test]
    fn links_are_as_clan_writes_them() {
        let own = file(&id(Some("cinnabar"), "openssh"), &"key".parse().unwrap());
        assert_eq!(own, Path::new("vars/per-machine/cinnabar/openssh/key"));
        assert_eq!(link(&own, Kind::Machine, "cinnabar"), own.join("machines/cinnabar"));
        assert_eq!(
            link_target(&own, Kind::Machine, "cinnabar"),
            Path::new("../../../../../../sops/machines/cinnabar")
        );
        let shared = file(&id(None, "ca"), &"key".parse().unwrap());
        assert_eq!(link_target(&shared, Kind::User, "joerg"), Path::new("../../../../../sops/users/joerg"));
        assert_eq!(
            link_target(&shared, Kind::Group, "admins"),
            Path::new("../../../../../sops/groups/admins")
        );
        let group = member(Kind::Group, "admins");
        assert_eq!(link_target(&group, Kind::User, "joerg"), Path::new("../../../users/joerg"));
        let plain = Path::new("sops/secrets/token");
        assert_eq!(link_target(plain, Kind::User, "joerg"), Path::new("../../../users/joerg"));
    }

    #[test]
    fn secrets_are_shown_by_name() {
        assert_eq!(shown(Path::new("vars/shared/ca/key")), "ca/key (shared)");
        assert_eq!(shown(Path::new("vars/per-machine/tin/openssh/key")), "openssh/key of tin");
        assert_eq!(shown(Path::new("sops/secrets/token")), "sops/secrets/token");
    }
}
