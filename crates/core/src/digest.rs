use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::OnceLock;

/// 64 bits that stand for a name or an address where state is kept for it: quick to compare, to copy and to look up.
///
/// Under keys of this process that nobody knows, so nobody can make two meet; by chance two of a million do in one of
/// 40 million runs, and then share a limit. It means nothing outside of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(u64);

/// A map by digest, which hashes nothing once more.
pub type DigestMap<V> = HashMap<Digest, V, BuildHasherDefault<AsItIs>>;

impl Digest {
    /// The digest of `value`.
    #[must_use]
    pub fn of(value: &impl Hash) -> Self {
        static KEYS: OnceLock<RandomState> = OnceLock::new();
        Self(KEYS.get_or_init(RandomState::new).hash_one(value))
    }

    /// The bits.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// The hasher of a [`DigestMap`]: the hash of a digest is the digest.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsItIs(u64);

impl Hasher for AsItIs {
    /// Of anything else than a digest: not good, but right.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_equal_digests_and_are_found_by_them() {
        let mut map = DigestMap::default();
        for user in 0..1_000 {
            map.insert(Digest::of(&("user", user)), user);
        }
        assert!((0..1_000).all(|user| map.get(&Digest::of(&("user", user))) == Some(&user)));
        assert_ne!(Digest::of(&"alice"), Digest::of(&"bob"));
    }
}
