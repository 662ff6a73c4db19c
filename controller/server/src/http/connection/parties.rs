//! What each party holds at the moment: connections and turns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::payer::Payer;

/// How many connections a machine or an operator may hold. Nix opens 25 for downloads unless configured
/// otherwise.
const OF_A_MACHINE: usize = 128;
const OF_AN_OPERATOR: usize = 512;
/// The same for all keys together that one operator has signed in. They never take anything from the
/// operator.
const OF_A_READER: usize = 32;
/// How many requests of a party are handled at once, database work included, and how many of its new
/// connections. The value for an address is configurable.
pub const TURNS: usize = 2;
/// When there are this many names, those that hold nothing are forgotten.
const FEW: usize = 1024;

#[derive(Debug)]
pub struct Party {
    /// Turns for its requests, and for its connections before their first request.
    pub requests: Arc<Semaphore>,
    pub arrivals: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

#[derive(Debug)]
struct Names {
    of: HashMap<Payer, Weak<Party>>,
    /// How many names are kept before those that hold nothing are forgotten.
    room: usize,
}

#[derive(Debug, Clone)]
pub struct Parties {
    names: Arc<Mutex<Names>>,
    of_an_address: usize,
    turns_of_an_address: usize,
}

impl Parties {
    /// `of_an_address`: how many unauthenticated connections of one address are read; 0 turns mean no limit.
    pub fn new(of_an_address: usize, turns_of_an_address: usize) -> Self {
        let names = Arc::new(Mutex::new(Names { of: HashMap::new(), room: FEW }));
        let turns_of_an_address = match turns_of_an_address {
            0 => Semaphore::MAX_PERMITS,
            turns => turns.min(Semaphore::MAX_PERMITS),
        };
        Self { names, of_an_address, turns_of_an_address }
    }

    pub fn of(&self, payer: &Payer) -> Arc<Party> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(party) = names.of.get(payer).and_then(Weak::upgrade) {
            return party;
        }
        if names.of.len() >= names.room {
            names.of.retain(|_, party| party.strong_count() > 0);
            names.room = FEW.max(2 * names.of.len());
        }
        let (most, turns) = match payer {
            Payer::Address(_) => (self.of_an_address, self.turns_of_an_address),
            Payer::Machine(_) => (OF_A_MACHINE, TURNS),
            Payer::Operator(_) => (OF_AN_OPERATOR, TURNS),
            Payer::Reader(_) => (OF_A_READER, TURNS),
        };
        let party = Arc::new(Party::new(most, turns));
        names.of.insert(payer.clone(), Arc::downgrade(&party));
        party
    }

    /// Starts a new count for this party. Existing connections keep counting for their holders only.
    pub fn forget(&self, payer: &Payer) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).of.remove(payer);
    }
}

impl Party {
    pub fn new(most: usize, turns: usize) -> Self {
        let permits = |many: usize| Arc::new(Semaphore::new(many.min(Semaphore::MAX_PERMITS)));
        Self { requests: permits(turns), arrivals: permits(turns), connections: permits(most) }
    }

    /// One more connection; `None` if it holds too many.
    pub fn connection(self: &Arc<Self>) -> Option<Held> {
        let counted = self.connections.clone().try_acquire_owned();
        counted.ok().map(|counted| Held { party: self.clone(), _counted: Some(counted) })
    }

    /// Waits until it may hold one more.
    pub async fn next_connection(self: &Arc<Self>) -> Held {
        // The semaphore is never closed.
        let counted = self.connections.clone().acquire_owned().await;
        Held { party: self.clone(), _counted: counted.ok() }
    }
}

/// A party's connection, counted until dropped.
#[derive(Debug)]
pub struct Held {
    party: Arc<Party>,
    _counted: Option<OwnedSemaphorePermit>,
}

impl Held {
    pub fn party(&self) -> &Arc<Party> {
        &self.party
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rates::Neighbourhood;

    fn address(text: &str) -> Payer {
        Payer::Address(Neighbourhood::of(text.parse().unwrap()))
    }

    #[test]
    fn each_party_holds_so_many_connections_and_others_do_not_count() {
        let parties = Parties::new(2, TURNS);
        let one = parties.of(&address("192.0.2.1"));
        let held = (one.connection().unwrap(), one.connection().unwrap());
        assert!(parties.of(&address("192.0.2.1")).connection().is_none());
        assert!(parties.of(&address("192.0.2.2")).connection().is_some());
        drop(held);
        assert!(one.connection().is_some());
        let machine = parties.of(&Payer::Machine("cinnabar".parse().unwrap()));
        let many: Vec<Held> = (0..OF_A_MACHINE).map_while(|_| machine.connection()).collect();
        assert_eq!((many.len(), machine.connection().is_none()), (OF_A_MACHINE, true));
    }

    #[test]
    fn whoever_held_a_machines_connections_under_an_older_key_keeps_nobody_out() {
        let parties = Parties::new(2, TURNS);
        let machine = Payer::Machine("cinnabar".parse().unwrap());
        let thief = parties.of(&machine);
        let many: Vec<Held> = (0..OF_A_MACHINE).map_while(|_| thief.connection()).collect();
        assert!(parties.of(&machine).connection().is_none());
        parties.forget(&machine);
        let enrolled = parties.of(&machine);
        assert!(enrolled.connection().is_some());
        drop(many);
        let own: Vec<Held> = (0..=OF_A_MACHINE).map_while(|_| enrolled.connection()).collect();
        assert_eq!(own.len(), OF_A_MACHINE, "what the thief gives back is not the machine's");
    }

    #[test]
    fn keys_that_were_signed_in_hold_few_connections_and_none_of_their_operators() {
        let parties = Parties::new(2, TURNS);
        let (operator, reader) = (parties.of(&Payer::Operator([1; 32])), parties.of(&Payer::Reader([1; 32])));
        let many: Vec<Held> = (0..OF_AN_OPERATOR).map_while(|_| reader.connection()).collect();
        assert_eq!(many.len(), OF_A_READER);
        let turns = reader.requests.clone().try_acquire_many_owned(TURNS as u32).unwrap();
        assert!(reader.requests.try_acquire().is_err());
        let own: Vec<Held> = (0..=OF_AN_OPERATOR).map_while(|_| operator.connection()).collect();
        assert_eq!(own.len(), OF_AN_OPERATOR);
        assert_eq!(operator.requests.available_permits(), TURNS);
        drop(turns);
    }

    #[test]
    fn the_turns_of_an_address_are_as_many_as_is_said_and_those_of_others_stay() {
        for (said, turns) in [(1, 1), (64, 64), (0, Semaphore::MAX_PERMITS)] {
            let parties = Parties::new(2, said);
            let proxy = parties.of(&address("192.0.2.1"));
            assert_eq!(proxy.requests.available_permits(), turns);
            assert_eq!(proxy.arrivals.available_permits(), turns);
            let machine = parties.of(&Payer::Machine("cinnabar".parse().unwrap()));
            assert_eq!(machine.requests.available_permits(), TURNS);
        }
    }

    #[test]
    fn nothing_is_kept_of_those_who_left() {
        let parties = Parties::new(2, TURNS);
        let stays = parties.of(&address("192.0.2.1"));
        for number in 0..10 * FEW as u32 {
            let address = std::net::Ipv4Addr::from_bits(number).into();
            parties.of(&Payer::Address(Neighbourhood::of(address)));
        }
        assert!(parties.names.lock().unwrap().of.len() <= FEW + 1);
        assert!(Arc::ptr_eq(&stays, &parties.of(&address("192.0.2.1"))));
    }
}
