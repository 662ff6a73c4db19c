//! One moment of controllers, machines and operators.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use muster_protocol::ids::{Generation, Sha256};

use super::cast::START_S;
use super::machine::{Content, Machine, Said, Sent};
use super::memory::Memory;
use super::stage::Budget;

/// What is stored, with the fingerprint that it has.
#[derive(Clone)]
pub struct Kept {
    pub memory: Memory,
    print: u128,
}

impl Kept {
    pub fn new(memory: Memory) -> Rc<Self> {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u8(salt);
            memory.hash(&mut hasher);
            u128::from(hasher.finish())
        };
        let print = half(1) << 64 | half(2);
        Rc::new(Self { memory, print })
    }
}

impl Hash for Kept {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.print.hash(state);
    }
}

/// What is on its way.
#[derive(Clone, Hash)]
pub enum Message {
    Enrolment {
        token: u8,
        key: u8,
    },
    CheckIn(Said),
    Report(Sent),
    /// With what was stored when its signatures were checked.
    Publication {
        content: Content,
        checked: Option<Rc<Kept>>,
    },
}

#[derive(Clone, Hash)]
pub struct World {
    pub kept: Rc<Kept>,
    pub backup: Option<Rc<Kept>>,
    pub machines: Vec<Machine>,
    /// The copy of the first machine's disk.
    pub disk: Option<Machine>,
    pub wire: Vec<Message>,
    pub hour: u8,
    /// Of the root in force.
    pub epoch: u8,
    pub left: Budget,
    pub seen: Seen,
}

/// What nobody keeps, and the properties need.
#[derive(Clone, Default, Hash)]
pub struct Seen {
    /// Everything that operators signed.
    pub signed: Vec<Content>,
    /// What was published with an answer, since the last restore.
    pub published: BTreeMap<(u8, Generation), Content>,
    /// The highest generation that each machine was pointed to, since the last restore.
    pub highest: BTreeMap<u8, Generation>,
    /// What came of each check-in, by its hash.
    pub replies: BTreeMap<Sha256, String>,
    /// The bearers in them, each with the key that was in force.
    pub bearers: BTreeMap<String, u8>,
    /// Which key each token was used by.
    pub tokens: BTreeMap<u8, u8>,
    pub revoked: bool,
    /// How much happened on each machine.
    pub told: BTreeMap<u8, u8>,
    /// Copies of the first machine that have said something of their own to a controller.
    pub spoke: BTreeSet<u8>,
    pub cloned: bool,
    pub acknowledged: bool,
    pub restored: bool,
    pub brought_back: bool,
    pub taken_over: bool,
    pub drafted: BTreeSet<u8>,
    pub asked: BTreeSet<Sha256>,
    pub violation: Option<String>,
}

impl World {
    pub fn violate(&mut self, what: impl Into<String>) {
        self.seen.violation.get_or_insert(what.into());
    }

    pub fn now(&self) -> i64 {
        (START_S + i64::from(self.hour) * 3600) * 1000
    }
}
