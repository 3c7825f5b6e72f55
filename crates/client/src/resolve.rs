use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Lookups that run at once. Each holds a thread of the runtime's blocking pool until the system gives up on it.
const LOOKUPS: usize = 128;
/// How many of them may be for names of one zone: a zone whose name servers are dead stalls itself, not others.
const LOOKUPS_PER_ZONE: usize = 32;
/// Addresses taken from one answer; nobody waits for the seventeenth to be tried.
const ADDRESSES: usize = 16;

type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Resolves names in a bounded number of threads.
///
/// The system's lookup (`getaddrinfo`) cannot be cancelled. So a lookup keeps its place until it really ends, though nobody waits
/// for it any more, and lookups beyond the bound wait for a place, up to their own deadline.
///
/// Cheap to clone; clones share the places.
#[derive(Clone)]
pub(crate) struct Resolver {
    places: Arc<Semaphore>,
    zones: Arc<Zones>,
    lookup: Arc<Lookup>,
}

impl Resolver {
    /// The system's own rules.
    pub(crate) fn system() -> Self {
        Self::new(|name| (name, 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect()))
    }

    pub(crate) fn new(lookup: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self { places: Arc::new(Semaphore::new(LOOKUPS)), zones: Arc::default(), lookup: Arc::new(lookup) }
    }

    /// The addresses of `name`, the ones the system prefers first, none twice, at most 16.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up waiting; a lookup under way ends in its own time and keeps its place till then.
    pub(crate) async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let place = self.place(name).await;
        let (lookup, name) = (self.lookup.clone(), name.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let _place = place;
            lookup(&name)
        });
        let mut addresses = Vec::new();
        for address in found.await.map_err(io::Error::other)?? {
            let address = address.to_canonical();
            if addresses.len() < ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }

    /// First a place in the zone, then one in all: whoever waits for a stalled zone holds no place others need.
    async fn place(&self, name: &str) -> Place {
        let zone = Zones::enter(&self.zones, zone_of(name));
        let in_zone = acquire(&zone.places).await;
        let in_all = acquire(&self.places).await;
        Place { _in_all: in_all, _in_zone: in_zone, _zone: zone }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("free", &self.places.available_permits()).finish_non_exhaustive()
    }
}

async fn acquire(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    places.clone().acquire_owned().await.expect("the semaphore is never closed")
}

/// What is likely served by the same name servers: the name without its first label, if two are left then.
fn zone_of(name: &str) -> &str {
    match name.split_once('.') {
        Some((_, parent)) if parent.contains('.') => parent,
        _ => name,
    }
}

/// Dropped in this order: the zone is forgotten when nobody holds or awaits a place in it.
struct Place {
    _in_all: OwnedSemaphorePermit,
    _in_zone: OwnedSemaphorePermit,
    _zone: Zone,
}

/// The zones that somebody looks up names of just now; no more than there are lookups and those who wait.
#[derive(Default)]
struct Zones(Mutex<HashMap<Box<str>, Entry>>);

struct Entry {
    places: Arc<Semaphore>,
    /// Those who hold a place or wait for one.
    held: usize,
}

impl Zones {
    fn enter(zones: &Arc<Self>, name: &str) -> Zone {
        let mut entries = zones.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries
            .entry(name.into())
            .or_insert_with(|| Entry { places: Arc::new(Semaphore::new(LOOKUPS_PER_ZONE)), held: 0 });
        entry.held += 1;
        Zone { zones: zones.clone(), name: name.into(), places: entry.places.clone() }
    }
}

struct Zone {
    zones: Arc<Zones>,
    name: Box<str>,
    places: Arc<Semaphore>,
}

impl Drop for Zone {
    fn drop(&mut self) {
        let mut entries = self.zones.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(&self.name) {
            entry.held -= 1;
            if entry.held == 0 {
                entries.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn f7_a_stalled_zone_does_not_block_the_names_of_others() {
        let (release, stalled) = mpsc::channel::<()>();
        let stalled = Mutex::new(stalled);
        let resolver = Resolver::new(move |name| {
            if name.ends_with("stalled.test") {
                let _ = stalled.lock().unwrap().recv();
            }
            Ok(vec![IpAddr::from([192, 0, 2, 1])])
        });
        let waiting: Vec<_> = (0..LOOKUPS)
            .map(|number| {
                let resolver = resolver.clone();
                tokio::spawn(async move { resolver.resolve(&format!("host{number}.stalled.test")).await })
            })
            .collect();
        while resolver.places.available_permits() > LOOKUPS - LOOKUPS_PER_ZONE {
            tokio::task::yield_now().await;
        }
        assert_eq!(resolver.resolve("quick.example.test").await.unwrap(), [IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(resolver.places.available_permits(), LOOKUPS - LOOKUPS_PER_ZONE);
        drop(release);
        for lookup in waiting {
            lookup.await.unwrap().unwrap();
        }
        assert!(resolver.zones.0.lock().unwrap().is_empty(), "no zone outlives its lookups");
    }

    #[tokio::test]
    async fn i8_a_lookup_nobody_waits_for_keeps_its_place_until_it_ends() {
        let (release, stalled) = mpsc::channel::<()>();
        let stalled = Mutex::new(stalled);
        let resolver = Resolver::new(move |_| {
            let _ = stalled.lock().unwrap().recv();
            Ok(Vec::new())
        });
        let given_up = tokio::time::timeout(Duration::from_millis(10), resolver.resolve("a.test")).await;
        assert!(given_up.is_err());
        assert_eq!(resolver.places.available_permits(), LOOKUPS - 1);
        drop(release);
        while resolver.places.available_permits() < LOOKUPS {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn f7_ten_thousand_answers_are_cut_and_none_comes_twice() {
        let resolver = Resolver::new(|_| {
            let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 0x0001]);
            let all = (1..=10_000_u32).map(|number| IpAddr::from((0x0a00_0000 + number).to_be_bytes()));
            Ok(std::iter::once(mapped).chain(all).collect())
        });
        let found = resolver.resolve("many.test").await.unwrap();
        assert_eq!(found.len(), ADDRESSES);
        assert_eq!(found[..2], [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])]);
    }

    #[test]
    fn a_zone_is_the_name_without_its_first_label() {
        assert_eq!(zone_of("www.example.com"), "example.com");
        assert_eq!(zone_of("example.com"), "example.com");
        assert_eq!(zone_of("printer"), "printer");
    }
}
