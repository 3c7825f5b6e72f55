use std::error::Error;
use std::fmt;
use std::time::Duration;

use anyproxy_core::{Outcome, Refusal};

/// A login that [`Verify`](crate::Verify) did not accept, or accepts no longer.
///
/// Users see [`Outcome::LoginRequired`] whether credentials were missing, wrong or revoked; those who count attempts can
/// ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected(Reason);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Missing,
    Wrong,
    Revoked,
    Busy,
    Interrupted,
}

impl Rejected {
    pub(crate) const MISSING: Self = Self(Reason::Missing);
    pub(crate) const WRONG: Self = Self(Reason::Wrong);
    pub(crate) const REVOKED: Self = Self(Reason::Revoked);
    pub(crate) const BUSY: Self = Self(Reason::Busy);
    pub(crate) const INTERRUPTED: Self = Self(Reason::Interrupted);

    /// Whether there were no credentials: the ordinary first step of a browser.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.0 == Reason::Missing
    }

    /// Whether credentials were presented and are nobody's.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.0 == Reason::Wrong
    }

    /// Whether they were right once: the account has changed since, and the dial came, or went on, after that.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.0 == Reason::Revoked
    }

    /// Whether too many logins wait to be hashed; nothing is known about the credentials.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.0 == Reason::Busy
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Reason::Missing => "no credentials",
            Reason::Wrong => "wrong credentials",
            Reason::Revoked => "the account was revoked",
            Reason::Busy => "too many logins wait to be verified",
            Reason::Interrupted => "the verification was interrupted",
        })
    }
}

impl Error for Rejected {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        const LAYER: &str = "auth";
        const BUSY: Outcome = Outcome::Overloaded { retry_after: Duration::from_secs(1) };
        Some(match self.0 {
            Reason::Missing | Reason::Wrong | Reason::Revoked => {
                const { &Refusal::new(LAYER, Outcome::LoginRequired) }
            }
            Reason::Busy => const { &Refusal::new(LAYER, BUSY) },
            Reason::Interrupted => const { &Refusal::new(LAYER, Outcome::Internal) },
        })
    }
}
