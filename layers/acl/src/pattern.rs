use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use anyproxy_core::{Host, HostName, InvalidTarget, Target};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Which targets a rule speaks of.
///
/// | text | matches |
/// |---|---|
/// | `*`, `.*` | everything |
/// | `db.example` | that name |
/// | `*.example` | every name below `example`, at any depth, but not `example` itself |
/// | `10.1.2.3`, `::1` | that address |
/// | `10.0.0.0/8`, `fe80::/10` | the addresses of that range |
///
/// each with `:port`, `:from-to` or `:*` behind it; an IPv6 address stands in brackets then: `[::1]:22`,
/// `[fe80::]/10:22`. Names are compared in their canonical form ([`Host`]); an IPv4-mapped IPv6 address or range is
/// the IPv4 one. Bits of a range behind its prefix are ignored. [`Display`](fmt::Display) writes what
/// [`parse`](Self::parse) reads.
///
/// ```
/// use anyproxy_acl::Pattern;
///
/// let pattern = Pattern::parse("*.Internal:8000-8080")?;
/// assert!(pattern.matches(&"git.internal:8080".parse()?));
/// assert!(!pattern.matches(&"internal:8080".parse()?));
/// assert_eq!(pattern.to_string(), "*.internal:8000-8080");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    pub(crate) hosts: Hosts,
    pub(crate) ports: Ports,
}

/// The hosts of a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Hosts {
    Any,
    Name(HostName),
    Below(HostName),
    Range(IpNet),
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ports {
    pub(crate) from: u16,
    pub(crate) to: u16,
}

// === impl Pattern ===

impl Pattern {
    /// The pattern that matches everything.
    pub const ANY: Self = Self { hosts: Hosts::Any, ports: Ports::ALL };

    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// [`InvalidPattern`] says what is wrong, with a suggestion where there is one.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        Self::read(text).map_err(|problem| InvalidPattern { problem, suggestion: suggest(text) })
    }

    fn read(text: &str) -> Result<Self, Problem> {
        let (host, prefix, ports) = split(text)?;
        let hosts = match prefix {
            Some(prefix) => Hosts::range(host, prefix)?,
            None => Hosts::parse(host)?,
        };
        Ok(Self { hosts, ports: ports.map_or(Ok(Ports::ALL), Ports::parse)? })
    }

    /// Whether the target, as it is written, is one of these. A name is not resolved for it: it is in no range.
    #[must_use]
    pub fn matches(&self, target: &Target) -> bool {
        self.ports.contains(target.port())
            && match target.host() {
                Host::Name(name) => self.hosts.has_name(name),
                Host::Ip(address) => matches!(self.hosts, Hosts::Any) || self.hosts.has_address(*address),
            }
    }

    /// Whether the pattern speaks of addresses, so that a name must be resolved before it can be said to match.
    #[must_use]
    pub const fn is_range(&self) -> bool {
        matches!(self.hosts, Hosts::Range(_))
    }

    /// Whether the pattern speaks of every port.
    #[must_use]
    pub fn is_any_port(&self) -> bool {
        self.ports == Ports::ALL
    }

    /// Whether it speaks of this port.
    #[must_use]
    pub const fn has_port(&self, port: u16) -> bool {
        self.ports.contains(port)
    }

    /// Whether the pattern speaks of every host, on whichever ports.
    #[must_use]
    pub const fn is_any_host(&self) -> bool {
        matches!(self.hosts, Hosts::Any)
    }
}

/// Splits `host[/prefix][:ports]`, the brackets of an IPv6 address taken off.
fn split(text: &str) -> Result<(&str, Option<&str>, Option<&str>), Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if text.contains("://") {
        return Err(Problem::Scheme);
    }
    if text.contains(['\\', '^', '$', '(', '|', '+']) || (text.contains(".*") && !text.starts_with(".*")) {
        return Err(Problem::Regex);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(Problem::Brackets)?;
        if host.parse::<Ipv6Addr>().is_err() {
            return Err(Problem::Brackets);
        }
        let (prefix, ports) = match rest.split_once(':') {
            Some((prefix, ports)) => (prefix, Some(ports)),
            None => (rest, None),
        };
        return match prefix.strip_prefix('/') {
            Some(prefix) => Ok((host, Some(prefix), ports)),
            None if prefix.is_empty() => Ok((host, None, ports)),
            None => Err(Problem::Brackets),
        };
    }
    let (host, ports) = match text.split_once(':') {
        Some((host, ports)) if !ports.contains(':') => (host, Some(ports)),
        // Two colons: an IPv6 address, or nothing.
        _ => (text, None),
    };
    match host.split_once('/') {
        Some((_, prefix)) if prefix.contains(':') => Err(Problem::Brackets),
        Some((host, prefix)) => Ok((host, Some(prefix), ports)),
        None => Ok((host, None, ports)),
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        Self::parse(text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port_follows = self.ports != Ports::ALL;
        match &self.hosts {
            Hosts::Any => f.write_str("*")?,
            Hosts::Name(name) => write!(f, "{name}")?,
            Hosts::Below(name) => write!(f, "*.{name}")?,
            Hosts::Range(range) => {
                match range.addr() {
                    IpAddr::V6(address) if port_follows => write!(f, "[{address}]")?,
                    address => write!(f, "{address}")?,
                }
                if range.prefix_len() < range.max_prefix_len() {
                    write!(f, "/{}", range.prefix_len())?;
                }
            }
        }
        if port_follows { write!(f, ":{}", self.ports) } else { Ok(()) }
    }
}

// === impl Hosts ===

impl Hosts {
    fn parse(text: &str) -> Result<Self, Problem> {
        if text == "*" || text == ".*" {
            return Ok(Self::Any);
        }
        if let Some(suffix) = text.strip_prefix("*.") {
            return match Self::parse_host(suffix)? {
                Host::Name(name) => Ok(Self::Below(name)),
                Host::Ip(_) => Err(Problem::Star),
            };
        }
        Ok(match Self::parse_host(text)? {
            Host::Name(name) => Self::Name(name),
            Host::Ip(address) => Self::Range(address.into()),
        })
    }

    fn parse_host(text: &str) -> Result<Host, Problem> {
        if text.contains('*') {
            return Err(Problem::Star);
        }
        if text.starts_with('.') {
            return Err(Problem::LeadingDot);
        }
        Host::parse(text).map_err(|error| match error {
            InvalidTarget::OddAddress => Problem::OddAddress,
            _ => Problem::Host,
        })
    }

    fn range(address: &str, prefix: &str) -> Result<Self, Problem> {
        let address: IpAddr = address.parse().map_err(|_| Problem::Range)?;
        let prefix = plain_decimal(prefix).and_then(|prefix| u8::try_from(prefix).ok());
        let range = prefix.and_then(|prefix| IpNet::new(address, prefix).ok()).ok_or(Problem::Prefix)?;
        Ok(Self::Range(canonical(range)))
    }

    /// Whether a rule on these hosts matches a name without knowing its addresses.
    pub(crate) fn has_name(&self, name: &HostName) -> bool {
        match self {
            Self::Any => true,
            Self::Name(own) => own == name,
            Self::Below(suffix) => {
                let front = name.as_str().strip_suffix(suffix.as_str());
                front.is_some_and(|front| front.ends_with('.'))
            }
            Self::Range(_) => false,
        }
    }

    /// Whether a range holds an address.
    pub(crate) fn has_address(&self, address: IpAddr) -> bool {
        matches!(self, Self::Range(range) if range.contains(&address))
    }
}

/// The range with its spare bits cleared; a range of IPv4-mapped addresses as one of IPv4.
fn canonical(range: IpNet) -> IpNet {
    if let IpNet::V6(six) = range
        && six.prefix_len() >= 96
        && let Some(four) = six.addr().to_ipv4_mapped()
    {
        return Ipv4Net::new_assert(four, six.prefix_len() - 96).trunc().into();
    }
    range.trunc()
}

// === impl Ports ===

impl Ports {
    pub(crate) const ALL: Self = Self { from: 0, to: u16::MAX };

    fn parse(text: &str) -> Result<Self, Problem> {
        if text == "*" {
            return Ok(Self::ALL);
        }
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let port = |text| plain_decimal(text).and_then(|port| u16::try_from(port).ok()).ok_or(Problem::Port);
        let (from, to) = (port(from)?, port(to)?);
        if from > to {
            return Err(Problem::PortOrder);
        }
        // No target has port 0; a rule for it alone is a mistake.
        if to == 0 { Err(Problem::Port) } else { Ok(Self { from, to }) }
    }

    pub(crate) const fn contains(self, port: u16) -> bool {
        self.from <= port && port <= self.to
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to { write!(f, "{}", self.from) } else { write!(f, "{}-{}", self.from, self.to) }
    }
}

/// Digits only, no leading zero: other spellings mean something else to other programs.
fn plain_decimal(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

// === impl InvalidPattern ===

/// A text that is no pattern: why, and what may have been meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPattern {
    problem: Problem,
    suggestion: Option<String>,
}

impl InvalidPattern {
    /// What is wrong with it.
    #[must_use]
    pub const fn problem(&self) -> Problem {
        self.problem
    }

    /// A valid pattern that may have been meant.
    #[must_use]
    pub fn suggestion(&self) -> Option<&str> {
        self.suggestion.as_deref()
    }
}

impl fmt::Display for InvalidPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.problem)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, " (did you mean `{suggestion}`?)"),
            None => Ok(()),
        }
    }
}

impl Error for InvalidPattern {}

/// What is wrong with a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// There is nothing.
    Empty,
    /// It begins with a scheme, as a URL does.
    Scheme,
    /// It is written as a regular expression.
    Regex,
    /// Neither a name nor an address.
    Host,
    /// An address in a spelling that programs disagree about, such as `0177.0.0.1` or `127.1`.
    OddAddress,
    /// A star in the middle.
    Star,
    /// It begins with a dot.
    LeadingDot,
    /// What stands before the `/` is no address.
    Range,
    /// What stands behind the `/` is no prefix length that such an address can have.
    Prefix,
    /// Brackets missing, or around something that is no IPv6 address.
    Brackets,
    /// Not a port from 1 to 65535 in plain decimal.
    Port,
    /// A range of ports that ends before it begins.
    PortOrder,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "an empty pattern matches nothing",
            Self::Scheme => "a pattern has no scheme and no path",
            Self::Regex => "a pattern is no regular expression",
            Self::Host => "neither a host name nor an address",
            Self::OddAddress => "an address must be written in full, in decimal",
            Self::Star => "a star stands alone or before the first dot of a name",
            Self::LeadingDot => "a name does not begin with a dot",
            Self::Range => "a prefix length must follow an address",
            Self::Prefix => "a prefix length is a number up to 32 for IPv4 and 128 for IPv6",
            Self::Brackets => "an IPv6 address, and nothing else, stands in brackets where a port follows",
            Self::Port => "a port is a number from 1 to 65535 without leading zeros",
            Self::PortOrder => "a range of ports ends before it begins",
        })
    }
}

/// What may have been meant: mends one usual mistake after the other and offers the first result that is a pattern.
fn suggest(text: &str) -> Option<String> {
    let text = text.trim();
    let bare = text.split_once("://").map_or(text, |(_, rest)| rest.split('/').next().unwrap_or(rest));
    let plain = bare.trim_start_matches('^').trim_end_matches('$').replace('\\', "");
    let plain = plain.strip_prefix(".*.").map_or_else(|| plain.clone(), |suffix| format!("*.{suffix}"));
    let below = if bare.starts_with('.') { format!("*{bare}") } else { String::new() };
    let candidates = [bare.to_owned(), plain, below, bracketed(bare), swapped(bare)];
    candidates.into_iter().find(|candidate| Pattern::read(candidate).is_ok())
}

/// `fe80::/10:22` and `[fe80::/10]:22` as they should be.
fn bracketed(text: &str) -> String {
    let text = text.replace(['[', ']'], "");
    match text.split_once('/') {
        Some((address, rest)) => format!("[{address}]/{rest}"),
        None => text,
    }
}

/// `host:90-80` with its ports in order.
fn swapped(text: &str) -> String {
    let swap =
        |(host, ports): (&str, &str)| ports.split_once('-').map(|(from, to)| format!("{host}:{to}-{from}"));
    text.rsplit_once(':').and_then(swap).unwrap_or_default()
}

// === conversions ===

impl From<IpNet> for Pattern {
    fn from(range: IpNet) -> Self {
        Self { hosts: Hosts::Range(canonical(range)), ports: Ports::ALL }
    }
}

impl From<Ipv4Net> for Pattern {
    fn from(range: Ipv4Net) -> Self {
        IpNet::from(range).into()
    }
}

impl From<Ipv6Net> for Pattern {
    fn from(range: Ipv6Net) -> Self {
        IpNet::from(range).into()
    }
}

impl From<IpAddr> for Pattern {
    fn from(address: IpAddr) -> Self {
        IpNet::from(address).into()
    }
}

impl From<Ipv4Addr> for Pattern {
    fn from(address: Ipv4Addr) -> Self {
        IpAddr::from(address).into()
    }
}

/// Exactly this host at exactly this port.
impl From<&Target> for Pattern {
    fn from(target: &Target) -> Self {
        let hosts = match target.host() {
            Host::Name(name) => Hosts::Name(name.clone()),
            Host::Ip(address) => Hosts::Range((*address).into()),
        };
        Self { hosts, ports: Ports { from: target.port(), to: target.port() } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, Problem> {
        Pattern::parse(text).map(|pattern| pattern.to_string()).map_err(|error| error.problem())
    }

    fn matches(pattern: &str, target: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(&target.parse().unwrap())
    }

    #[test]
    fn a_pattern_is_shown_in_one_form() {
        for (text, form) in [
            ("*", "*"),
            (".*", "*"),
            ("*:*", "*"),
            (".*:443", "*:443"),
            ("DB.Example.", "db.example"),
            ("*.Bücher.example:80", "*.xn--bcher-kva.example:80"),
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.2.3/8:1-65535", "10.0.0.0/8:1-65535"),
            ("10.1.2.3/32", "10.1.2.3"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("[::1]:22", "[::1]:22"),
            ("fe80::1/10", "fe80::/10"),
            ("[fe80::]/10:22", "[fe80::]/10:22"),
            ("[fe80::]/10:*", "fe80::/10"),
            ("::/0", "::/0"),
            ("0.0.0.0/0:0-1", "0.0.0.0/0:0-1"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(form), "{text}");
            assert_eq!(shown(form).as_deref(), Ok(form), "{text}");
        }
    }

    #[test]
    fn a2_a_suffix_respects_the_boundary_of_a_label() {
        assert!(matches("*.corp", "a.corp:1"));
        assert!(matches("*.corp", "A.b.CORP.:1"));
        assert!(!matches("*.corp", "corp:1"));
        assert!(!matches("*.corp", "xcorp:1"));
        assert!(matches("EVIL.example.", "evil.example:1"));
        assert_eq!(shown("evil.example.."), Err(Problem::Host));
    }

    #[test]
    fn a4_an_odd_spelling_of_an_address_is_no_pattern() {
        for odd in ["0177.0.0.1", "2130706433", "127.1", "0x7f.1", "00000127.0.0.1", "*.1"] {
            assert_eq!(shown(odd), Err(Problem::OddAddress), "{odd}");
        }
        assert_eq!(shown("127.1/8"), Err(Problem::Range));
    }

    #[test]
    fn a5_a_mapped_range_is_its_ipv4_range() {
        assert_eq!(shown("::ffff:127.0.0.1").as_deref(), Ok("127.0.0.1"));
        assert_eq!(shown("[::ffff:10.0.0.0]/104:22").as_deref(), Ok("10.0.0.0/8:22"));
        assert_eq!(shown("::ffff:0:0/96").as_deref(), Ok("0.0.0.0/0"));
    }

    #[test]
    fn a8_a_name_has_one_form_and_disguised_ascii_is_refused() {
        assert_eq!(shown("bücher.example"), shown("XN--bcher-kva.example"));
        assert_eq!(shown("xn--example-.com"), Err(Problem::Host));
    }

    #[test]
    fn a10_ports_mean_their_number_and_nothing_else() {
        for bad in
            ["a:0", "a:0-0", "a:65536", "a:65979", "a:0443", "a:+1", "a:", "a:1-", "a:-1", "a: 1", "a:x"]
        {
            let problem = shown(bad).unwrap_err();
            assert!(matches!(problem, Problem::Port | Problem::Regex), "{bad}: {problem:?}");
        }
        assert_eq!(shown("a:90-80"), Err(Problem::PortOrder));
        assert!(matches("a:0-1", "a:1"));
        assert!(!matches("a:0-1", "a:2"));
        assert!(matches("a:65535", "a:65535"));
        assert!(!matches("a:2-65534", "a:65535"));
        assert!(!matches("a:2-65534", "a:1"));
    }

    #[test]
    fn a_mistake_is_named_and_what_was_meant_is_offered() {
        for (text, problem, suggestion) in [
            ("", Problem::Empty, None),
            ("http://db.example:80/x", Problem::Scheme, Some("db.example:80")),
            (r".*\.internal", Problem::Regex, Some("*.internal")),
            (r"^db\.internal$", Problem::Regex, Some("db.internal")),
            (".internal:22", Problem::LeadingDot, Some("*.internal:22")),
            ("a.*.b", Problem::Regex, None),
            ("a*", Problem::Star, None),
            ("*.10.0.0.1", Problem::Star, None),
            ("fe80::/10:22", Problem::Brackets, Some("[fe80::]/10:22")),
            ("[fe80::/10]:22", Problem::Brackets, Some("[fe80::]/10:22")),
            ("[10.0.0.1]:22", Problem::Brackets, Some("10.0.0.1:22")),
            ("[::1", Problem::Brackets, Some("::1")),
            ("[::1%lo]", Problem::Brackets, None),
            ("10.0.0.0/33", Problem::Prefix, None),
            ("10.0.0.0/08", Problem::Prefix, None),
            ("::/129", Problem::Prefix, None),
            ("db.example/8", Problem::Range, None),
            ("a:90-80", Problem::PortOrder, Some("a:80-90")),
            (" a", Problem::Host, Some("a")),
        ] {
            let error = Pattern::parse(text).unwrap_err();
            assert_eq!((error.problem(), error.suggestion()), (problem, suggestion), "{text}");
        }
    }
}
