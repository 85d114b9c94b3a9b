//! How many connections there may be, and how quickly they may come.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Limits;
use super::counts::Counts;

/// Bits of an IPv6 address that a guest does not choose.
const NETWORK: u32 = 64;
/// How many peers it takes to use up what there is in a second.
const SHARES: u32 = 8;
/// How many customers it takes to use up the places: one of them may have any number of addresses.
const CUSTOMERS: usize = 4;

/// Places for connections.
pub(super) struct Places {
    limits: Limits,
    counts: Arc<Counts>,
    taken: Mutex<Taken>,
}

struct Taken {
    total: usize,
    peers: BTreeMap<IpAddr, Peer>,
    /// Connections by customer; nobody's together.
    customers: BTreeMap<Option<String>, usize>,
    pace: Pace,
}

/// Kept while it has connections or has just had some.
struct Peer {
    connections: usize,
    pace: Pace,
}

/// Leave to serve one connection, of which only the address is known.
pub(super) struct Place {
    peer: IpAddr,
    places: Arc<Places>,
}

/// Leave to serve one connection of a customer.
pub(super) struct CustomersPlace {
    customer: Option<String>,
    place: Place,
}

impl Places {
    pub(super) fn new(limits: Limits, counts: Arc<Counts>, now: Instant) -> Self {
        Self {
            limits,
            counts,
            taken: Mutex::new(Taken {
                total: 0,
                peers: BTreeMap::new(),
                customers: BTreeMap::new(),
                pace: Pace::new(limits.per_second, limits.per_second, now),
            }),
        }
    }

    /// A place for a connection from `peer`, if there is one. What finds none spends nothing of a
    /// rate.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Option<Place> {
        let peer = network(peer);
        let mut taken = self.lock();
        if taken.total >= self.limits.connections {
            return None;
        }
        let Taken {
            total,
            peers,
            customers: _,
            pace,
        } = &mut *taken;
        peers.retain(|_, peer| peer.connections > 0 || !peer.pace.is_rested(now));
        let share = self.limits.per_second.div_ceil(SHARES);
        let theirs = peers.entry(peer).or_insert_with(|| Peer {
            connections: 0,
            pace: Pace::new(share, share, now),
        });
        if theirs.connections >= self.limits.per_peer {
            return None;
        }
        let even = theirs.pace.next(now).ok()?;
        pace.take(now).ok()?;
        theirs.pace.even = even;
        *total += 1;
        theirs.connections += 1;
        self.counts.set_open(*total);
        Some(Place {
            peer,
            places: Arc::clone(self),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing that holds it can panic halfway.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.total = taken.total.saturating_sub(1);
        self.places.counts.set_open(taken.total);
        if let Some(theirs) = taken.peers.get_mut(&self.peer) {
            theirs.connections = theirs.connections.saturating_sub(1);
        }
    }
}

impl Place {
    /// The same place once it is known whose the connection is, if that customer may have another one.
    pub(super) fn of_customer(self, customer: Option<&str>) -> Option<CustomersPlace> {
        let customer = customer.map(str::to_owned);
        let share = self.places.limits.connections.div_ceil(CUSTOMERS);
        {
            let mut taken = self.places.lock();
            let theirs = taken.customers.entry(customer.clone()).or_default();
            if *theirs >= share {
                return None;
            }
            *theirs += 1;
        }
        Some(CustomersPlace {
            customer,
            place: self,
        })
    }
}

impl Drop for CustomersPlace {
    fn drop(&mut self) {
        let mut taken = self.place.places.lock();
        if let Entry::Occupied(mut theirs) = taken.customers.entry(self.customer.take()) {
            match theirs.get() {
                0 | 1 => {
                    theirs.remove();
                }
                more => {
                    let fewer = more - 1;
                    theirs.insert(fewer);
                }
            }
        }
    }
}

/// Whom an address stands for.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let mask = u128::MAX << (Ipv6Addr::BITS - NETWORK);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// So many a second, and so many at once after quiet.
pub(super) struct Pace {
    interval: Duration,
    burst: Duration,
    /// When all that were let through would have come, had they come evenly.
    even: Instant,
}

impl Pace {
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self {
            interval,
            burst: interval * burst,
            even: now,
        }
    }

    /// Lets one through.
    ///
    /// # Errors
    /// How long it would have to wait.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.even = self.next(now)?;
        Ok(())
    }

    /// What `even` is after one more.
    fn next(&self, now: Instant) -> Result<Instant, Duration> {
        let even = self.even.max(now) + self.interval;
        let ahead = even.duration_since(now);
        if ahead > self.burst {
            return Err(ahead - self.burst);
        }
        Ok(even)
    }

    /// Whether it lets as much through as a new one would.
    fn is_rested(&self, now: Instant) -> bool {
        self.even <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_lets_a_burst_through_and_then_one_an_interval() {
        let start = Instant::now();
        let mut pace = Pace::new(10, 3, start);
        let at = |ms| start + Duration::from_millis(ms);
        for (ms, through) in [
            (0, true),
            (0, true),
            (0, true),
            (0, false),
            (99, false),
            (100, true),
            (100, false),
            (200, true),
            (1000, true),
            (1000, true),
            (1000, true),
            (1000, false),
        ] {
            assert_eq!(pace.take(at(ms)).is_ok(), through, "at {ms} ms");
        }
        assert_eq!(pace.take(at(1040)), Err(Duration::from_millis(60)));
    }

    #[test]
    fn place_is_refused_beyond_a_bound_and_free_again_after_its_end() {
        let now = Instant::now();
        let limits = Limits {
            connections: 3,
            per_peer: 2,
            per_second: 1000,
            ..Limits::default()
        };
        let counts = Arc::new(Counts::default());
        let places = Arc::new(Places::new(limits, Arc::clone(&counts), now));
        let take = |peer: &str| places.take(peer.parse().unwrap(), now);
        let first = take("192.0.2.1").unwrap();
        let _second = take("::ffff:192.0.2.1").unwrap();
        assert!(take("192.0.2.1").is_none(), "a third of one peer");
        let _third = take("192.0.2.2").unwrap();
        assert!(take("192.0.2.3").is_none(), "a fourth in all");
        assert_eq!(counts.open(), 3);
        drop(first);
        assert_eq!(counts.open(), 2);
        assert!(take("192.0.2.1").is_some());
    }

    #[test]
    fn place_of_ipv6_is_by_network() {
        let now = Instant::now();
        let limits = Limits {
            per_peer: 1,
            ..Limits::default()
        };
        let places = Arc::new(Places::new(limits, Arc::default(), now));
        let take = |peer: &str| places.take(peer.parse().unwrap(), now);
        let _first = take("2001:db8:1:2::1").unwrap();
        assert!(take("2001:db8:1:2:ffff::2").is_none());
        assert!(take("2001:db8:1:3::1").is_some());
    }

    #[test]
    fn customer_with_many_addresses_leaves_the_others_their_places() {
        let now = Instant::now();
        let limits = Limits {
            connections: 8,
            per_second: 1000,
            ..Limits::default()
        };
        let places = Arc::new(Places::new(limits, Arc::default(), now));
        let take = |last: u8, customer| {
            let place = places.take([192, 0, 2, last].into(), now).unwrap();
            place.of_customer(customer)
        };
        let first = take(1, Some("c-1")).unwrap();
        let _second = take(2, Some("c-1")).unwrap();
        assert!(take(3, Some("c-1")).is_none(), "more than a quarter");
        let _other = take(3, Some("c-2")).unwrap();
        let _nobodys = [take(4, None).unwrap(), take(5, None).unwrap()];
        assert!(take(6, None).is_none(), "nobody's share is one customer's");
        drop(first);
        let _third = take(3, Some("c-1")).unwrap();
        assert!(take(4, Some("c-1")).is_none());
    }

    #[test]
    fn customer_is_forgotten_with_its_last_connection() {
        let now = Instant::now();
        let places = Arc::new(Places::new(Limits::default(), Arc::default(), now));
        let take = || places.take([192, 0, 2, 1].into(), now).unwrap();
        let held = [take(), take()].map(|place| place.of_customer(Some("c-1")));
        assert_eq!(places.lock().customers.len(), 1);
        drop(held);
        assert_eq!(places.lock().customers.len(), 0);
        assert_eq!(places.lock().total, 0);
    }

    #[test]
    fn place_beyond_the_rate_is_refused() {
        let now = Instant::now();
        let limits = Limits {
            per_second: 2,
            ..Limits::default()
        };
        let places = Arc::new(Places::new(limits, Arc::default(), now));
        let take = |last: u8, at| places.take([192, 0, 2, last].into(), at).is_some();
        assert_eq!(
            [take(1, now), take(2, now), take(3, now)],
            [true, true, false]
        );
        assert!(take(3, now + Duration::from_millis(500)));
    }

    #[test]
    fn peer_that_comes_too_quickly_leaves_the_others_their_places() {
        let now = Instant::now();
        let limits = Limits {
            per_second: 16,
            ..Limits::default()
        };
        let places = Arc::new(Places::new(limits, Arc::default(), now));
        let take = |last: u8, at| places.take([192, 0, 2, last].into(), at).is_some();
        assert_eq!(
            [take(1, now), take(1, now), take(1, now)],
            [true, true, false]
        );
        assert!((2..=8).all(|peer| take(peer, now) && take(peer, now)));
        assert!(!take(9, now), "beyond what there is for all");
        assert!(take(1, now + Duration::from_millis(500)));
    }

    #[test]
    fn peer_is_forgotten_when_it_has_gone_and_rested() {
        let now = Instant::now();
        let places = Arc::new(Places::new(Limits::default(), Arc::default(), now));
        for peer in 1..=50 {
            assert!(places.take([192, 0, 2, peer].into(), now).is_some());
        }
        assert_eq!(places.lock().peers.len(), 50);
        let later = now + Duration::from_secs(2);
        assert!(places.take([192, 0, 2, 51].into(), later).is_some());
        assert_eq!(places.lock().peers.len(), 1);
    }
}
