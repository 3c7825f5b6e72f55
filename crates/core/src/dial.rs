use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Digest, Front, Identity, Journal, RulesMark, SourcePrefix, Target};

/// The flows of one user socket: udp dials of the same association leave from one socket at the far end, so that
/// peers see one source port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Association(NonZeroU64);

impl Association {
    /// A number no other association of this process has.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "two associations are never equal, so none is a default")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // It would take centuries to come round to zero.
        Self(NonZeroU64::new(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap_or(NonZeroU64::MAX))
    }

    /// The number, for the wire.
    #[must_use]
    pub const fn id(self) -> u64 {
        self.0.get()
    }
}

/// What travels between user and target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// A stream of bytes.
    Tcp,
    /// Datagrams to one destination of an association, or the [association itself](Dial::associate); on the stream, each
    /// behind a `u16` length ([`Datagrams`](crate::Datagrams)).
    Udp(Association),
}

impl Network {
    /// `tcp` or `udp`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp(_) => "udp",
        }
    }

    /// Whether this is [`Network::Udp`].
    #[must_use]
    pub const fn is_udp(self) -> bool {
        matches!(self, Self::Udp(_))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Marks a dial, as one of its [extensions](Dial::extensions), that only one client may serve, whatever its group: one of
/// a port that this client asked for, or what a layer of your own has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnlyClient {
    /// Its client id.
    pub id: Arc<str>,
    /// The account it logged in with. Once it is gone another account's client may go by its id, and is another client.
    pub account: Arc<str>,
}

/// One wish of a user: a stream to a target.
///
/// The request type of every policy layer and of the terminal service. Cloning shares the [`Journal`]: a second
/// try is still the same dial.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Stream or datagrams.
    pub network: Network,
    /// Where to.
    pub target: Target,
    /// The socket address of the user.
    pub source: SocketAddr,
    /// The front that asks.
    pub front: Front,
    /// For whom; set by whoever verified the login.
    pub identity: Identity,
    /// The rules that the far end has still to apply, left by the policy that could not judge alone. A field, not an
    /// extension: with rules on ranges every dial to a name has it, and extensions cost allocations at every clone.
    pub rules: Option<RulesMark>,
    /// What becomes known about the dial on its way.
    pub journal: Journal,
    /// A note of the front to a layer of its own further down, which knows it by its type. A field, not an extension:
    /// every dial of such a front has one, and it is one count to clone.
    pub note: Option<Arc<dyn Any + Send + Sync>>,
    /// Whatever layers of your own want to tell each other, and [`OnlyClient`].
    pub extensions: http::Extensions,
}

impl Dial {
    /// A dial for a stream of bytes, for nobody in particular.
    #[must_use]
    pub fn tcp(target: Target, source: SocketAddr, front: Front) -> Self {
        Self::new(Network::Tcp, target, source, front)
    }

    /// A dial for datagrams to one destination of `association`, for nobody in particular.
    #[must_use]
    pub fn udp(association: Association, target: Target, source: SocketAddr, front: Front) -> Self {
        Self::new(Network::Udp(association), target, source, front)
    }

    /// A dial for `association` itself, for nobody in particular: whether there may be one, and at which client. Its
    /// target is [`Target::UNSPECIFIED`], and nothing is carried on its stream; where that is served, the flows of the
    /// association follow.
    #[must_use]
    pub fn associate(association: Association, source: SocketAddr, front: Front) -> Self {
        Self::new(Network::Udp(association), Target::UNSPECIFIED, source, front)
    }

    /// Who is behind it, where each user has a share of something: a user, which is a name in a
    /// [group](Identity::group), since the same name in another may be another person; or, of those who were not asked who
    /// they are, the network they come from. All of them as one would let any of them use up what the others have.
    #[must_use]
    pub fn who(&self) -> Digest {
        match self.identity.user() {
            Some(_) => self.identity.digest(),
            None => Digest::of(&SourcePrefix::from(self.source)),
        }
    }

    fn new(network: Network, target: Target, source: SocketAddr, front: Front) -> Self {
        Self {
            network,
            target,
            source,
            front,
            identity: Identity::ANONYMOUS,
            rules: None,
            journal: Journal::new(),
            note: None,
            extensions: http::Extensions::new(),
        }
    }
}
