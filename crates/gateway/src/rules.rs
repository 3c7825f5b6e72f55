use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// How long dials may come that were judged by rules which were replaced meanwhile: they waited for a place or a client.
/// More than both take by default; a dial that waited longer may be refused as if the client were full.
const OUTLIVED: Duration = Duration::from_secs(10);

/// The rules that hold at the clients too, as a tunnel is sent them: those in force behind those just replaced.
#[derive(Default)]
pub(crate) struct Versions(Vec<Version>);

struct Version {
    number: u32,
    rules: Bytes,
    replaced: Option<Instant>,
}

impl Versions {
    /// Puts these in force, and no others. What living tunnels are to be sent: nothing, if these are in force already;
    /// else all of them, since a client forgets the oldest of what it was sent.
    pub(crate) fn replace(&mut self, now: Instant, rules: Vec<(u32, Bytes)>) -> Vec<(u32, Bytes)> {
        let in_force =
            self.0.iter().filter(|version| version.replaced.is_none()).map(|version| version.number);
        if in_force.eq(rules.iter().map(|(number, _)| *number)) {
            return Vec::new();
        }
        self.0.retain_mut(|version| {
            let replaced = *version.replaced.get_or_insert(now);
            now - replaced < OUTLIVED && rules.iter().all(|(number, _)| *number != version.number)
        });
        self.0.extend(rules.iter().cloned().map(|(number, rules)| Version { number, rules, replaced: None }));
        rules
    }

    /// What a tunnel that comes now is sent, in this order.
    pub(crate) fn for_newcomer(&self, now: Instant) -> impl Iterator<Item = (u32, Bytes)> {
        let is_needed = move |version: &&Version| version.replaced.is_none_or(|then| now - then < OUTLIVED);
        self.0.iter().filter(is_needed).map(|version| (version.number, version.rules.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(numbers: &[u32]) -> Vec<(u32, Bytes)> {
        numbers.iter().map(|number| (*number, Bytes::new())).collect()
    }

    fn newcomer(versions: &Versions, now: Instant) -> Vec<u32> {
        versions.for_newcomer(now).map(|(number, _)| number).collect()
    }

    #[test]
    fn replaced_rules_reach_newcomers_for_a_while_and_ahead_of_those_in_force() {
        let (mut versions, now) = (Versions::default(), Instant::now());
        assert_eq!(versions.replace(now, rules(&[1])), rules(&[1]));
        assert_eq!(versions.replace(now, rules(&[2])), rules(&[2]));
        assert_eq!(newcomer(&versions, now), [1, 2]);
        assert_eq!(newcomer(&versions, now + OUTLIVED), [2]);
        assert_eq!(versions.replace(now, rules(&[])), []);
        assert_eq!(newcomer(&versions, now), [1, 2], "dials judged by them may still come");
        assert_eq!(newcomer(&versions, now + OUTLIVED), []);
        assert_eq!(versions.replace(now + OUTLIVED, rules(&[3])), rules(&[3]));
        assert_eq!(versions.0.len(), 1, "what nobody needs is not kept");
    }

    #[test]
    fn rules_that_come_back_are_sent_again_and_the_same_are_not() {
        let (mut versions, now) = (Versions::default(), Instant::now());
        for numbers in [[1, 2], [1, 3], [1, 2]] {
            assert_eq!(versions.replace(now, rules(&numbers)), rules(&numbers));
            assert_eq!(versions.replace(now, rules(&numbers)), []);
        }
        assert_eq!(newcomer(&versions, now), [3, 1, 2]);
    }
}
