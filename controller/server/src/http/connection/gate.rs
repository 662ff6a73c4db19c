//! The entrance: limits on all connections, on unauthenticated ones, and on those of an address that are
//! read.
//!
//! A connection of an address that has as many unauthenticated ones as it may waits in a line, accepted and
//! unread, instead of being closed: ten thousand machines behind one address are a line that moves as fast as
//! each proves with its first request who it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::parties::{Parties, Party};
use super::peer::Peer;
use super::seats::{Full, Seat, Seats};
use crate::http::payer::Payer;
use crate::metrics::{COUNTED, Running, Turned};
use crate::rates::Neighbourhood;

/// How many eighths of all connections may be unauthenticated ones.
const STRANGERS: usize = 5;
/// There may be at least so many, however few connections there are.
const FEWEST_STRANGERS: usize = 64;

/// The limits for one address.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub connections: usize,
    /// Unauthenticated connections of one address that are read. Connections of authenticated machines and
    /// operators count for those.
    pub unproven: usize,
    /// How many of its requests and new connections are handled at once; 0 means no limit.
    pub turns: usize,
    /// How long a response may stall.
    pub idle: Duration,
}

/// Limits how many connections are open at once.
#[derive(Debug, Clone)]
pub struct Gate {
    seats: Seats,
    parties: Parties,
}

/// A place for one connection, in the line of its address.
#[derive(Debug)]
pub struct Place {
    source: SocketAddr,
    parties: Parties,
    address: Arc<Party>,
    seat: Arc<Seat>,
    open: Running,
}

impl Gate {
    pub fn new(bounds: Bounds) -> Self {
        let strangers = (bounds.connections / 8).saturating_mul(STRANGERS).max(FEWEST_STRANGERS);
        let seats = Seats::new(bounds.connections, strangers);
        Self { seats, parties: Parties::new(bounds.unproven, bounds.turns) }
    }

    /// A place for a new connection, if there is one.
    pub fn place(&self, source: SocketAddr) -> Result<Place, Full> {
        let seat = self.seats.take(Neighbourhood::of(source.ip())).inspect_err(|full| {
            COUNTED.turned_away(match full {
                Full::All => Turned::All,
                Full::Address => Turned::Address,
            });
        })?;
        let (seat, open) = (Arc::new(seat), COUNTED.connections.running());
        Ok(Place { source, parties: self.parties.clone(), address: self.address(source), seat, open })
    }

    /// The turns for what arrives from this address before a first request.
    pub fn arrivals(&self, source: SocketAddr) -> Arc<Semaphore> {
        self.address(source).arrivals.clone()
    }

    fn address(&self, source: SocketAddr) -> Arc<Party> {
        self.parties.of(&Payer::Address(Neighbourhood::of(source.ip())))
    }
}

impl Place {
    /// Waits until one more connection of the address may be read. [`Running`] is held while it is open.
    pub async fn admitted(self) -> (Running, Peer) {
        let held = self.address.next_connection().await;
        (self.open, Peer::new(self.source, self.parties, self.address, held, self.seat))
    }

    /// It may become somebody else's.
    pub fn seat(&self) -> Arc<Seat> {
        self.seat.clone()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn gate(connections: usize, unproven: usize) -> Gate {
        Gate::new(Bounds { connections, unproven, turns: 2, idle: Duration::from_secs(60) })
    }
    fn source(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_herd_of_one_address_waits_in_a_line_and_others_have_their_own() {
        let gate = gate(32_768, 2);
        let (herd, other) = (source("192.0.2.1:1"), source("192.0.2.2:1"));
        let first = gate.place(herd).unwrap().admitted().await;
        let second = gate.place(herd).unwrap().admitted().await;
        let mut line: Vec<_> = (0..20_000).map(|_| Box::pin(gate.place(herd).unwrap().admitted())).collect();
        assert!(line[0].as_mut().now_or_never().is_none(), "two are read and have proved nothing yet");
        assert!(line[1].as_mut().now_or_never().is_none());
        let another = gate.place(other).unwrap().admitted().now_or_never();
        assert!(another.is_some(), "another address has its own line");
        assert!(first.1.proved(&Payer::Machine("cinnabar".parse().unwrap())).within);
        let third = line[0].as_mut().now_or_never().expect("the first one is its machine's now");
        assert!(line[1].as_mut().now_or_never().is_none(), "and the next one waits for the third");
        drop((first, second, third));
        assert!(line[1].as_mut().now_or_never().is_some(), "there is room again");
    }

    #[tokio::test]
    async fn addresses_together_take_most_of_the_places_and_each_has_its_share() {
        let gate = gate(1024, 2);
        let place = |number: u32| gate.place(source(&format!("192.0.2.{number}:1")));
        let line: Vec<_> = std::iter::from_fn(|| place(1).ok()).collect();
        assert_eq!((line.len(), place(1).unwrap_err()), (640, Full::Address));
        let others: Vec<_> = std::iter::from_fn(|| place(2).ok()).collect();
        assert_eq!((others.len(), place(2).unwrap_err()), (320, Full::All));
        let gave_up = line.iter().filter(|place| place.seat().given_up().now_or_never().is_some());
        assert_eq!(gave_up.count(), 320);
        let (_open, machine) = place(3).unwrap().admitted().await;
        assert!(machine.proved(&Payer::Machine("cinnabar".parse().unwrap())).within);
        drop((line, others));
        assert!(place(1).is_ok());
    }
}
