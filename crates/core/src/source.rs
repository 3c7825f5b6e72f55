use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The network a user's address counts as where a limit goes by source: an IPv4 address (/32), or the /64 of an
/// IPv6 address, since one host freely chooses the other 64 bits.
///
/// An IPv4-mapped IPv6 address, as listeners for both families see them, counts as its IPv4 address.
///
/// ```
/// use anyproxy_core::SourcePrefix;
///
/// let one: std::net::SocketAddr = "[2001:db8::1]:4000".parse()?;
/// let other: std::net::SocketAddr = "[2001:db8::ffff:2]:4001".parse()?;
/// assert_eq!(SourcePrefix::from(one), SourcePrefix::from(other));
/// assert_eq!(SourcePrefix::from(one).to_string(), "2001:db8::/64");
/// # Ok::<_, std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourcePrefix(Prefix);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Prefix {
    V4(Ipv4Addr),
    /// The upper 64 bits.
    V6(u64),
}

impl From<IpAddr> for SourcePrefix {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => Prefix::V4(address),
            IpAddr::V6(address) => Prefix::V6((address.to_bits() >> 64) as u64),
        })
    }
}

impl From<SocketAddr> for SourcePrefix {
    fn from(address: SocketAddr) -> Self {
        address.ip().into()
    }
}

impl fmt::Display for SourcePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Prefix::V4(address) => write!(f, "{address}/32"),
            Prefix::V6(upper) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(upper) << 64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(address: &str) -> SourcePrefix {
        address.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_address() {
        assert_eq!(prefix("::ffff:192.0.2.1"), prefix("192.0.2.1"));
        assert_eq!(prefix("192.0.2.1").to_string(), "192.0.2.1/32");
    }

    #[test]
    fn neighbours_in_ipv4_and_networks_in_ipv6_differ() {
        assert_ne!(prefix("192.0.2.1"), prefix("192.0.2.2"));
        assert_ne!(prefix("2001:db8:0:1::1"), prefix("2001:db8:0:2::1"));
        assert_eq!(prefix("2001:db8:0:1::1"), prefix("2001:db8:0:1:ffff::"));
    }
}
