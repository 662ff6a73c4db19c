//! Machines and operators that join, leave or change their key, and what that does to every secret. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use muster_protocol::ids::MachineName;

use super::change::{Change, Draft};
use super::generators::{File, Generator, Generators};
use super::keys::{Recipient, Recipients, key_file};
use super::layout::{self, Kind};
use super::names::MemberName;
use super::recipients::{Links, RecipientsError, settle, wanted_links};
use super::repository::{Member, Members, Secret, Snapshot};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    #[error(transparent)]
    Recipients(#[from] RecipientsError),
    #[error("there is no operator {0} in sops/users; there is {1}")]
    UnknownOperator(MemberName, String),
    #[error("there is no machine {0} in sops/machines, so it has no access that could end; there is {1}")]
    UnknownMachine(String, String),
    #[error(
        "the operator {0} has another key already: give --add to add this computer's beside it, or --replace \
         to put it in its place"
    )]
    OtherKey(MemberName),
    #[error("{0} is the only operator who reads {1}: let another one read it first")]
    LastOperator(MemberName, String),
}

/// A change of members, and the secrets that somebody can still read but no longer should: they need new
/// values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    pub draft: Draft,
    /// The folders of secrets.
    pub known_to_the_old: Vec<PathBuf>,
    /// The keys that are revoked.
    pub ended: Recipients,
}

/// The links that secrets should have according to the flake; links of undeclared secrets stay if they lead
/// to somebody.
pub struct Policy<'a> {
    /// By the folders of secrets.
    declared: BTreeMap<PathBuf, (&'a Generator, &'a File)>,
    snapshot: &'a Snapshot,
    members: &'a Members,
}

impl<'a> Policy<'a> {
    pub fn new(generators: &'a Generators, snapshot: &'a Snapshot, members: &'a Members) -> Self {
        let files = generators.all.values().flat_map(|generator| {
            generator
                .secrets()
                .map(move |(name, file)| (layout::file(&generator.id, name), (generator, file)))
        });
        Self { declared: files.collect(), snapshot, members }
    }

    /// Every existing secret, with the links that it should have.
    pub fn all(&self) -> Result<Vec<(&'a Path, &'a Secret, Links)>, RecipientsError> {
        let secrets = self.snapshot.secrets.iter();
        secrets.map(|(path, secret)| Ok((path.as_path(), secret, self.links(path)?))).collect()
    }

    /// The links that the secret in this folder should have.
    pub fn links(&self, path: &Path) -> Result<Links, RecipientsError> {
        let secret = self.snapshot.secrets.get(path);
        match self.declared.get(path) {
            Some((generator, file)) => wanted_links(self.members, generator, file, secret),
            None => Ok(secret.map(|secret| secret.living_links(self.members)).unwrap_or_default()),
        }
    }

    /// The changes that bring every secret for which `concerned` returns true to where it should be.
    pub fn settle(
        &self,
        concerned: impl Fn(&Path, &Secret, &Links) -> bool,
    ) -> Result<Draft, RecipientsError> {
        let mut draft = Draft::default();
        for (path, secret, links) in self.all()? {
            if concerned(path, secret, &links) {
                draft.extend(settle(self.snapshot, self.members, path, &links)?);
            }
        }
        Ok(draft)
    }
}

/// Whether a secret is, or was, for a member, by its own link or a group's.
fn concerns(member: &Member, members: &Members, secret: &Secret, links: &Links) -> bool {
    let groups: BTreeSet<&str> = members.groups_of(member).collect();
    let mut all = secret.links.keys().chain(links);
    all.any(|link| link == member || (link.0 == Kind::Group && groups.contains(link.1.as_str())))
}

/// The secrets that one of these keys can read.
fn readable(snapshot: &Snapshot, keys: &Recipients) -> Vec<PathBuf> {
    snapshot
        .secrets
        .iter()
        .filter(|(_, secret)| secret.recipients.as_ref().is_ok_and(|found| !found.is_disjoint(keys)))
        .map(|(path, _)| path.clone())
        .collect()
}

fn keys_of(members: &Members, member: &Member) -> Recipients {
    members.keys.get(member).and_then(|keys| keys.as_ref().ok()).cloned().unwrap_or_default()
}

/// A machine's key takes effect: its first, or one in place of an older one.
pub fn accept(
    snapshot: &Snapshot,
    generators: &Generators,
    machine: &MachineName,
    recipient: &Recipient,
    has_clans_key: bool,
) -> Result<Membership, MemberError> {
    let member = (Kind::Machine, machine.to_string());
    let new = Recipients::from([recipient.clone()]);
    let ended: Recipients = &keys_of(&snapshot.members, &member) - &new;
    let mut members = snapshot.members.clone();
    let known = members.keys.insert(member.clone(), Ok(new.clone()));
    let mut draft = Policy::new(generators, snapshot, &members)
        .settle(|_, secret, links| concerns(&member, &members, secret, links))?;
    if known != Some(Ok(new.clone())) {
        let path = layout::key_file(Kind::Machine, machine.as_str());
        draft.changes.push(Change::Write { path, contents: key_file(&new).into_bytes() });
    }
    // A private key in the repository would be one that left the machine.
    let clans = layout::clans_machine_key(machine.as_str());
    if has_clans_key {
        draft.changes.retain(|change| !change.path().starts_with(&clans));
        draft.rekeys.retain(|rekey| rekey.secret != clans);
        draft.changes.push(Change::RemoveTree { path: clans });
    }
    Ok(Membership { draft, known_to_the_old: readable(snapshot, &ended), ended })
}

/// A machine loses access to everything.
pub fn remove_machine(
    snapshot: &Snapshot,
    generators: &Generators,
    machine: &str,
    has_clans_key: bool,
) -> Result<Membership, MemberError> {
    let member = (Kind::Machine, machine.to_owned());
    let linked = snapshot.secrets.values().any(|secret| secret.links.contains_key(&member));
    let mut members = snapshot.members.clone();
    if members.keys.remove(&member).is_none() && !linked {
        return Err(MemberError::UnknownMachine(
            machine.to_owned(),
            listed(&snapshot.members, Kind::Machine),
        ));
    }
    let mut membership = leave(snapshot, generators, &member, &members)?;
    let clans = layout::clans_machine_key(machine);
    if has_clans_key {
        let draft = &mut membership.draft;
        draft.changes.retain(|change| !change.path().starts_with(&clans));
        draft.rekeys.retain(|rekey| rekey.secret != clans);
        draft.changes.push(Change::RemoveTree { path: clans });
    }
    Ok(membership)
}

/// An operator loses access to everything.
pub fn remove_operator(
    snapshot: &Snapshot,
    generators: &Generators,
    operator: &MemberName,
) -> Result<Membership, MemberError> {
    let member = (Kind::User, operator.to_string());
    let mut members = snapshot.members.clone();
    if members.keys.remove(&member).is_none() {
        return Err(MemberError::UnknownOperator(operator.clone(), listed(&snapshot.members, Kind::User)));
    }
    // A secret that only machines can read could never be changed again.
    let operators = |links: &Links| {
        let people = links.iter().filter(|(kind, _)| *kind != Kind::Machine).cloned();
        members.recipients(&people.collect())
    };
    let policy = Policy::new(generators, snapshot, &members);
    for (path, secret, links) in policy.all()? {
        if concerns(&member, &snapshot.members, secret, &links) && operators(&links)?.is_empty() {
            return Err(MemberError::LastOperator(operator.clone(), layout::shown(path)));
        }
    }
    leave(snapshot, generators, &member, &members)
}

/// Removes a member's folder, group memberships and links.
fn leave(
    snapshot: &Snapshot,
    generators: &Generators,
    member: &Member,
    members: &Members,
) -> Result<Membership, MemberError> {
    let (kind, name) = member;
    let keys = keys_of(&snapshot.members, member);
    // Another operator may have the same key; then it stays valid.
    let others = members.keys.values().filter_map(|keys| keys.as_ref().ok());
    let ended: Recipients = others.fold(keys, |keys, other| &keys - other);
    let mut draft = Policy::new(generators, snapshot, members)
        .settle(|_, secret, links| concerns(member, &snapshot.members, secret, links))?;
    if snapshot.members.keys.contains_key(member) {
        draft.changes.push(Change::RemoveTree { path: layout::member(*kind, name) });
    }
    for group in snapshot.members.groups_of(member) {
        let path = layout::link(&layout::member(Kind::Group, group), *kind, name);
        draft.changes.push(Change::Remove { path });
    }
    Ok(Membership { draft, known_to_the_old: readable(snapshot, &ended), ended })
}

/// How a new key relates to the operator's existing ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joining {
    New,
    Add,
    Replace,
}

/// An operator's keys, and the group that they join. Secrets follow when somebody who can read them runs
/// `fix`.
pub fn register(
    snapshot: &Snapshot,
    operator: &MemberName,
    keys: &Recipients,
    joining: Joining,
    group: Option<&MemberName>,
) -> Result<Draft, MemberError> {
    let member = (Kind::User, operator.to_string());
    let mut draft = Draft::default();
    let known = snapshot.members.keys.get(&member);
    let wanted = match (known, joining) {
        (None, _) | (Some(_), Joining::Replace) | (Some(Err(_)), _) => keys.clone(),
        (Some(Ok(known)), Joining::Add) => known | keys,
        (Some(Ok(known)), Joining::New) if keys.is_subset(known) => known.clone(),
        (Some(Ok(_)), Joining::New) => return Err(MemberError::OtherKey(operator.clone())),
    };
    if known != Some(&Ok(wanted.clone())) {
        let path = layout::key_file(Kind::User, operator.as_str());
        draft.changes.push(Change::Write { path, contents: key_file(&wanted).into_bytes() });
    }
    if let Some(group) = group
        && !snapshot.members.groups.get(group.as_str()).is_some_and(|members| members.contains(&member))
    {
        let folder = layout::member(Kind::Group, group.as_str());
        draft.changes.push(Change::Link {
            path: layout::link(&folder, Kind::User, operator.as_str()),
            target: layout::link_target(&folder, Kind::User, operator.as_str()),
        });
    }
    Ok(draft)
}

/// Lets `operator` read every secret for which `concerned` returns true and that one of `mine` can read.
pub fn add_operator(
    snapshot: &Snapshot,
    generators: &Generators,
    operator: &MemberName,
    mine: &Recipients,
    concerned: impl Fn(&Path) -> bool,
) -> Result<Draft, MemberError> {
    let member = (Kind::User, operator.to_string());
    if !snapshot.members.keys.contains_key(&member) {
        return Err(MemberError::UnknownOperator(operator.clone(), listed(&snapshot.members, Kind::User)));
    }
    let mut draft = Draft::default();
    for (path, secret, mut links) in Policy::new(generators, snapshot, &snapshot.members).all()? {
        let readable = secret.recipients.as_ref().is_ok_and(|found| !found.is_disjoint(mine));
        if concerned(path) && readable {
            links.insert(member.clone());
            draft.extend(settle(snapshot, &snapshot.members, path, &links)?);
        }
    }
    Ok(draft)
}

/// Removes from a draft the secrets that nobody with these keys can change, and returns them.
pub fn leave_to_others(snapshot: &Snapshot, mine: &Recipients, draft: &mut Draft) -> Vec<PathBuf> {
    let readable: BTreeSet<PathBuf> = readable(snapshot, mine).into_iter().collect();
    let left: Vec<PathBuf> = draft
        .rekeys
        .iter()
        .map(|rekey| rekey.secret.clone())
        .filter(|secret| !readable.contains(secret))
        .collect();
    draft.rekeys.retain(|rekey| !left.contains(&rekey.secret));
    draft.changes.retain(|change| !left.iter().any(|secret| change.path().starts_with(secret)));
    left
}

fn listed(members: &Members, kind: Kind) -> String {
    let names: Vec<&str> =
        members.keys.keys().filter(|member| member.0 == kind).map(|(_, name)| name.as_str()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests;
