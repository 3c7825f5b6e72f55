use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyproxy_core::Target;

use crate::hello::Random;

/// The hellos that a front is passing on: a way back to it leads to another user with the same one.
///
/// As many as there are connections whose target is being dialled or relayed to, eight bytes each: a hash of what tells a
/// hello apart, by a key that nobody else knows, so that nobody can choose a hello that stands in for another's.
#[derive(Default)]
pub(crate) struct Passing {
    key: RandomState,
    hellos: Mutex<HashSet<u64>>,
}

impl Passing {
    /// Takes note of a hello to `target`, until what is returned is dropped; `None` if it is being passed on already.
    pub(crate) fn begin(&self, random: &Random, target: &Target) -> Option<Passage<'_>> {
        let hello = self.key.hash_one((random, target));
        self.lock().insert(hello).then(|| Passage { passing: self, hello })
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.hellos.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A hello that is being passed on, for as long as this lives.
pub(crate) struct Passage<'a> {
    passing: &'a Passing,
    hello: u64,
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        self.passing.lock().remove(&self.hello);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_another_by_its_random_bytes_or_its_target() {
        let passing = Passing::default();
        let [here, there] = ["a.example:443", "b.example:443"].map(|target| Target::parse(target).unwrap());
        let first = passing.begin(&[1; 32], &here);
        assert!(first.is_some());
        assert!(passing.begin(&[1; 32], &here).is_none());
        assert!(passing.begin(&[2; 32], &here).is_some());
        assert!(passing.begin(&[1; 32], &there).is_some());
        drop(first);
        assert!(passing.lock().is_empty());
        assert!(passing.begin(&[1; 32], &here).is_some());
    }
}
