//! How many requests one machine, operator or address may send: token buckets, in bounded memory.
//!
//! Machines and operators are counted once authenticated. An address is charged only for unauthenticated
//! requests (public files, and everything refused), so that ten thousand honest machines behind one address
//! are not slowed down by each other or by an attacker who shares the address.

use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use governor::clock::{Clock as GovernorClock, Reference as _};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use muster_protocol::clock::Clock;
use muster_protocol::ids::MachineName;

use crate::config::Limits;

/// How many buckets of one kind are kept: a few megabytes.
const MOST_BUCKETS: usize = 100_000;
/// How many seconds' worth of requests may come in a burst.
const BURST: u32 = 12;
/// The same for one machine's KiB of events, which arrive together after an outage.
const BURST_OF_REPORTS: u32 = 256;
/// The same for an address, behind which a whole fleet may come back with expired bearers.
const BURST_OF_AN_ADDRESS: u32 = 100;
/// The fraction of an operator's rate that all keys they signed in share.
const PART_OF_READERS: u32 = 10;

/// Time awake, from the shared clock.
#[derive(Clone)]
struct Awake(Arc<dyn Clock>);

impl GovernorClock for Awake {
    type Instant = Nanos;
    fn now(&self) -> Nanos {
        self.0.awake().into()
    }
}

type Limiter<K> = RateLimiter<K, HashMapStateStore<K>, Awake, NoOpMiddleware<Nanos>>;

/// One bucket per key. When there are too many, full buckets are forgotten; if that is not enough, all are.
struct Buckets<K: Hash + Eq + Clone> {
    quota: Option<Quota>,
    clock: Awake,
    limiter: RwLock<Limiter<K>>,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    fn new(per_second: u32, burst: u32, clock: &Awake) -> Self {
        let quota = NonZeroU32::new(per_second).map(|rate| {
            let most = NonZeroU32::new(per_second.saturating_mul(burst)).unwrap_or(NonZeroU32::MAX);
            Quota::per_second(rate).allow_burst(most)
        });
        // Never called without a quota.
        let some = quota.unwrap_or(Quota::per_second(NonZeroU32::MIN));
        Self { quota, clock: clock.clone(), limiter: RwLock::new(limiter(some, clock)) }
    }

    /// Takes one token, or returns how long to wait for one.
    fn take(&self, key: &K) -> Result<(), Duration> {
        self.take_some(key, NonZeroU32::MIN)
    }

    /// Takes several tokens at once, or none; if that is more than the bucket holds, a full bucket.
    fn take_some(&self, key: &K, count: NonZeroU32) -> Result<(), Duration> {
        let Some(quota) = self.quota else { return Ok(()) };
        let count = count.min(quota.burst_size());
        let (taken, count) = {
            let limiter = self.limiter.read().unwrap_or_else(PoisonError::into_inner);
            let taken = limiter.check_key_n(key, count);
            let now = self.clock.now();
            let taken = taken.unwrap_or(Ok(()));
            (taken.map_err(|until| until.earliest_possible().duration_since(now).into()), limiter.len())
        };
        if count > MOST_BUCKETS {
            let mut limiter_now = self.limiter.write().unwrap_or_else(PoisonError::into_inner);
            limiter_now.retain_recent();
            if limiter_now.len() > MOST_BUCKETS {
                *limiter_now = limiter(quota, &self.clock);
            }
        }
        taken
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.limiter.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

fn limiter<K: Hash + Eq + Clone>(quota: Quota, clock: &Awake) -> Limiter<K> {
    RateLimiter::new(quota, HashMapStateStore::default(), clock.clone())
}

/// All the buckets of a controller.
pub struct Rates {
    machines: Buckets<MachineName>,
    cache: Buckets<MachineName>,
    reports: Buckets<MachineName>,
    operators: Buckets<PublicKeyBytes>,
    readers: Buckets<PublicKeyBytes>,
    addresses: Buckets<Neighbourhood>,
}

type PublicKeyBytes = [u8; 32];

impl Rates {
    pub fn new(limits: &Limits, clock: Arc<dyn Clock>) -> Self {
        let clock = Awake(clock);
        // This controller's part, which is at least one; 0 stays 0.
        let part = |rate: u32| rate.div_ceil(limits.controllers.max(1));
        let readers = limits.operator_per_second.div_ceil(PART_OF_READERS);
        Self {
            machines: Buckets::new(part(limits.machine_per_second), BURST, &clock),
            cache: Buckets::new(part(limits.cache_per_second), BURST, &clock),
            reports: Buckets::new(part(limits.report_kib_per_second), BURST_OF_REPORTS, &clock),
            operators: Buckets::new(part(limits.operator_per_second), BURST, &clock),
            readers: Buckets::new(part(readers), BURST, &clock),
            addresses: Buckets::new(part(limits.address_per_second), BURST_OF_AN_ADDRESS, &clock),
        }
    }
    /// A request of a machine to anything but the cache.
    pub fn machine(&self, machine: &MachineName) -> Result<(), Duration> {
        self.machines.take(machine)
    }
    /// A machine's request to the cache; one update makes many.
    pub fn cache(&self, machine: &MachineName) -> Result<(), Duration> {
        self.cache.take(machine)
    }
    /// Bytes of events that a machine stores.
    pub fn reports(&self, machine: &MachineName, bytes: usize) -> Result<(), Duration> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        self.reports.take_some(machine, NonZeroU32::new(kib).unwrap_or(NonZeroU32::MIN))
    }
    pub fn operator(&self, key: &PublicKeyBytes) -> Result<(), Duration> {
        self.operators.take(key)
    }
    /// A request with a key that this operator signed in.
    pub fn reader(&self, operator: &PublicKeyBytes) -> Result<(), Duration> {
        self.readers.take(operator)
    }
    /// An unauthenticated request.
    pub fn address(&self, address: Neighbourhood) -> Result<(), Duration> {
        self.addresses.take(&address)
    }
}

/// The party that an address belongs to: itself, or for IPv6 the /64 network that one customer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbourhood(u128);

impl Neighbourhood {
    /// The address of a request that arrived over no connection.
    pub const NOWHERE: Self = Self(0);

    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u128::from(address.to_bits())),
            IpAddr::V6(address) => Self(address.to_bits() & !u128::from(u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Default)]
    struct Hand(AtomicU64);
    impl Clock for Hand {
        fn unix_ms(&self) -> i64 {
            0
        }
        fn awake(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::SeqCst))
        }
    }

    fn clock() -> (Arc<Hand>, Awake) {
        let hand = Arc::new(Hand::default());
        (hand.clone(), Awake(hand))
    }

    #[test]
    fn a_bucket_empties_says_how_long_and_fills_again() {
        let (hand, clock) = clock();
        let buckets: Buckets<u32> = Buckets::new(2, 3, &clock);
        for _ in 0..6 {
            buckets.take(&1).unwrap();
        }
        assert_eq!(buckets.take(&1), Err(Duration::from_millis(500)));
        buckets.take(&2).unwrap();
        hand.0.fetch_add(500, Ordering::SeqCst);
        buckets.take(&1).unwrap();
        assert!(buckets.take(&1).is_err());
    }

    #[test]
    fn a_bucket_gives_many_at_once_or_none_and_never_waits_for_more_than_it_holds() {
        let (hand, clock) = clock();
        let buckets: Buckets<u32> = Buckets::new(1, 10, &clock);
        let some = |count| buckets.take_some(&1, NonZeroU32::new(count).unwrap());
        some(8).unwrap();
        assert!(some(3).is_err());
        some(2).unwrap();
        hand.0.fetch_add(10_000, Ordering::SeqCst);
        some(1000).unwrap();
        assert!(some(1).is_err());
    }

    #[test]
    fn no_limit_is_none() {
        let buckets: Buckets<u32> = Buckets::new(0, 3, &clock().1);
        assert!((0..10_000).all(|_| buckets.take(&1).is_ok()));
    }

    #[test]
    fn several_controllers_divide_the_rates_and_each_allows_something() {
        let taken = |controllers, machine_per_second| {
            let limits = Limits { controllers, machine_per_second, ..Limits::default() };
            let rates = Rates::new(&limits, Arc::new(Hand::default()));
            (0..1000).take_while(|_| rates.machine(&"tin".parse().unwrap()).is_ok()).count()
        };
        assert_eq!(taken(1, 30), 30 * BURST as usize);
        assert_eq!(taken(3, 30), 10 * BURST as usize);
        assert_eq!(taken(3, 1), BURST as usize);
        assert_eq!(taken(3, 0), 1000, "no limit stays none");
    }

    #[test]
    fn a_flood_of_keys_takes_bounded_memory() {
        let (hand, clock) = clock();
        let buckets: Buckets<usize> = Buckets::new(1, 1, &clock);
        for key in 0..3 * MOST_BUCKETS {
            if key % 1000 == 0 {
                hand.0.fetch_add(1, Ordering::SeqCst);
            }
            let _ = buckets.take(&key);
            assert!(buckets.len() <= MOST_BUCKETS + 1);
        }
    }

    #[test]
    fn an_address_is_counted_with_its_own() {
        let of = |text: &str| Neighbourhood::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("192.0.2.7"), of("::ffff:192.0.2.7"));
        assert_ne!(of("192.0.2.7"), of("192.0.2.8"));
    }
}
