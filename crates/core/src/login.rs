use std::fmt;
use std::net::SocketAddr;

use crate::Credentials;

/// Which front a user came through: a label, closed enough for a metric, open to fronts written elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Front(&'static str);

impl Front {
    /// The HTTP proxy.
    pub const HTTP: Self = Self("http");
    /// The SOCKS5 proxy.
    pub const SOCKS5: Self = Self("socks5");
    /// TLS passed through by its server name.
    pub const SNI: Self = Self("sni");
    /// A fixed port that a client asked for.
    pub const PORT: Self = Self("port");

    /// The longest name of a front, in bytes: what the tunnel can carry.
    pub const MAX_NAME: usize = 64;

    /// A front of one's own. The name appears in logs and metrics, hence `'static`: their number is bounded. One that is
    /// longer than [`MAX_NAME`](Self::MAX_NAME) is cut to that: it travels with every dial, which would fail.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self(name.split_at(name.floor_char_boundary(Self::MAX_NAME)).0)
    }

    /// The name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The question a front asks first: may this user dial at all, and as whom?
///
/// Answered by a dial service that is bound to an [`Identity`](crate::Identity), so that no front can dial for a
/// user it has not asked about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Login {
    /// What the user presented; `None` where the protocol carried nothing.
    pub credentials: Option<Credentials>,
    /// The socket address the user connects from. Never what a header claims.
    pub source: SocketAddr,
    /// The front that asks.
    pub front: Front,
}

impl Login {
    /// The login of a user who is connected from `source` and presented `credentials`, if anything.
    #[must_use]
    pub const fn new(credentials: Option<Credentials>, source: SocketAddr, front: Front) -> Self {
        Self { credentials, source, front }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_more_than_64_bytes_is_cut_between_two_characters() {
        for (name, length) in [("", 0), ("printer", 7)] {
            assert_eq!(Front::new(name).as_str().len(), length);
        }
        for (more, length) in [(63, 63), (64, 64), (65, 64), (200, 64)] {
            assert_eq!(Front::new("f".repeat(more).leak()).as_str().len(), length);
        }
        let accented = format!("{}é", "f".repeat(63));
        assert_eq!(Front::new(accented.leak()).as_str(), "f".repeat(63));
    }
}
