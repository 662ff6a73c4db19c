//! What one exploration of a rollout is about: its plans, who runs the controller, and how much may happen.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;
use muster_protocol::plan::{Gate, Voucher};
use muster_protocol::target::Target;

use super::desk::{Ask, Desk, Ruling};
use super::guard::Break;
use super::machine::{Kind, Lot, Machine, Move};
use super::plans::{MOST, Outline, Planned, key_of, names};
use crate::server::Cast;

/// How often each thing may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    /// Lost, late and repeated messages, machines that sleep or reboot, and controllers that are slow.
    pub faults: u8,
    /// Switches that fail.
    pub failures: u8,
    /// Systems that somebody else changes, that fall ill, or that somebody goes back from.
    pub troubles: u8,
    /// Machines that change their key, or are replaced.
    pub keys: u8,
    /// What operators ask: a stop, a pause, the brake.
    pub asks: u8,
    /// Machines that operators ask to try again.
    pub retries: u8,
    /// Second generations.
    pub publications: u8,
}

/// What is computed once for each thing that it depends on.
#[derive(Default)]
pub struct Known {
    pub moves: Table<(u8, Machine, Move), Machine>,
    pub steps: Table<(u8, Machine), Kind>,
    pub rulings: Table<(Desk, u8, Option<Ask>), Ruling>,
    pub gates: Table<(u8, u8, Lot, u32), Gate>,
}

pub type Table<K, V> = RefCell<HashMap<K, V>>;

/// Looks something up, or works it out.
pub fn once<K: Hash + Eq, V: Clone>(table: &Table<K, V>, key: K, work: impl FnOnce() -> V) -> V {
    if let Some(known) = table.borrow().get(&key) {
        return known.clone();
    }
    let new = work();
    table.borrow_mut().insert(key, new.clone());
    new
}

pub struct Stage {
    pub name: &'static str,
    pub cast: Rc<Cast>,
    pub names: Vec<MachineName>,
    pub outlines: &'static [Outline],
    /// By generation, from 1 on.
    pub plans: Vec<Planned>,
    /// How many machines there are.
    pub machines: usize,
    /// Somebody else has the controller, and the keys of these machines.
    pub thief: bool,
    pub stolen: &'static [u8],
    pub may: Budget,
    /// After how many ticks of silence a machine counts as away.
    pub patience: u8,
    /// Whether good ends are reported, too, and not seen in check-ins alone.
    pub reports: bool,
    pub broken: Option<Break>,
    pub known: Known,
}

impl Stage {
    pub fn new(
        name: &'static str,
        cast: &Rc<Cast>,
        outlines: &'static [Outline],
        may: Budget,
    ) -> Option<Self> {
        let names = names()?;
        let plans =
            (1_u8..).zip(outlines).map(|(number, outline)| Planned::new(outline, number, cast, &names));
        let plans: Vec<Planned> = plans.collect::<Option<_>>()?;
        let machines =
            plans.first()?.plan.waves.iter().map(|wave| wave.members.len()).sum::<usize>().min(MOST);
        let (thief, stolen, broken, known) = (false, &[][..], None, Known::default());
        let (patience, reports) = (1, false);
        let cast = cast.clone();
        Some(Self {
            name,
            cast,
            names,
            outlines,
            plans,
            machines,
            thief,
            stolen,
            may,
            patience,
            reports,
            broken,
            known,
        })
    }

    pub fn breaks(&self, guard: Break) -> bool {
        self.broken == Some(guard)
    }

    /// The plan of a generation; none for 0, which is what ran before.
    pub fn plan(&self, generation: u8) -> Option<&Planned> {
        self.plans.get(usize::from(generation).checked_sub(1)?)
    }

    pub fn outline(&self, generation: u8) -> Option<&Outline> {
        self.outlines.get(usize::from(generation).checked_sub(1)?)
    }

    pub fn target(&self, generation: u8, who: usize) -> Option<&Target> {
        self.plan(generation)?.targets.get(who)?.as_ref()
    }

    /// What a machine runs, by the number of the system: 0 is what ran before.
    pub fn system(&self, generation: u8) -> u8 {
        self.outline(generation).map_or(0, |outline| outline.system)
    }

    pub fn number(&self, name: &MachineName) -> usize {
        self.names.iter().position(|other| other == name).unwrap_or(MOST)
    }

    /// Its wave in the plan of a generation.
    pub fn wave(&self, generation: u8, who: usize) -> Option<usize> {
        let number = u8::try_from(who).ok()?;
        self.outline(generation)?.waves.iter().position(|rank| rank.machines.contains(&number))
    }

    pub fn voucher(&self, generation: u8, who: usize) -> Option<&Voucher> {
        self.plan(generation)?.plan.voucher(self.names.get(who)?)
    }

    pub fn key(&self, who: usize, key: super::plans::Key) -> PublicKey {
        self.cast.key(key_of(who, key))
    }

    pub fn everyone(&self) -> std::ops::Range<usize> {
        0..self.machines
    }
}
