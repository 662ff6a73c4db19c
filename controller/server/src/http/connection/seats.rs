//! How many connections are open, and which of them are strangers': those over which nobody has proved yet
//! who they are.
//!
//! Strangers cannot keep out who proves to be a machine or an operator: they have a part of the seats, no
//! stranger takes the seat of one who proved it, and the seats of strangers are shared among addresses. If
//! none is left, the address that has most of them gives up its newest to one that has fewer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::rates::Neighbourhood;

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    All,
    Address,
}

#[derive(Debug, Clone)]
pub struct Seats(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    most: usize,
    most_strangers: usize,
    taken: usize,
    strangers: usize,
    /// The strangers of each address, in the order in which they came.
    of: HashMap<Neighbourhood, BTreeMap<u64, Arc<Notify>>>,
    /// How many each address has.
    by_count: BTreeSet<(usize, Neighbourhood)>,
    next: u64,
}

/// A connection's seat; dropped, it is free.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    address: Neighbourhood,
    number: u64,
    proved: AtomicBool,
    given_up: Arc<Notify>,
}

impl Seats {
    pub fn new(most: usize, most_strangers: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            most,
            most_strangers,
            taken: 0,
            strangers: 0,
            of: HashMap::new(),
            by_count: BTreeSet::new(),
            next: 0,
        })))
    }

    /// A stranger's seat.
    pub fn take(&self, address: Neighbourhood) -> Result<Seat, Full> {
        let mut inner = self.inner();
        let own = inner.of.get(&address).map_or(0, BTreeMap::len);
        if own >= inner.most_strangers {
            return Err(Full::Address);
        }
        if inner.taken >= inner.most || inner.strangers >= inner.most_strangers {
            match inner.by_count.last() {
                Some(&(most, largest)) if most > own + 1 => inner.give_up_newest(largest),
                _ => return Err(Full::All),
            }
        }
        let (number, given_up) = (inner.next, Arc::new(Notify::new()));
        inner.next += 1;
        inner.taken += 1;
        inner.change(address, |of| drop(of.insert(number, given_up.clone())));
        Ok(Seat { seats: self.clone(), address, number, proved: AtomicBool::new(false), given_up })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn give_up_newest(&mut self, address: Neighbourhood) {
        let mut newest = None;
        self.change(address, |of| newest = of.pop_last());
        if let Some((_, given_up)) = newest {
            self.taken -= 1;
            given_up.notify_one();
        }
    }

    /// Whether it was a stranger.
    fn remove(&mut self, address: Neighbourhood, number: u64) -> bool {
        let mut removed = None;
        self.change(address, |of| removed = of.remove(&number));
        removed.is_some()
    }

    /// Changes the strangers of an address, and what is counted of them.
    fn change(&mut self, address: Neighbourhood, change: impl FnOnce(&mut BTreeMap<u64, Arc<Notify>>)) {
        let of = self.of.entry(address).or_default();
        let before = of.len();
        change(of);
        let after = of.len();
        if after == 0 {
            self.of.remove(&address);
        }
        if before != after {
            self.by_count.remove(&(before, address));
            if after > 0 {
                self.by_count.insert((after, address));
            }
            self.strangers = self.strangers - before + after;
        }
    }
}

impl Seat {
    /// Its connection is a machine's or an operator's from now on.
    pub fn prove(&self) {
        if !self.proved.load(Ordering::Relaxed) && self.seats.inner().remove(self.address, self.number) {
            self.proved.store(true, Ordering::Relaxed);
        }
    }

    /// Completes once the seat is somebody else's.
    pub async fn given_up(&self) {
        self.given_up.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.seats.inner();
        if *self.proved.get_mut() || inner.remove(self.address, self.number) {
            inner.taken -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn address(last: u8) -> Neighbourhood {
        Neighbourhood::of(std::net::IpAddr::from([192, 0, 2, last]))
    }
    fn is_given_up(seat: &Seat) -> bool {
        seat.given_up().now_or_never().is_some()
    }
    /// As many as it gets, and why it gets no more.
    fn flood(seats: &Seats, last: u8) -> (Vec<Seat>, Full) {
        let mut all = Vec::new();
        loop {
            match seats.take(address(last)) {
                Ok(seat) => all.push(seat),
                Err(full) => return (all, full),
            }
        }
    }

    #[test]
    fn addresses_that_flood_keep_nobody_out_who_proves_who_they_are() {
        let seats = Seats::new(100, 60);
        let ((one, full), (two, _)) = (flood(&seats, 1), flood(&seats, 2));
        assert_eq!((one.len(), full), (60, Full::Address));
        let left = |flood: &[Seat]| flood.iter().filter(|seat| !is_given_up(seat)).count();
        assert_eq!((left(&one), two.len()), (30, 30), "they share what strangers have");
        let mut machines = Vec::new();
        while let Ok(machine) = seats.take(address(3)) {
            machine.prove();
            machines.push(machine);
        }
        assert_eq!(machines.len(), 98, "all but one of each address that floods");
        assert!(!machines.iter().any(is_given_up));
        drop((one, two));
        assert_eq!(seats.inner().taken, 98, "a seat that was given up is not free once more");
        drop(machines);
        let inner = seats.inner();
        assert_eq!((inner.taken, inner.strangers, inner.of.len(), inner.by_count.len()), (0, 0, 0, 0));
    }

    #[test]
    fn a_herd_of_one_address_has_all_that_strangers_have_while_nobody_else_comes() {
        let seats = Seats::new(32_768, 20_480);
        let herd: Vec<Seat> = (0..20_000).map(|_| seats.take(address(1)).unwrap()).collect();
        assert!(!herd.iter().any(is_given_up));
        herd.iter().for_each(Seat::prove);
        let (strangers, full) = flood(&seats, 1);
        assert_eq!((strangers.len(), full), (32_768 - 20_000, Full::All));
        assert!(!herd.iter().any(is_given_up));
    }

    #[test]
    fn whoever_came_last_gives_up_a_seat_first() {
        let seats = Seats::new(4, 3);
        let (herd, _) = flood(&seats, 1);
        let other = seats.take(address(2)).unwrap();
        assert_eq!(herd.iter().map(is_given_up).collect::<Vec<_>>(), [false, false, true]);
        assert!(seats.take(address(2)).is_err(), "nobody has more than one more");
        drop(other);
        assert!(seats.take(address(1)).is_ok());
    }
}
