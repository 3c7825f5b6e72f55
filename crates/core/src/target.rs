use std::borrow::{Borrow, Cow};
use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::Outcome;

/// The longest host name, in bytes of its ASCII form without the final dot: what a SOCKS5 request can hold (RFC 1928
/// section 5) and the tunnel carries. DNS ends at 253 (RFC 1035 section 2.3.4); whether there is anything behind a
/// longer one is for whoever looks it up to say.
const MAX_NAME: usize = 255;
/// The longest label of one.
const MAX_LABEL: usize = 63;

/// A host name in its one canonical form: ASCII, lower case, no trailing dot, and never an address in disguise.
///
/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

impl HostName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A table keyed by names can be asked about a part of one.
impl Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host: a name, which is resolved where it means something, or an address.
///
/// What is equal here is dialled the same way: names are in their canonical form and an IPv4-mapped IPv6 address
/// is its IPv4 address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name to be resolved by the client.
    Name(HostName),
    /// An address.
    Ip(IpAddr),
}

impl Host {
    /// Reads a host as a user writes it: a name (any case, one trailing dot, Unicode), an IPv4 address in dotted
    /// decimal, or an IPv6 address with or without brackets.
    ///
    /// # Errors
    ///
    /// [`InvalidTarget`] for what is none, and for the odd spellings of addresses that some resolvers take for one
    /// (`0x7f.1`, `2130706433`, `0177.0.0.1`, `127.1`, zone identifiers): a name that might be dialled as an
    /// address that no rule has seen is no name.
    pub fn parse(text: &str) -> Result<Self, InvalidTarget> {
        if let Some(inside) = text.strip_prefix('[') {
            let inside = inside.strip_suffix(']').ok_or(InvalidTarget::Host)?;
            return inside.parse::<Ipv6Addr>().map(Into::into).map_err(|_| InvalidTarget::Host);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        let name = canonical_name(text)?;
        // Full-width digits become ASCII ones: the result may be an address after all.
        if let Ok(address) = name.parse::<Ipv4Addr>() {
            return Ok(Self::Ip(address.into()));
        }
        if is_numeric(name.rsplit('.').next().unwrap_or_default()) {
            return Err(InvalidTarget::OddAddress);
        }
        Ok(Self::Name(HostName(name.into())))
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical())
    }
}

impl From<Ipv4Addr> for Host {
    fn from(address: Ipv4Addr) -> Self {
        Self::Ip(address.into())
    }
}

impl From<Ipv6Addr> for Host {
    fn from(address: Ipv6Addr) -> Self {
        IpAddr::V6(address).into()
    }
}

impl FromStr for Host {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        Self::parse(text)
    }
}

/// As in a URL: an IPv6 address without brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// Whether a resolver might read a last label as a number: all digits, or `0x` and hexadecimal digits (the WHATWG
/// rule for "ends in a number").
fn is_numeric(label: &str) -> bool {
    let hex = label.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hex || (!label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The ASCII form of a name (UTS 46, RFC 5891), lower case, without its final dot.
fn canonical_name(text: &str) -> Result<Cow<'_, str>, InvalidTarget> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
    let name = if text.bytes().all(plain) && !text.starts_with("xn--") && !text.contains(".xn--") {
        Cow::Borrowed(text)
    } else {
        let name = idna::domain_to_ascii_cow(text.as_bytes(), idna::AsciiDenyList::URL)
            .map_err(|_| InvalidTarget::Host)?;
        // Full stops of other scripts become dots.
        match name.strip_suffix('.') {
            Some(name) => Cow::Owned(name.to_owned()),
            None => name,
        }
    };
    let labels_fit = name.split('.').all(|label| (1..=MAX_LABEL).contains(&label.len()));
    if labels_fit && name.len() <= MAX_NAME { Ok(name) } else { Err(InvalidTarget::Host) }
}

/// Where a dial goes: a host and a port other than 0; or, of an association, [nowhere yet](Target::UNSPECIFIED).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    host: Host,
    port: u16,
}

impl Target {
    /// What a dial for an [association itself](crate::Dial::associate) has in place of a destination: the unspecified
    /// address and port 0, which no other target has.
    pub const UNSPECIFIED: Self = Self { host: Host::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port: 0 };

    /// Joins a host and a port.
    ///
    /// # Errors
    ///
    /// [`InvalidTarget::Port`] for port 0, which nothing can be dialled at.
    pub fn new(host: Host, port: u16) -> Result<Self, InvalidTarget> {
        if port == 0 { Err(InvalidTarget::Port) } else { Ok(Self { host, port }) }
    }

    /// Reads `host:port`, an IPv6 address in brackets. The port is digits only, without sign or leading zeros.
    ///
    /// # Errors
    ///
    /// [`InvalidTarget`] where either part is not valid.
    pub fn parse(text: &str) -> Result<Self, InvalidTarget> {
        let (host, port) = text.rsplit_once(':').ok_or(InvalidTarget::Port)?;
        if host.contains(':') && !host.starts_with('[') {
            return Err(InvalidTarget::Host);
        }
        Self::new(Host::parse(host)?, parse_port(port)?)
    }

    /// The host.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// The port; never 0, but of [`Target::UNSPECIFIED`].
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether this is [`Target::UNSPECIFIED`].
    #[must_use]
    pub const fn is_unspecified(&self) -> bool {
        self.port == 0
    }
}

fn parse_port(text: &str) -> Result<u16, InvalidTarget> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || text.starts_with('0') {
        return Err(InvalidTarget::Port);
    }
    text.parse().map_err(|_| InvalidTarget::Port)
}

impl TryFrom<SocketAddr> for Target {
    type Error = InvalidTarget;

    fn try_from(address: SocketAddr) -> Result<Self, InvalidTarget> {
        Self::new(address.ip().into(), address.port())
    }
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        Self::parse(text)
    }
}

/// `host:port`, an IPv6 address in brackets.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// Why a text is no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidTarget {
    /// Neither a name nor an address.
    Host,
    /// A spelling that some resolvers take for an address and others for a name.
    OddAddress,
    /// No port, or none from 1 to 65535 in plain decimal.
    Port,
}

impl fmt::Display for InvalidTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "not a host name or address",
            Self::OddAddress => "an address must be written in full, in decimal",
            Self::Port => "not a port from 1 to 65535",
        })
    }
}

impl Error for InvalidTarget {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&Outcome::InvalidTarget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, InvalidTarget> {
        Host::parse(text).map(|host| host.to_string())
    }

    #[test]
    fn a2_case_and_one_final_dot_are_ignored() {
        assert_eq!(shown("EVIL.example."), Ok("evil.example".into()));
        assert_eq!(shown("evil.example.."), Err(InvalidTarget::Host));
        assert_eq!(shown("evil..example"), Err(InvalidTarget::Host));
    }

    #[test]
    fn a3_brackets_and_zones_are_addresses_or_nothing() {
        assert_eq!(shown("[::1]"), Ok("::1".into()));
        assert_eq!(shown("[127.0.0.1]"), Err(InvalidTarget::Host));
        assert_eq!(shown("[fe80::1%25lo]"), Err(InvalidTarget::Host));
        assert_eq!(shown("::1%lo"), Err(InvalidTarget::Host));
    }

    #[test]
    fn a4_odd_spellings_of_addresses_are_refused_or_judged_as_dialled() {
        for odd in ["0177.0.0.1", "2130706433", "127.1", "0x7f.1", "00000127.0.0.1", "1.2.3.0x4", "a.0x"] {
            assert_eq!(shown(odd), Err(InvalidTarget::OddAddress), "{odd}");
        }
        assert_eq!(shown("１２７.0.0.1"), Ok("127.0.0.1".into()));
    }

    #[test]
    fn a5_a_mapped_address_is_its_ipv4_address() {
        assert_eq!(Host::parse("::ffff:127.0.0.1"), Host::parse("127.0.0.1"));
        assert_eq!(Host::parse("::ffff:7f00:1"), Host::parse("127.0.0.1"));
    }

    #[test]
    fn a8_names_have_one_form_and_disguised_ascii_is_refused() {
        assert_eq!(shown("bücher.example"), Ok("xn--bcher-kva.example".into()));
        assert_eq!(shown("XN--bcher-kva.example"), Ok("xn--bcher-kva.example".into()));
        assert_eq!(shown("xn--example-.com"), Err(InvalidTarget::Host));
    }

    #[test]
    fn a10_ports_are_plain_decimal() {
        for bad in ["a:0", "a:65536", "a:65979", "a:+443", "a:0443", "a:", "a", "a: 1"] {
            assert_eq!(Target::parse(bad), Err(InvalidTarget::Port), "{bad}");
        }
        assert_eq!(Target::parse("a:65535").map(|target| target.port()), Ok(65535));
    }

    #[test]
    fn forbidden_characters_and_lengths_are_no_names() {
        let long = "a".repeat(64);
        for bad in ["", ".", "a b", "a/b", "u@h", "a\0b", "a\rb", "a%b", "a:b", "::1::", &long] {
            assert!(Host::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Host::parse("_srv.host_1.lan").is_ok());
    }

    #[test]
    fn s7_a_name_may_be_as_long_as_a_request_of_socks5_can_hold() {
        let longest = format!("{}.{}abc", "a".repeat(63), "b.".repeat(94));
        assert_eq!(longest.len(), 255);
        assert_eq!(shown(&longest), Ok(longest.clone()));
        assert_eq!(shown(&format!("{longest}.")), Ok(longest.clone()));
        assert_eq!(shown(&format!("{longest}c")), Err(InvalidTarget::Host));
    }

    #[test]
    fn a_target_is_shown_as_it_is_read() {
        for text in ["printer.lan:631", "192.0.2.1:22", "[2001:db8::1]:443"] {
            assert_eq!(Target::parse(text).map(|target| target.to_string()), Ok(text.into()));
        }
        assert_eq!(Target::parse("2001:db8::1:443"), Err(InvalidTarget::Host));
    }
}
