use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, PoisonError};

use anyproxy_core::{SourcePrefix, run_blocking};
use anyproxy_tunnel::frame::Open;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::reserve::Reserve;

/// Lookups that run at once. Each holds a thread of the runtime's blocking pool until the system gives up on it; the pool
/// has 512 if nobody says otherwise, so others find one too.
const LOOKUPS: usize = 384;
/// How many of them may be for one user. Whoever chooses the names can have them all stall, in as many zones as they like:
/// that stalls themselves, not others.
const LOOKUPS_PER_USER: usize = 64;
/// How many of them may be for names of one zone: if its name servers are dead, and many users ask for it, other zones go on.
const LOOKUPS_PER_ZONE: usize = 64;
/// How many of a zone's may be for one user: where a part of a zone is dead, asking for it takes the zone from nobody else;
/// and a dead zone leaves its users room for others.
const LOOKUPS_PER_USER_IN_ZONE: usize = 16;
/// Addresses taken from one answer; nobody waits for the seventeenth to be tried.
const ADDRESSES: usize = 16;

type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Whose wish a lookup is, for shares: all that is stalled of one is stalled for them alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Asker {
    User(Box<str>),
    /// Where a user without a name comes from.
    Source(SourcePrefix),
    /// The client itself, or somebody of whom the gateway says nothing.
    Nobody,
}

impl Asker {
    pub(crate) fn of(open: &Open) -> Self {
        match open.source {
            _ if !open.user.is_empty() => Self::User(open.user.as_str().into()),
            Some(source) => Self::Source(source.into()),
            None => Self::Nobody,
        }
    }
}

/// Resolves names in a bounded number of threads, of which nobody gets more than a share.
///
/// The system's lookup (`getaddrinfo`) cannot be cancelled. So a lookup keeps its place until it really ends, though nobody waits
/// for it any more, and lookups beyond a bound wait for a place, up to their own deadline.
///
/// Cheap to clone; clones share the places.
#[derive(Clone)]
pub(crate) struct Resolver {
    places: Arc<Semaphore>,
    shares: Arc<Shares>,
    lookup: Arc<Lookup>,
    reserve: Reserve,
}

impl Resolver {
    /// The system's own rules.
    pub(crate) fn system() -> Self {
        Self::new(|name| match (name, 0).to_socket_addrs() {
            Ok(found) => Ok(found.map(|address| address.ip()).collect()),
            Err(error) => Err(cause_of(error, Reserve::NONE.probe())),
        })
    }

    pub(crate) fn new(lookup: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self {
            places: Arc::new(Semaphore::new(LOOKUPS)),
            shares: Arc::default(),
            lookup: Arc::new(lookup),
            reserve: Reserve::NONE,
        }
    }

    /// One whose lookups, which take descriptors of their own, leave `reserve` alone.
    pub(crate) fn with_reserve(self, reserve: Reserve) -> Self {
        Self { reserve, ..self }
    }

    /// The addresses of `name`, the ones the system prefers first, none twice, at most 16.
    ///
    /// # Errors
    ///
    /// What the system says; [`ResourceBusy`](io::ErrorKind::ResourceBusy) if there is no thread to ask it on, or no descriptor
    /// beside the reserve.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up waiting; a lookup under way ends in its own time and keeps its place till then.
    pub(crate) async fn resolve(&self, asker: Asker, name: &str) -> io::Result<Vec<IpAddr>> {
        let place = self.place(asker, name).await;
        let (lookup, name, reserve) = (self.lookup.clone(), name.to_owned(), self.reserve);
        let found = run_blocking(move || {
            let _place = place;
            reserve.probe()?;
            lookup(&name)
        });
        let mut addresses = Vec::new();
        for address in found.await?? {
            let address = address.to_canonical();
            if addresses.len() < ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }

    /// From the narrowest share to all places: whoever waits for one holds none that is wider. So what a user holds or waits
    /// for of a zone is never more than their part of it, and of all places never more than their share.
    async fn place(&self, asker: Asker, name: &str) -> Place {
        let zone: Box<str> = zone_of(name).into();
        let of_user_in_zone =
            Shares::take(&self.shares, Sharer::UserInZone(asker.clone(), zone.clone())).await;
        let of_zone = Shares::take(&self.shares, Sharer::Zone(zone)).await;
        let of_user = Shares::take(&self.shares, Sharer::User(asker)).await;
        let of_all = acquire(&self.places).await;
        Place { _of_all: of_all, _shares: [of_user, of_zone, of_user_in_zone] }
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

/// Why a lookup failed, if a descriptor was probed for `afterwards`. A lookup that had none for its question says that there
/// is no such name (glibc), which would be the last word on a name that another client may find.
fn cause_of(error: io::Error, afterwards: io::Result<()>) -> io::Error {
    afterwards.err().unwrap_or(error)
}

/// What is likely served by the same name servers: the name without its first label, if two are left then.
fn zone_of(name: &str) -> &str {
    match name.split_once('.') {
        Some((_, parent)) if parent.contains('.') => parent,
        _ => name,
    }
}

struct Place {
    _of_all: OwnedSemaphorePermit,
    _shares: [Taken; 3],
}

/// What has no more than a share of the places.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Sharer {
    User(Asker),
    Zone(Box<str>),
    UserInZone(Asker, Box<str>),
}

impl Sharer {
    const fn share(&self) -> usize {
        match self {
            Self::User(_) => LOOKUPS_PER_USER,
            Self::Zone(_) => LOOKUPS_PER_ZONE,
            Self::UserInZone(..) => LOOKUPS_PER_USER_IN_ZONE,
        }
    }
}

/// The shares that somebody has or wants a place of just now; no more than three for each lookup and each that waits.
#[derive(Default)]
struct Shares(Mutex<HashMap<Sharer, Share>>);

struct Share {
    places: Arc<Semaphore>,
    /// Those who hold a place or wait for one.
    held: usize,
}

impl Shares {
    async fn take(shares: &Arc<Self>, sharer: Sharer) -> Taken {
        let interest = Self::enter(shares, sharer);
        Taken { _place: acquire(&interest.places).await, _interest: interest }
    }

    fn enter(shares: &Arc<Self>, sharer: Sharer) -> Interest {
        let mut entries = shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        let share = entries
            .entry(sharer.clone())
            .or_insert_with_key(|sharer| Share { places: Arc::new(Semaphore::new(sharer.share())), held: 0 });
        share.held += 1;
        Interest { shares: shares.clone(), sharer, places: share.places.clone() }
    }
}

/// A place of a share. Dropped in this order: the share is forgotten when nobody holds or awaits a place of it.
struct Taken {
    _place: OwnedSemaphorePermit,
    _interest: Interest,
}

struct Interest {
    shares: Arc<Shares>,
    sharer: Sharer,
    places: Arc<Semaphore>,
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut entries = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = entries.get_mut(&self.sharer) {
            share.held -= 1;
            if share.held == 0 {
                entries.remove(&self.sharer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use anyproxy_tunnel::frame::{HostRef, OpenErrClass};
    use socket2::{Domain, Socket, Type};
    use tokio::task::{JoinSet, yield_now};
    use tokio::time::timeout;

    use super::*;
    use crate::race::class_of_lookup;

    const FOUND: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    /// A resolver whose lookups stall for names that begin with `dead`, and those who wait for it.
    struct Stalling {
        resolver: Resolver,
        asked: JoinSet<io::Result<Vec<IpAddr>>>,
        /// The lookups that have begun to stall.
        stalled: Arc<AtomicUsize>,
        release: mpsc::Sender<()>,
    }

    impl Stalling {
        fn new() -> Self {
            let (release, ends) = mpsc::channel::<()>();
            let (ends, stalled) = (Mutex::new(ends), Arc::new(AtomicUsize::new(0)));
            let counted = stalled.clone();
            let resolver = Resolver::new(move |name| {
                if name.starts_with("dead") {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let _ = ends.lock().unwrap().recv();
                }
                Ok(vec![FOUND])
            });
            Self { resolver, asked: JoinSet::new(), stalled, release }
        }

        /// `user` asks for all of these, and waits.
        fn ask(&mut self, user: &str, names: impl Iterator<Item = String>) {
            for name in names {
                let (resolver, asker) = (self.resolver.clone(), user_named(user));
                self.asked.spawn(async move { resolver.resolve(asker, &name).await });
            }
        }

        /// Until so many lookups stall; no more hold a place.
        async fn stall(&self, number: usize) {
            let stalled = async {
                while self.stalled.load(Ordering::Relaxed) < number {
                    yield_now().await;
                }
            };
            let expected = timeout(Duration::from_secs(5), stalled).await;
            expected.unwrap_or_else(|_| panic!("{} of {number} stall", self.stalled.load(Ordering::Relaxed)));
            assert_eq!(LOOKUPS - self.resolver.places.available_permits(), number);
        }

        async fn is_found_at_once(&self, user: &str, name: &str) {
            let found = timeout(Duration::from_secs(5), self.resolver.resolve(user_named(user), name)).await;
            assert_eq!(found.expect("nobody else's names are in the way").unwrap(), [FOUND]);
        }

        async fn end(mut self) {
            drop(self.release);
            while let Some(asked) = self.asked.join_next().await {
                assert_eq!(asked.unwrap().unwrap(), [FOUND]);
            }
            assert_eq!(self.resolver.places.available_permits(), LOOKUPS);
            assert!(self.resolver.shares.0.lock().unwrap().is_empty(), "no share outlives its lookups");
        }
    }

    fn user_named(name: &str) -> Asker {
        Asker::User(name.into())
    }

    #[tokio::test]
    async fn f7_whatever_names_a_user_asks_for_those_of_another_are_looked_up_at_once() {
        let mut world = Stalling::new();
        world.ask("mallory", (0..1_000).map(|number| format!("dead.{number}.evil.test")));
        world.stall(LOOKUPS_PER_USER).await;
        world.is_found_at_once("alice", "www.example.test").await;
        world.is_found_at_once("alice", "www.1.evil.test").await;
        world.end().await;
    }

    #[tokio::test]
    async fn f7_a_user_takes_a_zone_neither_from_others_nor_other_zones_from_themselves() {
        let mut world = Stalling::new();
        world.ask("mallory", (0..1_000).map(|number| format!("dead{number}.shared.test")));
        world.stall(LOOKUPS_PER_USER_IN_ZONE).await;
        world.is_found_at_once("alice", "www.shared.test").await;
        world.is_found_at_once("mallory", "www.example.test").await;
        world.end().await;
    }

    #[tokio::test]
    async fn f7_a_dead_zone_that_many_users_ask_for_does_not_block_the_names_of_other_zones() {
        let mut world = Stalling::new();
        for user in 0..30 {
            world.ask(&user.to_string(), (0..30).map(|number| format!("dead{number}.stalled.test")));
        }
        world.stall(LOOKUPS_PER_ZONE).await;
        world.is_found_at_once("alice", "www.example.test").await;
        world.is_found_at_once("0", "www.example.test").await;
        world.end().await;
    }

    #[tokio::test]
    async fn i8_all_lookups_together_are_bounded_and_further_ones_wait() {
        let mut world = Stalling::new();
        for user in 0..LOOKUPS.div_ceil(LOOKUPS_PER_USER) + 1 {
            let names = (0..2 * LOOKUPS_PER_USER).map(|number| format!("dead.{number}.of{user}.test"));
            world.ask(&user.to_string(), names);
        }
        world.stall(LOOKUPS).await;
        world.ask("alice", std::iter::once("www.example.test".to_owned()));
        for _ in 0..10 {
            yield_now().await;
        }
        assert!(world.asked.try_join_next().is_none());
        world.end().await;
    }

    #[tokio::test]
    async fn i8_a_lookup_nobody_waits_for_keeps_its_place_until_it_ends() {
        let world = Stalling::new();
        let asked = world.resolver.resolve(user_named("alice"), "dead.test");
        assert!(timeout(Duration::from_millis(10), asked).await.is_err());
        assert_eq!(world.resolver.places.available_permits(), LOOKUPS - 1);
        drop(world.release);
        while world.resolver.places.available_permits() < LOOKUPS {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn f7_ten_thousand_answers_are_cut_and_none_comes_twice() {
        let resolver = Resolver::new(|_| {
            let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 0x0001]);
            let all = (1..=10_000_u32).map(|number| IpAddr::from((0x0a00_0000 + number).to_be_bytes()));
            Ok(std::iter::once(mapped).chain(all).collect())
        });
        let found = resolver.resolve(Asker::Nobody, "many.test").await.unwrap();
        assert_eq!(found.len(), ADDRESSES);
        assert_eq!(found[..2], [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])]);
    }

    #[test]
    fn f6_without_a_thread_a_lookup_fails_and_keeps_no_place() {
        // Each thread is refused: no machine has such a stack.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().thread_stack_size(1 << 50).build().unwrap();
        runtime.block_on(async {
            let resolver = Resolver::new(|_| Ok(vec![FOUND]));
            for _ in 0..2 * LOOKUPS_PER_USER_IN_ZONE {
                let asked = resolver.resolve(user_named("alice"), "www.example.test");
                let asked = timeout(Duration::from_secs(5), asked).await.expect("a place");
                assert_eq!(class_of_lookup(&asked.unwrap_err()), OpenErrClass::Overloaded);
            }
            assert_eq!(resolver.places.available_permits(), LOOKUPS);
        });
    }

    #[test]
    fn a_lookup_without_a_descriptor_does_not_mean_that_there_is_no_such_name() {
        let no_such_name = || io::Error::other("Name or service not known");
        let class = |afterwards| class_of_lookup(&cause_of(no_such_name(), Reserve::NONE.judge(afterwards)));
        assert_eq!(class(Socket::new(Domain::IPV4, Type::DGRAM, None)), OpenErrClass::Unresolved);
        for code in [libc::EMFILE, libc::ENFILE] {
            assert_eq!(class(Err(io::Error::from_raw_os_error(code))), OpenErrClass::Overloaded);
        }
        let no_ipv4 = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
        assert_eq!(class(Err(no_ipv4)), OpenErrClass::Unresolved, "says nothing about descriptors");
    }

    #[test]
    fn who_asks_is_the_user_and_without_a_name_where_they_come_from() {
        let open = |user: &str, source: Option<&str>| Open {
            user: user.into(),
            source: source.map(|source| source.parse().unwrap()),
            ..Open::tcp(HostRef::Name("www.example.test".into()), 80)
        };
        assert_eq!(Asker::of(&open("alice", Some("192.0.2.1:1"))), user_named("alice"));
        let from = |source| Asker::of(&open("", Some(source)));
        assert_eq!(from("[2001:db8::1]:1"), from("[2001:db8::2]:2"), "one host chooses among these");
        assert_ne!(from("192.0.2.1:1"), from("192.0.2.2:1"));
        assert_eq!(Asker::of(&open("", None)), Asker::Nobody);
    }

    #[test]
    fn a_zone_is_the_name_without_its_first_label() {
        assert_eq!(zone_of("www.example.com"), "example.com");
        assert_eq!(zone_of("example.com"), "example.com");
        assert_eq!(zone_of("printer"), "printer");
    }
}
