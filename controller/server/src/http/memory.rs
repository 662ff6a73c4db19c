//! The memory that bodies take while they arrive: charged per byte to the sender.
//!
//! Every unauthenticated address, machine and operator has a share. Half of all memory is reserved for
//! authenticated senders, so strangers together can never take it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use muster_protocol::draft::MAX_DRAFT_BYTES;

use super::payer::Payer;
use super::problem::Refused;

/// The fractions of the total that all strangers together, one address, one machine, one operator, and one
/// operator's signed-in keys may take.
const STRANGERS: usize = 2;
const ADDRESS: usize = 8;
const MACHINE: usize = 64;
const OPERATOR: usize = 4;
const READER: usize = 8;
/// A machine's share is at least this: twice its largest batch, since a buffer grows by doubling.
const LEAST_OF_A_MACHINE: usize = 2 * muster_protocol::report::MAX_BATCH_BYTES;

#[derive(Debug, Clone)]
pub struct Memory(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    all: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    strangers: usize,
    of: HashMap<Payer, usize>,
}

impl Memory {
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Pool { all: bytes, taken: Mutex::default() }))
    }

    /// Room for a body of which nothing has arrived yet.
    pub fn nothing(&self, payer: Payer) -> Held {
        Held { memory: self.clone(), payer, bytes: 0 }
    }

    fn share(&self, payer: &Payer) -> usize {
        match payer {
            Payer::Address(_) => self.0.all / ADDRESS,
            Payer::Machine(_) => (self.0.all / MACHINE).max(LEAST_OF_A_MACHINE),
            Payer::Operator(_) => (self.0.all / OPERATOR).max(MAX_DRAFT_BYTES),
            // A draft must fit beside the operator's own share, and leave something for machines.
            Payer::Reader(_) => (self.0.all / READER).max(MAX_DRAFT_BYTES.min(self.0.all / 4)),
        }
    }

    fn take(&self, payer: &Payer, more: usize) -> Result<(), Refused> {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.of.get(payer).copied().unwrap_or_default();
        let stranger = matches!(payer, Payer::Address(_));
        let busy = |message| Err(Refused::busy(message));
        if own + more > self.share(payer) {
            return busy("you are sending too much at once: repeat in a moment");
        }
        if taken.all + more > self.0.all || stranger && taken.strangers + more > self.0.all / STRANGERS {
            return busy("the controller is out of memory for requests: repeat in a moment");
        }
        taken.all += more;
        taken.strangers += if stranger { more } else { 0 };
        *taken.of.entry(payer.clone()).or_default() += more;
        Ok(())
    }

    fn give_back(&self, payer: &Payer, bytes: usize) {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(bytes);
        if matches!(payer, Payer::Address(_)) {
            taken.strangers = taken.strangers.saturating_sub(bytes);
        }
        if let Some(own) = taken.of.get_mut(payer) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                taken.of.remove(payer);
            }
        }
    }
}

/// What one body holds; released when dropped.
#[derive(Debug)]
pub struct Held {
    memory: Memory,
    payer: Payer,
    bytes: usize,
}

impl Held {
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), Refused> {
        let more = bytes.saturating_sub(self.bytes);
        self.memory.take(&self.payer, more)?;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.memory.give_back(&self.payer, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rates::Neighbourhood;

    const MIB: usize = 1024 * 1024;

    fn address(last: u8) -> Payer {
        Payer::Address(Neighbourhood::of(std::net::IpAddr::from([192, 0, 2, last])))
    }
    fn machine(name: &str) -> Payer {
        Payer::Machine(name.parse().unwrap())
    }
    fn held(memory: &Memory, payer: &Payer, bytes: usize) -> Result<Held, Refused> {
        let mut held = memory.nothing(payer.clone());
        held.grow_to(bytes).map(|()| held)
    }

    #[test]
    fn one_address_takes_its_share_and_the_others_have_theirs() {
        let memory = Memory::new(256 * MIB);
        let flood = held(&memory, &address(1), 32 * MIB).unwrap();
        assert!(held(&memory, &address(1), 1).is_err());
        held(&memory, &address(2), MIB).unwrap();
        drop(flood);
        held(&memory, &address(1), 32 * MIB).unwrap();
    }

    #[test]
    fn strangers_together_leave_half_for_those_who_proved_who_they_are() {
        let memory = Memory::new(256 * MIB);
        let floods: Vec<Held> =
            (1..=4).map(|last| held(&memory, &address(last), 32 * MIB).unwrap()).collect();
        assert!(held(&memory, &address(5), 1).is_err());
        held(&memory, &machine("cinnabar"), MIB).unwrap();
        held(&memory, &Payer::Operator([1; 32]), 64 * MIB).unwrap();
        drop(floods);
        let taken = memory.0.taken.lock().unwrap();
        assert!(taken.of.is_empty(), "nothing is kept of those who left");
        assert_eq!((taken.all, taken.strangers), (0, 0));
    }

    #[test]
    fn one_machine_takes_its_share_and_the_others_have_theirs() {
        let memory = Memory::new(256 * MIB);
        let _flood: Vec<Held> = (0..4).map(|_| held(&memory, &machine("cinnabar"), MIB).unwrap()).collect();
        assert!(held(&memory, &machine("cinnabar"), 1).is_err());
        held(&memory, &machine("stibnite"), 4 * MIB).unwrap();
    }
}
