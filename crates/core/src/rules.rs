use std::fmt;
use std::num::NonZeroU32;

/// The version of a gateway's rules, as opens and clients name it.
///
/// A rule on a range of addresses cannot judge a name before the client has resolved it. A policy layer that lets
/// such a dial through leaves this in [`Dial::rules`](crate::Dial::rules); the terminal service names
/// the version in the open, and the client judges every address by the rules of that version before it dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RulesVersion(NonZeroU32);

impl RulesVersion {
    /// A version; `None` for 0, which on the wire means that no rules are left to check.
    #[must_use]
    pub const fn new(version: u32) -> Option<Self> {
        match NonZeroU32::new(version) {
            Some(version) => Some(Self(version)),
            None => None,
        }
    }

    /// The number, for the wire; never 0.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl From<NonZeroU32> for RulesVersion {
    fn from(version: NonZeroU32) -> Self {
        Self(version)
    }
}

impl fmt::Display for RulesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}
