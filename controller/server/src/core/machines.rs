//! What operators do with machines (add, revoke, acknowledge an alarm), and when a machine was last seen.

use std::collections::BTreeSet;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::{AddMachine, MAX_ADDED, Readmit};

use super::audit::{AuditContext, NewEntry};
use super::change::{Change, Decided, Enrolled, Invited};
use super::rows::{Token, counters_go_on};

/// The minimum time between two updates of when a machine was last seen, in milliseconds.
const SEEN_APART_MS: i64 = 30_000;

/// What is stored of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored {
    pub has_key: bool,
    pub revoked_at: Option<UnixMillis>,
    pub clone_alarm_at: Option<UnixMillis>,
    pub seen_at: Option<UnixMillis>,
}

/// Why an operator's change to a machine is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineRefusal {
    #[error("a {class} machine does not build {system}: correct the class or the system")]
    WrongClass { class: Class, system: System },
    #[error("{0} is a security key: a machine's own key is a plain ed25519 key")]
    NotPlain(String),
    #[error("the token would already have expired: check your clock and make another")]
    TokenExpired,
    #[error(
        "there is no machine {0}: `muster machines list --all` shows those that are known, \
            `muster machines add {0}` adds it"
    )]
    Unknown(MachineName),
    #[error(
        "{0} is already enrolled: repeat with --replace if its key is to be revoked when the new token is \
            used"
    )]
    Enrolled(MachineName),
    #[error("another machine has the key of {0}: `muster machines list` shows which")]
    KeyTaken(MachineName),
    #[error("{0} is enrolled with another key: repeat with --replace if that key is to be revoked")]
    OtherKey(MachineName),
    #[error("{0} was revoked: enrol it anew with a token of `muster machines add {0}`")]
    Revoked(MachineName),
    #[error("this token exists already: make a new one")]
    TokenTaken,
    #[error("{0} is named twice: name each machine once")]
    Twice(MachineName),
    #[error("these are {0} machines: add from 1 to {MAX_ADDED} in one request")]
    Count(usize),
    #[error("there is no clone alarm for {0}: `muster machines show {0}` shows its state")]
    NoAlarm(MachineName),
}

/// Refuses a token that could enrol no machine.
pub fn require_usable(new: &AddMachine, now_s: i64) -> Result<(), MachineRefusal> {
    if new.system.class() != new.class {
        return Err(MachineRefusal::WrongClass { class: new.class, system: new.system.clone() });
    }
    if new.expires <= now_s { Err(MachineRefusal::TokenExpired) } else { Ok(()) }
}

/// Adds a machine, or a new token for one; an earlier unused token expires. A machine being replaced keeps
/// its key until the token is used.
pub fn add(
    stored: Option<&Stored>,
    token_taken: bool,
    new: &AddMachine,
    context: &AuditContext<'_>,
) -> Result<Decided<()>, MachineRefusal> {
    if token_taken {
        return Err(MachineRefusal::TokenTaken);
    }
    let machine = &new.machine;
    let invited = || Invited {
        machine: machine.clone(),
        class: new.class,
        system: new.system.clone(),
        tags: new.tags.clone(),
    };
    let enrolled = stored.is_some_and(|known| known.has_key && known.revoked_at.is_none());
    let change = match stored {
        None => Change::MachineAdded { machine: invited(), at: context.at },
        Some(_) if enrolled && !new.replace => return Err(MachineRefusal::Enrolled(machine.clone())),
        Some(_) if enrolled => Change::TagsReplaced { machine: machine.clone(), tags: new.tags.clone() },
        Some(_) => Change::MachineInvited(invited()),
    };
    let token = Token {
        id: new.token,
        machine: machine.clone(),
        class: new.class,
        check_key: new.check_key,
        expires: new.expires,
        made_at: context.at,
        used: None,
    };
    let detail = if new.replace { "a token that replaces it" } else { "a token" };
    let changes = vec![
        change,
        Change::TokensEnded { machine: machine.clone() },
        Change::TokenMade(token),
        Change::Audited(NewEntry::by(context, "machine-added", detail).on(machine)),
        Change::MachineChanged { machine: machine.clone() },
    ];
    Ok(Decided { changes, answer: () })
}

/// Refuses what is no list of different machines, each with a token of its own.
pub fn require_each_once(new: &[AddMachine]) -> Result<(), MachineRefusal> {
    if new.is_empty() || new.len() > MAX_ADDED {
        return Err(MachineRefusal::Count(new.len()));
    }
    let (mut names, mut tokens) = (BTreeSet::new(), BTreeSet::new());
    for one in new {
        if !names.insert(&one.machine) {
            return Err(MachineRefusal::Twice(one.machine.clone()));
        }
        if !tokens.insert(one.token) {
            return Err(MachineRefusal::TokenTaken);
        }
    }
    Ok(())
}

/// What is stored about one new machine, and whether its token exists already.
pub type StoredOfNew = (Option<Stored>, bool);

/// Adds many machines, all or none; `stored` is in the same order. See [`add`].
pub fn add_all(
    stored: &[StoredOfNew],
    new: &[AddMachine],
    context: &AuditContext<'_>,
) -> Result<Decided<()>, MachineRefusal> {
    require_each_once(new)?;
    let mut changes = Vec::with_capacity(5 * new.len());
    for ((known, taken), new) in stored.iter().zip(new) {
        changes.extend(add(known.as_ref(), *taken, new, context)?.changes);
    }
    Ok(Decided { changes, answer: () })
}

/// Admits a machine by the key that it has, which a lost database knew. It begins a new life here. One that
/// was revoked is not admitted.
pub fn readmit(
    stored: Option<&Stored>,
    taken: bool,
    machine: &MachineName,
    known: &Readmit,
    context: &AuditContext<'_>,
) -> Result<Decided<()>, MachineRefusal> {
    let Readmit { class, system, tags, key, replace } = known.clone();
    if system.class() != class {
        return Err(MachineRefusal::WrongClass { class, system });
    }
    if key.is_security_key() {
        return Err(MachineRefusal::NotPlain(key.short()));
    }
    if taken {
        return Err(MachineRefusal::KeyTaken(machine.clone()));
    }
    let invited = Invited { machine: machine.clone(), class, system: system.clone(), tags };
    let change = match stored {
        None => Change::MachineAdded { machine: invited, at: context.at },
        Some(Stored { revoked_at: Some(_), .. }) => return Err(MachineRefusal::Revoked(machine.clone())),
        Some(Stored { has_key: true, .. }) if !replace => {
            return Err(MachineRefusal::OtherKey(machine.clone()));
        }
        Some(_) => Change::MachineInvited(invited),
    };
    let (machine, at) = (machine.clone(), context.at);
    let (age, agent) = (String::new(), String::new());
    let enrolled = Enrolled { machine: machine.clone(), class, system, key, age, agent, at };
    let entry = NewEntry::by(context, "machine-readmitted", format!("with key {}", key.short()));
    let changes = vec![
        change,
        Change::TokensEnded { machine: machine.clone() },
        Change::Enrolled(Box::new(enrolled)),
        Change::BearersEnded { machine: machine.clone() },
        Change::CounterRaised { machine: Some(machine.clone()), to: counters_go_on(at) },
        Change::AttacksEnded { machine: machine.clone(), at },
        Change::Audited(entry.on(&machine)),
        Change::MachineChanged { machine },
    ];
    Ok(Decided { changes, answer: () })
}

/// Revokes a machine: its key, its bearers, and any token made for it.
pub fn revoke(
    stored: Option<&Stored>,
    machine: &MachineName,
    context: &AuditContext<'_>,
) -> Result<Decided<()>, MachineRefusal> {
    let stored = stored.ok_or_else(|| MachineRefusal::Unknown(machine.clone()))?;
    let at = stored.revoked_at.unwrap_or(context.at);
    let changes = vec![
        Change::MachineRevoked { machine: machine.clone(), at },
        Change::BearersEnded { machine: machine.clone() },
        Change::TokensEnded { machine: machine.clone() },
        Change::Audited(NewEntry::by(context, "machine-revoked", "").on(machine)),
        Change::MachineChanged { machine: machine.clone() },
    ];
    Ok(Decided { changes, answer: () })
}

/// Clears the clone alarm: an operator has explained it.
pub fn acknowledge(
    stored: Option<&Stored>,
    machine: &MachineName,
    context: &AuditContext<'_>,
) -> Result<Decided<()>, MachineRefusal> {
    let stored = stored.ok_or_else(|| MachineRefusal::Unknown(machine.clone()))?;
    if stored.clone_alarm_at.is_none() {
        return Err(MachineRefusal::NoAlarm(machine.clone()));
    }
    let changes = vec![
        Change::CloneAlarmEnded { machine: machine.clone() },
        Change::Audited(NewEntry::by(context, "clone-alarm-ended", "").on(machine)),
        Change::MachineChanged { machine: machine.clone() },
    ];
    Ok(Decided { changes, answer: () })
}

/// Whether it was last seen too long ago to leave it at that.
pub fn is_stale(seen_at: UnixMillis, now: UnixMillis) -> bool {
    seen_at < now.saturating_sub(SEEN_APART_MS)
}

/// Records that a machine is online, at most every half minute.
pub fn seen(stored: Option<&Stored>, machine: &MachineName, now: UnixMillis) -> Decided<()> {
    if !stored.is_some_and(|known| is_stale(known.seen_at.unwrap_or(0), now)) {
        return Decided::unchanged(());
    }
    Decided { changes: vec![Change::MachineSeen { machine: machine.clone(), at: now }], answer: () }
}

#[cfg(test)]
mod tests;
