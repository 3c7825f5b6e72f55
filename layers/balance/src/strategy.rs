use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicU64, Ordering};

use anyproxy_core::{Dial, Digest, Endpoint, Load};

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

/// Whose turn it is, in each set of members that dials are spread over. One counter for several sets would leave each
/// of them every other number where they are dialled in turns: always the same member's.
///
/// There is room for 1,024 sets, in rows of eight by their digest. One that finds its row full takes another's place:
/// where more than eight go on in a row, members are chosen at random now and then, and as often as the others.
#[derive(Debug)]
pub(crate) struct Turns([Row; 128]);

/// One cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Row([Turn; 8]);

/// The mark of a set in the upper half, and the number of its next dial in the lower; 0 = nobody's. A number that runs
/// over makes another mark, and the set takes another place.
#[derive(Debug, Default)]
struct Turn(AtomicU64);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Row::default()))
    }
}

impl Turns {
    /// Which of `members`, who are not none, is next.
    fn next<E: Endpoint>(&self, members: &[E]) -> usize {
        // By these a set is known well enough; to hash every name would cost more.
        let ends = (members[0].name(), members[members.len() - 1].name(), members.len());
        let number = self.number(Digest::of(&ends).get());
        usize::try_from(number % members.len() as u64).unwrap_or_default()
    }

    /// The number of a dial to a set, by its digest.
    fn number(&self, set: u64) -> u64 {
        let Row(row) = &self.0[usize::try_from(set % self.0.len() as u64).unwrap_or_default()];
        let mark = set >> 32 | 1;
        // Places are taken from the front and never given up: none of its own is behind the first that is nobody's.
        let place = row.iter().find(|turn| [mark, 0].contains(&turn.mark()));
        let turn = place.unwrap_or_else(|| &row[fastrand::usize(..row.len())]);
        if turn.mark() != mark {
            // Begins anywhere, so that sets that come and go again do not all begin with their first member. Whoever does
            // the same at this moment makes one number less.
            turn.0.store(mark << 32 | u64::from(fastrand::u16(..)), Ordering::Relaxed);
        }
        turn.0.fetch_add(1, Ordering::Relaxed) & u64::from(u32::MAX)
    }
}

impl Turn {
    fn mark(&self) -> u64 {
        self.0.load(Ordering::Relaxed) >> 32
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
            Self::RoundRobin => members.get(turns.next(members)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_that_share_a_row_have_turns_of_their_own_as_long_as_there_is_room() {
        let turns = Turns::default();
        let set = |n: u64| n << 33 | 5;
        let mut last: Vec<_> = (0..8).map(|n| turns.number(set(n))).collect();
        for _ in 0..100 {
            for n in 0..8 {
                let number = turns.number(set(n));
                assert_eq!(number, last[n as usize] + 1);
                last[n as usize] = number;
            }
        }
    }

    #[test]
    fn more_sets_than_a_row_has_room_for_still_share_among_their_members() {
        let turns = Turns::default();
        let mut shares = [[0; 2]; 20];
        for _ in 0..1_000 {
            for (set, shares) in shares.iter_mut().enumerate() {
                shares[(turns.number((set as u64) << 33) % 2) as usize] += 1;
            }
        }
        assert!(shares.as_flattened().iter().all(|share| (400..600).contains(share)), "{shares:?}");
    }
}
