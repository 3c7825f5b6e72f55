use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

/// The version of a gateway's rules, as opens and clients name it.
///
/// A rule on a range of addresses cannot judge a name before the client has resolved it. A policy layer that lets
/// such a dial through leaves this in [`Dial::rules`](crate::Dial::rules), as a [`RulesMark`]; the terminal service
/// names the version in the open, and the client judges every address by the rules of that version before it dials.
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

/// Who leaves a [`RulesMark`]: the layers that apply one policy, and whatever policy takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Judge(NonZeroU32);

impl Judge {
    /// One that is none of the others of this process.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "two judges are never equal, so none is a default")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        // Made with a stack, not with a dial: they do not come round to zero.
        Self(NonZeroU32::new(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap_or(NonZeroU32::MAX))
    }
}

/// What a policy leaves on a dial whose judgement the far end has to finish: by which rules, and who asks for it.
///
/// Who judges a dial again, since it has waited, knows by it which mark to replace: its own, of whatever version, and
/// no other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RulesMark {
    version: RulesVersion,
    judge: Judge,
}

impl RulesMark {
    /// The mark of `judge`: the far end is to apply the rules of `version`.
    #[must_use]
    pub const fn new(version: RulesVersion, judge: Judge) -> Self {
        Self { version, judge }
    }

    /// The rules to apply.
    #[must_use]
    pub const fn version(self) -> RulesVersion {
        self.version
    }

    /// Who left it.
    #[must_use]
    pub const fn judge(self) -> Judge {
        self.judge
    }
}
