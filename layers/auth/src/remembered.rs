use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use anyproxy_core::Credentials;
use aws_lc_rs::hmac;
use tokio::time::Instant;

use crate::{PasswordHash, random_key};

/// The most logins remembered in a generation; there are two. 160 KiB in all, for the 4,096 users seen last.
const GENERATION: usize = 2048;
/// How long a login that nobody repeats is remembered: at least this, at most twice.
const LIFETIME: Duration = Duration::from_secs(300);

/// Logins that have been verified against a hash, so that the next one need not be.
///
/// What is kept is a digest, under a random key of this process, of the password *and the hash it was verified
/// against*. Nothing here brings a password back; and a verdict is found again only while the account still has that
/// very hash, so that what a reload takes away is gone, and what it leaves alone needs no new hashing.
pub(crate) struct Remembered {
    key: hmac::Key,
    digests: Mutex<Generations>,
}

/// Two generations stand in for a list by last use: when the young one is full or old enough it becomes the old one,
/// and what is asked for again moves back.
struct Generations {
    young: HashSet<Digest>,
    old: HashSet<Digest>,
    turned: Instant,
}

type Digest = [u8; 32];

impl Remembered {
    pub(crate) fn new() -> Self {
        let digests = Generations { young: HashSet::new(), old: HashSet::new(), turned: Instant::now() };
        Self { key: random_key(), digests: Mutex::new(digests) }
    }

    /// The digest under which a right login is remembered.
    pub(crate) fn digest(&self, credentials: &Credentials, hash: &PasswordHash) -> Digest {
        let mut digest = hmac::Context::with_key(&self.key);
        // A hash is printable ASCII and a name no longer than its length says: no two logins read the same.
        digest.update(hash.as_str().as_bytes());
        digest.update(&[0]);
        digest.update(&(credentials.username.len() as u64).to_be_bytes());
        digest.update(credentials.username.as_bytes());
        digest.update(credentials.password.expose_secret().as_bytes());
        digest.sign().as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes")
    }

    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        let mut digests = self.digests.lock().expect("nothing panics under this lock");
        digests.turn_if_due(Instant::now());
        if digests.young.contains(digest) {
            return true;
        }
        let repeated = digests.old.remove(digest);
        if repeated {
            digests.insert(*digest);
        }
        repeated
    }

    pub(crate) fn insert(&self, digest: Digest) {
        let mut digests = self.digests.lock().expect("nothing panics under this lock");
        digests.turn_if_due(Instant::now());
        digests.insert(digest);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let digests = self.digests.lock().unwrap();
        digests.young.len() + digests.old.len()
    }
}

impl Generations {
    fn insert(&mut self, digest: Digest) {
        if self.young.len() >= GENERATION {
            self.turn();
        }
        self.young.insert(digest);
    }

    fn turn_if_due(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.turned);
        if age >= LIFETIME {
            self.turn();
            self.turned = now;
        }
        if age >= 2 * LIFETIME {
            self.old.clear();
        }
    }

    fn turn(&mut self) {
        std::mem::swap(&mut self.young, &mut self.old);
        self.young.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u32) -> Digest {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&n.to_be_bytes());
        digest
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_is_forgotten_when_nobody_repeats_it() {
        let remembered = Remembered::new();
        remembered.insert(digest(1));
        remembered.insert(digest(2));
        for _ in 0..4 {
            tokio::time::advance(LIFETIME).await;
            assert!(remembered.contains(&digest(1)));
        }
        assert!(!remembered.contains(&digest(2)));
        tokio::time::advance(2 * LIFETIME).await;
        assert!(!remembered.contains(&digest(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_two_generations_are_remembered_and_those_in_use_stay() {
        let remembered = Remembered::new();
        for n in 0..100_000 {
            remembered.insert(digest(n));
            assert!(remembered.contains(&digest(n)));
            if n % 1000 == 0 {
                assert!(remembered.contains(&digest(0)));
            }
        }
        assert!(remembered.len() <= 2 * GENERATION);
        assert!(!remembered.contains(&digest(1)));
    }
}
