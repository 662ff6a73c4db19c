//! The peer of a connection, and whom the connection counts against.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::arrival::Arrival;
use super::parties::{Held, Parties, Party};
use super::seats::Seat;
use crate::http::payer::Payer;

/// The other end of a connection.
#[derive(Debug)]
pub struct Peer {
    pub source: SocketAddr,
    parties: Parties,
    address_party: Arc<Party>,
    counts: Mutex<Counts>,
    arrival: Arc<Arrival>,
    seat: Arc<Seat>,
    /// Whether its request waits for news.
    waits: AtomicBool,
}

/// Whom a connection counts against.
#[derive(Debug)]
enum Counts {
    /// Its address: nobody has authenticated over it yet, or it is a proxy's, which forwards many senders.
    Address {
        shared: bool,
        _held: Held,
    },
    One(Payer, Held),
}

/// The result of an authentication.
pub struct Proved {
    pub party: Arc<Party>,
    /// Whether they are within their limit of connections.
    pub within: bool,
    /// On a proxy's connection: counts as one of their connections for the duration of the request.
    pub request: Option<Held>,
}

impl Peer {
    /// `held` is its connection, counted against its address.
    pub fn new(
        source: SocketAddr,
        parties: Parties,
        address: Arc<Party>,
        held: Held,
        seat: Arc<Seat>,
    ) -> Self {
        let counts = Mutex::new(Counts::Address { shared: false, _held: held });
        let (arrival, waits) = (Arc::default(), AtomicBool::new(false));
        Self { source, parties, address_party: address, counts, arrival, seat, waits }
    }

    pub fn address(&self) -> IpAddr {
        self.source.ip()
    }

    /// Whether its first request has arrived, and the turn of what precedes it.
    pub fn arrival(&self) -> &Arc<Arrival> {
        &self.arrival
    }

    /// Its connection's seat, which it keeps once it has proved whose it is.
    pub fn seat(&self) -> Arc<Seat> {
        self.seat.clone()
    }

    /// Whether its request waits for news, for up to a minute.
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Its request waits for news until the value is dropped.
    pub fn waiting(self: Arc<Self>) -> Waiting {
        self.waits.store(true, Ordering::Relaxed);
        Waiting(self)
    }

    /// The turns for what arrives from its address before a first request.
    pub fn arrivals(&self) -> Arc<Semaphore> {
        self.address_party.arrivals.clone()
    }

    /// The queue in which its requests wait, as far as is known.
    pub fn party(&self) -> Arc<Party> {
        match &*self.counts.lock().unwrap_or_else(PoisonError::into_inner) {
            Counts::One(_, held) => held.party().clone(),
            Counts::Address { .. } => self.address_party.clone(),
        }
    }

    /// This machine's existing connections no longer count as its own: another key is in force.
    pub fn forget(&self, who: &Payer) {
        self.parties.forget(who);
    }

    /// The sender is a machine or an operator: its connection now counts against them instead of its address,
    /// until someone else authenticates over it.
    pub fn proved(&self, who: &Payer) -> Proved {
        let party = self.parties.of(who);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *counts {
            Counts::One(known, _) if known == who => Proved { party, within: true, request: None },
            Counts::Address { shared: false, .. } => {
                let held = party.connection();
                let within = held.is_some();
                if let Some(held) = held {
                    *counts = Counts::One(who.clone(), held);
                    self.seat.prove();
                }
                Proved { party, within, request: None }
            }
            // An operator may alternate between a signed-in key for reading and their own key for signing.
            Counts::One(known, _) if known.is_same_person(who) => {
                let held = party.connection();
                let within = held.is_some();
                if let Some(held) = held {
                    *counts = Counts::One(who.clone(), held);
                }
                Proved { party, within, request: None }
            }
            Counts::One(_, first) => {
                let held = self.address_party.connection().or_else(|| first.party().connection());
                if let Some(_held) = held {
                    *counts = Counts::Address { shared: true, _held };
                }
                by_request(party)
            }
            Counts::Address { .. } => by_request(party),
        }
    }
}

/// A request that waits for news.
pub struct Waiting(Arc<Peer>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waits.store(false, Ordering::Relaxed);
    }
}

fn by_request(party: Arc<Party>) -> Proved {
    let request = party.connection();
    Proved { party, within: request.is_some(), request }
}

#[cfg(test)]
mod tests {
    use super::super::parties::TURNS;
    use super::super::seats::Seats;
    use super::*;
    use crate::rates::Neighbourhood;

    /// Peers of a controller that allows an address this many connections.
    fn from(parties: &Parties, text: &str) -> Option<Peer> {
        let source = SocketAddr::new(text.parse().unwrap(), 1);
        let address = parties.of(&Payer::Address(Neighbourhood::of(source.ip())));
        let held = address.connection()?;
        let seat = Seats::new(1, 1).take(Neighbourhood::of(source.ip())).unwrap();
        Some(Peer::new(source, parties.clone(), address, held, Arc::new(seat)))
    }
    fn machine(name: &str) -> Payer {
        Payer::Machine(name.parse().unwrap())
    }
    fn begins(peer: &Peer, parties: &Parties, who: &Payer) -> bool {
        Arc::ptr_eq(&peer.party(), &parties.of(who))
    }

    #[test]
    fn only_peers_that_proved_nothing_count_against_their_address() {
        let parties = Parties::new(2, TURNS);
        let from = |text| from(&parties, text);
        let machine = machine("cinnabar");
        let (first, second) = (from("192.0.2.1").unwrap(), from("192.0.2.1").unwrap());
        assert!(from("192.0.2.1").is_none());
        let other = from("192.0.2.2").unwrap();
        assert!(first.proved(&machine).within && first.proved(&machine).within);
        let third = from("192.0.2.1").unwrap();
        drop(first);
        assert!(from("192.0.2.1").is_none(), "what was proved is not counted down twice");
        drop((second, third, other));
        assert!(from("192.0.2.1").is_some());
    }

    #[test]
    fn connections_of_a_machine_are_counted_as_its_own_wherever_they_come_from() {
        let parties = Parties::new(1000, TURNS);
        let who = machine("cinnabar");
        let from = |number: usize| {
            let address = if number.is_multiple_of(2) { "192.0.2.1" } else { "192.0.2.2" };
            from(&parties, address).unwrap()
        };
        let held: Vec<Peer> = (0..200).map(from).collect();
        let within = held.iter().filter(|peer| peer.proved(&who).within).count();
        assert!((100..200).contains(&within), "{within}");
        let other = from(0);
        assert!(begins(&held[0], &parties, &who));
        assert!(other.proved(&machine("stibnite")).within);
        drop(held);
        assert!(from(1).proved(&who).within, "what is closed is given back");
    }

    #[test]
    fn a_proxys_connection_is_nobodys_once_a_second_one_asks_over_it() {
        let parties = Parties::new(1000, TURNS);
        let (who, next) = (machine("cinnabar"), machine("blackphos"));
        let address = Payer::Address(Neighbourhood::of("192.0.2.1".parse().unwrap()));
        let open = || from(&parties, "192.0.2.1").unwrap();
        let mut shared = Vec::new();
        // More than a machine may hold, each used by it first.
        for number in 0..300 {
            let peer = open();
            assert!(peer.proved(&who).within, "{number}");
            assert!(begins(&peer, &parties, &who));
            assert!(peer.proved(&next).within, "{number}");
            assert!(begins(&peer, &parties, &address), "nobody in particular");
            shared.push(peer);
        }
        // On a proxy's connection each request counts while it lasts.
        let asking: Vec<Proved> = shared.iter().map(|peer| peer.proved(&who)).collect();
        let within = asking.iter().filter(|proved| proved.within).count();
        assert!((100..200).contains(&within), "{within}");
        assert!(shared[0].proved(&next).within);
        drop(asking);
        assert!(shared[0].proved(&who).within);
    }

    #[test]
    fn where_an_address_is_full_a_shared_connection_counts_as_the_first_ones() {
        let parties = Parties::new(1, TURNS);
        let (who, next) = (machine("cinnabar"), machine("blackphos"));
        let first = from(&parties, "192.0.2.1").unwrap();
        assert!(first.proved(&who).within);
        let stranger = from(&parties, "192.0.2.1").unwrap();
        assert!(first.proved(&next).within);
        drop(first);
        assert!(from(&parties, "192.0.2.1").is_none());
        drop(stranger);
        assert!(from(&parties, "192.0.2.1").is_some());
    }

    #[test]
    fn a_machine_without_a_known_connection_has_one_line_for_all_it_asks_at_once() {
        let parties = Parties::new(1000, TURNS);
        let shared = from(&parties, "192.0.2.1").unwrap();
        let (who, next) = (machine("cinnabar"), machine("blackphos"));
        let _ = (shared.proved(&next), shared.proved(&who));
        let pace = super::super::turns::Pace::new(shared.proved(&who).party);
        let again = shared.proved(&who).party;
        assert!(Arc::ptr_eq(&pace.party(), &again));
        let turns = Arc::downgrade(&again);
        drop(again);
        assert!(turns.upgrade().is_some(), "as long as one of its requests is answered");
    }
}
