//! Who may read a secret: what its links say, what the flake wants, and what sops wrote. Pure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use muster_protocol::ids::MachineName;

use super::change::{Change, Draft, Rekey};
use super::generators::{File, Generator};
use super::keys::{KeyFileError, Recipient, Recipients, SopsFileError};
use super::layout::{self, Kind};
use super::repository::{Member, Members, Secret, Snapshot};

/// The links that belong beside a secret.
pub type Links = BTreeSet<Member>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecipientsError {
    #[error("the key of the {kind} {name} cannot be used: {}: \
         {source}", layout::key_file(*kind, name).display())]
    Key { kind: Kind, name: String, source: KeyFileError },
    #[error("{}: {source}; bring it back from git, or make it again", secret.join(layout::SECRET).display())]
    Damaged { secret: PathBuf, source: SopsFileError },
    #[error("nobody could read {} any more: let an operator read it first, or take it \
         away", layout::shown(.0))]
    Nobody(PathBuf),
    #[error(
        "new secrets are to be encrypted to the group {0}, which has no members: add them in \
         sops/groups/{0}, or take the group away"
    )]
    EmptyGroup(String),
}

impl Members {
    pub fn has(&self, member: &Member) -> bool {
        match member.0 {
            Kind::Group => self.groups.contains_key(&member.1),
            Kind::Machine | Kind::User => self.keys.contains_key(member),
        }
    }

    fn keys_of(&self, member: &Member) -> Result<Recipients, RecipientsError> {
        match (&member.0, self.keys.get(member)) {
            (Kind::Group, _) => {
                let members = self.groups.get(&member.1).into_iter().flatten();
                members.map(|member| self.keys_of(member)).try_fold(Recipients::new(), |mut all, keys| {
                    all.extend(keys?);
                    Ok(all)
                })
            }
            (_, None) => Ok(Recipients::new()),
            (_, Some(Ok(keys))) => Ok(keys.clone()),
            (kind, Some(Err(source))) => {
                Err(RecipientsError::Key { kind: *kind, name: member.1.clone(), source: source.clone() })
            }
        }
    }

    /// The recipients that these links name.
    pub fn recipients(&self, links: &Links) -> Result<Recipients, RecipientsError> {
        let mut all = Recipients::new();
        for member in links {
            all.extend(self.keys_of(member)?);
        }
        Ok(all)
    }

    /// The owner of a key, for display: names if known, otherwise the key.
    pub fn owner(&self, recipient: &Recipient) -> String {
        let owners: Vec<&str> = self
            .keys
            .iter()
            .filter(|(_, keys)| keys.as_ref().is_ok_and(|keys| keys.contains(recipient)))
            .map(|((_, name), _)| name.as_str())
            .collect();
        if owners.is_empty() { recipient.to_string() } else { owners.join("=") }
    }

    /// The operators who have one of these keys, by name.
    pub fn operators_with<'a>(&'a self, keys: &'a Recipients) -> impl Iterator<Item = &'a str> {
        self.keys
            .iter()
            .filter(|((kind, _), theirs)| {
                *kind == Kind::User && theirs.as_ref().is_ok_and(|theirs| !theirs.is_disjoint(keys))
            })
            .map(|((_, name), _)| name.as_str())
    }

    /// The groups that a machine or operator is in.
    pub fn groups_of<'a>(&'a self, member: &'a Member) -> impl Iterator<Item = &'a str> {
        self.groups
            .iter()
            .filter(move |(_, members)| members.contains(member))
            .map(|(group, _)| group.as_str())
    }
}

impl Secret {
    /// The links that lead to somebody.
    pub fn living_links(&self, members: &Members) -> Links {
        self.links.keys().filter(|member| members.has(member)).cloned().collect()
    }
}

/// The links that a generator's secret should have. Operators and groups stay, if they exist; machines are
/// those that the flake lets read it and that have a key. Links with names that Muster cannot use are left
/// alone.
pub fn wanted_links(
    members: &Members,
    generator: &Generator,
    file: &File,
    secret: Option<&Secret>,
) -> Result<Links, RecipientsError> {
    let mut links: Links = secret.map(|secret| secret.living_links(members)).unwrap_or_default();
    links.retain(|(kind, name)| *kind != Kind::Machine || name.parse::<MachineName>().is_err());
    for reader in &file.readers {
        let member = (Kind::Machine, reader.to_string());
        if members.has(&member) {
            links.insert(member);
        }
    }
    for group in &generator.groups {
        if members.groups.get(group).is_none_or(BTreeSet::is_empty) {
            return Err(RecipientsError::EmptyGroup(group.clone()));
        }
        links.insert((Kind::Group, group.clone()));
    }
    Ok(links)
}

/// The changes that bring a folder of members to these links.
pub fn relink(secret: &Path, now: &Secret, wanted: &Links) -> Vec<Change> {
    let mut changes = Vec::new();
    for (kind, name) in wanted {
        let target = layout::link_target(secret, *kind, name);
        if now.links.get(&(*kind, name.clone())) != Some(&target) {
            changes.push(Change::Link { path: layout::link(secret, *kind, name), target });
        }
    }
    for (kind, name) in now.links.keys().filter(|member| !wanted.contains(*member)) {
        changes.push(Change::Remove { path: layout::link(secret, *kind, name) });
    }
    changes
}

/// The changes that bring one secret to these links, encrypted to exactly whom they name.
pub fn settle(
    snapshot: &Snapshot,
    members: &Members,
    secret: &Path,
    wanted: &Links,
) -> Result<Draft, RecipientsError> {
    let Some(now) = snapshot.secrets.get(secret) else { return Ok(Draft::default()) };
    let mut draft = Draft { changes: relink(secret, now, wanted), rekeys: Vec::new() };
    let damaged = |source: &SopsFileError| RecipientsError::Damaged {
        secret: secret.to_owned(),
        source: source.clone(),
    };
    let current = now.recipients.as_ref().map_err(damaged)?;
    let recipients = members.recipients(wanted)?;
    if recipients.is_empty() {
        return Err(RecipientsError::Nobody(secret.to_owned()));
    }
    if *current != recipients {
        draft.rekeys.push(Rekey {
            secret: secret.to_owned(),
            gains: recipients.difference(current).map(|key| members.owner(key)).collect(),
            // Those who lose access are known by their old names.
            loses: current.difference(&recipients).map(|key| snapshot.members.owner(key)).collect(),
            recipients,
        });
    }
    Ok(draft)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    pub fn key(letter: &str) -> Recipient {
        Recipient::age(&format!("age1{}", letter.repeat(12))).unwrap()
    }
    pub fn members(all: &[(Kind, &str, &str)]) -> Members {
        let keys = all
            .iter()
            .map(|(kind, name, letter)| ((*kind, (*name).to_owned()), Ok(Recipients::from([key(letter)]))));
        Members { keys: keys.collect(), groups: BTreeMap::new() }
    }
    /// A secret with the links of these members, encrypted to these keys.
    pub fn secret(folder: &str, links: &[(Kind, &str)], keys: &[&str]) -> (PathBuf, Secret) {
        let path = PathBuf::from(folder);
        let links = links
            .iter()
            .map(|(kind, name)| ((*kind, (*name).to_owned()), layout::link_target(&path, *kind, name)));
        let secret = Secret {
            links: links.collect(),
            recipients: Ok(keys.iter().map(|letter| key(letter)).collect()),
        };
        (path, secret)
    }

    #[test]
    fn everybody_whom_links_and_groups_name_is_a_recipient() {
        let mut all =
            members(&[(Kind::User, "joe", "a"), (Kind::User, "eve", "b"), (Kind::Machine, "tin", "c")]);
        all.groups.insert(
            "admins".into(),
            BTreeSet::from([(Kind::User, "eve".into()), (Kind::User, "gone".into())]),
        );
        let links = Links::from([
            (Kind::Machine, "tin".into()),
            (Kind::Group, "admins".into()),
            (Kind::User, "nobody".into()),
        ]);
        assert_eq!(all.recipients(&links).unwrap(), Recipients::from([key("b"), key("c")]));
        assert_eq!(all.owner(&key("b")), "eve");
        assert_eq!(all.operators_with(&Recipients::from([key("a")])).collect::<Vec<_>>(), ["joe"]);
    }

    #[test]
    fn a_secret_that_is_as_it_should_be_is_left_alone() {
        let all = members(&[(Kind::User, "joe", "a"), (Kind::Machine, "tin", "c")]);
        let (path, it) =
            secret("vars/shared/x/y", &[(Kind::User, "joe"), (Kind::Machine, "tin")], &["a", "c"]);
        let links = it.living_links(&all);
        let snapshot = Snapshot {
            members: all.clone(),
            secrets: BTreeMap::from([(path.clone(), it)]),
            ..Default::default()
        };
        assert!(settle(&snapshot, &all, &path, &links).unwrap().is_empty());
    }

    #[test]
    fn links_that_lead_nowhere_or_elsewhere_are_mended_and_keys_follow() {
        let all = members(&[(Kind::User, "joe", "a"), (Kind::Machine, "tin", "c")]);
        let (path, mut it) = secret(
            "vars/shared/x/y",
            &[(Kind::User, "joe"), (Kind::User, "gone"), (Kind::Machine, "tin")],
            &["a", "b"],
        );
        it.links.insert((Kind::Machine, "tin".into()), "../../mallory".into());
        let links = it.living_links(&all);
        let snapshot = Snapshot {
            members: all.clone(),
            secrets: BTreeMap::from([(path.clone(), it)]),
            ..Default::default()
        };
        let draft = settle(&snapshot, &all, &path, &links).unwrap();
        assert_eq!(
            draft.lines(),
            [
                "L vars/shared/x/y/machines/tin -> ../../../../../sops/machines/tin".to_owned(),
                format!("R vars/shared/x/y/secret  +tin  -{}", key("b")),
                "D vars/shared/x/y/users/gone".to_owned(),
            ]
        );
    }

    #[test]
    fn a_secret_is_never_left_to_nobody_and_damage_is_told() {
        let all = members(&[(Kind::User, "joe", "a")]);
        let (path, mut it) = secret("vars/shared/x/y", &[(Kind::User, "joe")], &["a"]);
        let snapshot = |it: &Secret| Snapshot {
            members: all.clone(),
            secrets: BTreeMap::from([(path.clone(), it.clone())]),
            ..Default::default()
        };
        let error = settle(&snapshot(&it), &all, &path, &Links::new()).unwrap_err();
        assert_eq!(error, RecipientsError::Nobody(path.clone()));
        it.recipients = Err(SopsFileError::NotSops);
        let error = settle(&snapshot(&it), &all, &path, &it.living_links(&all)).unwrap_err();
        assert!(
            error.to_string().starts_with("vars/shared/x/y/secret: it has no part that sops wrote;"),
            "{error}"
        );
        let mut broken = all.clone();
        broken.keys.insert((Kind::User, "joe".into()), Err(KeyFileError::Empty));
        let error = broken.recipients(&Links::from([(Kind::User, "joe".into())])).unwrap_err();
        assert!(error.to_string().contains("sops/users/joe/key.json"), "{error}");
    }
}
