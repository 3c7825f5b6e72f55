use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyproxy_core::{Dial, Endpoint, Load};

use crate::health::Latencies;

/// How a member is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strategy {
    /// One after the other, whatever they carry.
    RoundRobin,
    /// The one that carries least: living streams, and bytes that wait to leave. Looks at every member.
    #[default]
    LeastLoaded,
    /// Of two at random the one with the lower load × answer time, the latter an average that follows a rise at once
    /// and a fall slowly. For groups of many, or of unequal speed.
    P2cEwma,
    /// Any.
    Random,
    /// The same one for the same key while it is there, by rendezvous hashing: when a member comes or goes, only its
    /// own share moves.
    Sticky(StickyBy),
}

/// What [`Strategy::Sticky`] keeps together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StickyBy {
    /// The dials of a user, who is a name in a group; of an anonymous one, those from one address.
    #[default]
    User,
    /// The dials to a target.
    Target,
}

/// Bytes waiting to leave that weigh as much as one living stream: a stream's share of a tunnel that is busy.
const BYTES_PER_STREAM: usize = 64 * 1024;

/// Whose turn it is. One counter would serve all groups at once, and two groups that dial in turns would each see
/// every other number: the counters are spread by the group's first member.
#[derive(Debug)]
pub(crate) struct Turns([AtomicUsize; 64]);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicUsize::new(0)))
    }
}

impl Turns {
    fn next(&self, group: &str) -> usize {
        let place = hash(&group) % self.0.len() as u64;
        self.0[usize::try_from(place).unwrap_or_default()].fetch_add(1, Ordering::Relaxed)
    }
}

impl Strategy {
    /// Chooses one of `members`; `None` if there are none.
    pub(crate) fn choose<'a, E: Endpoint>(
        self,
        members: &'a [E],
        dial: &Dial,
        turns: &Turns,
        latencies: impl FnOnce() -> Latencies<'a>,
    ) -> Option<&'a E> {
        match members {
            [] => return None,
            [only] => return Some(only),
            _ => {}
        }
        match self {
            Self::RoundRobin => members.get(turns.next(members[0].name()) % members.len()),
            Self::LeastLoaded => least_loaded(members),
            Self::P2cEwma => {
                let (one, other) = two_of(members);
                let latencies = latencies();
                let cost = |member: &E| latencies.of(member.name()) * (weight(member.load()) + 1.0);
                Some(if cost(other) < cost(one) { other } else { one })
            }
            Self::Random => members.get(fastrand::usize(..members.len())),
            Self::Sticky(by) => {
                let key = by.key(dial);
                members.iter().max_by_key(|member| hash(&(key, member.name())))
            }
        }
    }
}

impl StickyBy {
    fn key(self, dial: &Dial) -> u64 {
        match self {
            Self::User if dial.identity.user().is_none() => hash(&dial.source.ip()),
            Self::User => hash(&dial.identity.key()),
            // An association begins before its first target is known: then it counts by itself.
            Self::Target if dial.target.is_unspecified() => hash(&dial.network),
            Self::Target => hash(&dial.target),
        }
    }
}

/// Begins anywhere, so that members that carry the same take turns.
fn least_loaded<E: Endpoint>(members: &[E]) -> Option<&E> {
    let (behind, ahead) = members.split_at(fastrand::usize(..members.len()));
    let score = |load: Load| load.streams + load.unsent / BYTES_PER_STREAM;
    ahead.iter().chain(behind).min_by_key(|member| score(member.load()))
}

/// Two different ones at random.
fn two_of<E>(members: &[E]) -> (&E, &E) {
    let one = fastrand::usize(..members.len());
    let other = fastrand::usize(..members.len() - 1);
    (&members[one], &members[other + usize::from(other >= one)])
}

#[expect(clippy::cast_precision_loss, reason = "loads beyond 2^52 need no exact comparison")]
fn weight(load: Load) -> f64 {
    load.streams as f64 + load.unsent as f64 / BYTES_PER_STREAM as f64
}

/// With fixed keys, so that several gateways agree. Nobody gains by a collision: it would be their own share.
fn hash(value: &impl std::hash::Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(value)
}
