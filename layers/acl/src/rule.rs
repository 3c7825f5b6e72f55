use std::error::Error;
use std::fmt;
use std::ops::BitOr;
use std::str::FromStr;
use std::sync::Arc;

use anyproxy_core::Network;

use crate::{Pattern, Question};

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Let it pass.
    Allow,
    /// Refuse it.
    Deny,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// A set of networks, never empty.
///
/// ```
/// use anyproxy_acl::Networks;
///
/// assert_eq!("tcp".parse::<Networks>()? | Networks::UDP, Networks::ALL);
/// # Ok::<_, anyproxy_acl::UnknownNetwork>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Networks(u8);

impl Networks {
    /// Streams of bytes.
    pub const TCP: Self = Self(1);
    /// Datagrams.
    pub const UDP: Self = Self(2);
    /// Both.
    pub const ALL: Self = Self(3);

    /// Whether a dial over `network` is meant.
    #[must_use]
    pub const fn contains(self, network: Network) -> bool {
        let bit = if network.is_udp() { Self::UDP.0 } else { Self::TCP.0 };
        self.0 & bit != 0
    }

    /// Those that are not in the set, if any.
    pub(crate) fn others(self) -> Option<Self> {
        Self::from_bits(Self::ALL.0 & !self.0)
    }

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    pub(crate) fn from_bits(bits: u8) -> Option<Self> {
        (1..=Self::ALL.0).contains(&bits).then_some(Self(bits))
    }
}

impl BitOr for Networks {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// `tcp` or `udp`, as in a file.
impl FromStr for Networks {
    type Err = UnknownNetwork;

    fn from_str(text: &str) -> Result<Self, UnknownNetwork> {
        match text {
            "tcp" => Ok(Self::TCP),
            "udp" => Ok(Self::UDP),
            _ => Err(UnknownNetwork(())),
        }
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::TCP => "tcp",
            Self::UDP => "udp",
            _ => "tcp, udp",
        })
    }
}

/// A network is `tcp` or `udp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownNetwork(());

impl fmt::Display for UnknownNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a network is `tcp` or `udp`")
    }
}

impl Error for UnknownNetwork {}

/// Where a rule was written, for [`explain`](crate::Policy::explain) and the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file, or what else rules come from.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// One rule: an action, the targets it speaks of, and for whom.
///
/// It matches a question when *one* of its patterns matches the target and *every* condition holds: the user is
/// one of its users, holds one of its groups, came through one of its fronts, over one of its networks. A condition
/// that was not given, or given as an empty list, always holds. A rule without patterns matches nothing.
///
/// ```
/// use anyproxy_acl::{Networks, Pattern, Rule};
///
/// let rule = Rule::deny([Pattern::parse("*.internal:22")?]).users(["alice"]).networks(Networks::TCP);
/// # Ok::<_, anyproxy_acl::InvalidPattern>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub(crate) action: Action,
    pub(crate) patterns: Box<[Pattern]>,
    pub(crate) condition: Condition,
    pub(crate) origin: Option<Origin>,
}

impl Rule {
    /// A rule for everybody.
    pub fn new(action: Action, patterns: impl IntoIterator<Item = Pattern>) -> Self {
        let patterns = patterns.into_iter().collect();
        Self { action, patterns, condition: Condition::default(), origin: None }
    }

    /// A rule that lets these targets pass.
    pub fn allow(patterns: impl IntoIterator<Item = Pattern>) -> Self {
        Self::new(Action::Allow, patterns)
    }

    /// A rule that refuses these targets.
    pub fn deny(patterns: impl IntoIterator<Item = Pattern>) -> Self {
        Self::new(Action::Deny, patterns)
    }

    /// Only for these users.
    #[must_use]
    pub fn users<T: Into<Arc<str>>>(mut self, users: impl IntoIterator<Item = T>) -> Self {
        self.condition.users = words(users);
        self
    }

    /// Only for users who hold one of these groups.
    #[must_use]
    pub fn groups<T: Into<Arc<str>>>(mut self, groups: impl IntoIterator<Item = T>) -> Self {
        self.condition.groups = words(groups);
        self
    }

    /// Only for users of these fronts (`http`, `socks5`, …).
    #[must_use]
    pub fn fronts<T: Into<Arc<str>>>(mut self, fronts: impl IntoIterator<Item = T>) -> Self {
        self.condition.fronts = words(fronts);
        self
    }

    /// Only over these networks.
    #[must_use]
    pub fn networks(mut self, networks: Networks) -> Self {
        self.condition.networks = networks;
        self
    }

    /// Written at this place.
    #[must_use]
    pub fn at(mut self, origin: impl Into<Option<Origin>>) -> Self {
        self.origin = origin.into();
        self
    }
}

/// For whom a rule is; word lists are sorted and without repeats.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Condition {
    pub(crate) users: Box<[Arc<str>]>,
    pub(crate) groups: Box<[Arc<str>]>,
    pub(crate) fronts: Box<[Arc<str>]>,
    pub(crate) networks: Networks,
}

impl Condition {
    pub(crate) fn holds(&self, question: &Question<'_>) -> bool {
        let identity = question.identity;
        self.networks.contains(question.network)
            && (self.users.is_empty() || identity.user().is_some_and(|user| contains(&self.users, user)))
            && (self.groups.is_empty() || identity.groups().any(|group| contains(&self.groups, group)))
            && (self.fronts.is_empty() || contains(&self.fronts, question.front))
    }
}

impl Default for Condition {
    fn default() -> Self {
        let none = || Box::from([]);
        Self { users: none(), groups: none(), fronts: none(), networks: Networks::ALL }
    }
}

pub(crate) fn words<T: Into<Arc<str>>>(words: impl IntoIterator<Item = T>) -> Box<[Arc<str>]> {
    let mut words: Vec<Arc<str>> = words.into_iter().map(Into::into).collect();
    words.sort_unstable();
    words.dedup();
    words.into()
}

fn contains(words: &[Arc<str>], word: &str) -> bool {
    words.binary_search_by(|held| (**held).cmp(word)).is_ok()
}
