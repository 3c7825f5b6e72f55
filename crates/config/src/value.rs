//! The values of keys: each parsed into what it means where it stands, so that its mistakes have a place.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time;

use serde::de::{Deserializer, Error as _, Unexpected, Visitor};
use serde::{Deserialize, de};

use anyproxy_acl::Pattern;
use anyproxy_core::{Secret, Target};

/// A value together with the place it stands at; `0:0` where an environment variable says it.
pub use serde_saphyr::Spanned;

/// Deserializes through [`FromStr`], from any plain scalar.
macro_rules! from_text {
    ($($type:ty),+ $(,)?) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )+};
}

from_text!(ListenAddr, Duration, Bytes, Ports, HostPattern);

// === ListenAddr ===

/// Where to listen: `":8080"` (all addresses, v4 and v6), `"127.0.0.1:8080"`, `"[::1]:8080"`, `"localhost:8080"`
/// (both loopback addresses). Port 0 takes a free one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// Every address, v4 and v6, on this port.
    All(u16),
    /// Both loopback addresses, on this port.
    Localhost(u16),
    /// This address.
    This(SocketAddr),
}

impl ListenAddr {
    /// Whether only programs on this machine can reach it.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::All(_) => false,
            Self::Localhost(_) => true,
            Self::This(address) => address.ip().to_canonical().is_loopback(),
        }
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::All(port) | Self::Localhost(port) => *port,
            Self::This(address) => address.port(),
        }
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::This(address));
        }
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| format!("{text:?} has no port, as in \":8080\""))?;
        let port = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
        match host {
            "" | "*" => Ok(Self::All(port)),
            "localhost" => Ok(Self::Localhost(port)),
            _ => Err(format!("{host:?} is not an address to listen on; leave it out for all addresses")),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(port) => write!(f, ":{port}"),
            Self::Localhost(port) => write!(f, "localhost:{port}"),
            Self::This(address) => address.fmt(f),
        }
    }
}

// === Duration ===

/// A length of time: `50us`, `500ms`, `5s`, `10m`, `1h`, `2d`, or several of them in a row; `0` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub time::Duration);

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration, as in 50us, 500ms, 5s, 10m or 1h");
        if text == "0" {
            return Ok(Self(time::Duration::ZERO));
        }
        let mut rest = text;
        let mut total = time::Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let microseconds: u64 = match unit {
                "us" => 1,
                "ms" => 1_000,
                "s" => 1_000_000,
                "m" => 60_000_000,
                "h" => 3_600_000_000,
                "d" => 86_400_000_000,
                _ => return Err(wrong()),
            };
            let number: u64 = number.parse().map_err(|_| wrong())?;
            // A year is more than any of these waits can mean, and far from every overflow.
            let part = number
                .checked_mul(microseconds)
                .filter(|us| *us <= 366 * 86_400_000_000)
                .ok_or_else(wrong)?;
            total += time::Duration::from_micros(part);
            rest = tail;
        }
        if text.is_empty() { Err(wrong()) } else { Ok(Self(total)) }
    }
}

// === Bytes ===

/// A number of bytes: `65536`, `64KiB`, `10MiB`, `1GiB` (powers of 1,024), or `64KB`, `10MB`, `1GB` (of 1,000).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size, as in 64KiB or 10MiB");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit.trim_start() {
            "" | "B" => 1,
            "KB" | "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

// === Ports ===

/// A port or a range of them: `2222`, `"8000-8010"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(pub RangeInclusive<u16>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a port or a range of ports, as in 2222 or 8000-8010");
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0u16).ok_or_else(wrong);
        let (from, to) = (port(from)?, port(to)?);
        if from <= to { Ok(Self(from..=to)) } else { Err(wrong()) }
    }
}

// === AnyOf ===

/// One value or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnyOf<T>(pub Vec<T>);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for AnyOf<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany<T>(std::marker::PhantomData<T>);

        impl<'de, T: FromStr<Err: fmt::Display>> Visitor<'de> for OneOrMany<T> {
            type Value = AnyOf<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map(|one| AnyOf(vec![one])).map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(text) = list.next_element::<String>()? {
                    all.push(text.parse().map_err(A::Error::custom)?);
                }
                Ok(AnyOf(all))
            }
        }

        deserializer.deserialize_any(OneOrMany(std::marker::PhantomData))
    }
}

/// `client.gateway_addr`: one gateway or several.
pub type Gateways = AnyOf<Target>;

// === Keys ===

/// What stands behind a key that is there. Nothing is a mistake: a list that narrows, like the users of a rule, would
/// narrow nothing once its last line was deleted.
pub(crate) fn given<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let value = Option::deserialize(deserializer)?;
    value.map(Some).ok_or_else(|| D::Error::custom("a key without a value: give one, or leave the key out"))
}

// === Replicas ===

/// `client.replicas`: a number of tunnels, `3`, or the least and the most of them, `{ min: 1, max: 8 }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Replicas {
    /// The least. Default: 1.
    #[serde(default, deserialize_with = "given")]
    pub min: Option<u16>,
    /// The most. Default: the least.
    #[serde(default, deserialize_with = "given")]
    pub max: Option<u16>,
}

impl<'de> Deserialize<'de> for Replicas {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrRange;

        impl<'de> Visitor<'de> for NumberOrRange {
            type Value = Replicas;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or { min: 1, max: 8 }")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                let number = u16::try_from(number)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))?;
                Ok(Replicas { min: Some(number), max: Some(number) })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                // What the derived implementation reads.
                Replicas::deserialize(de::value::MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(NumberOrRange)
    }
}

// === Password ===

/// A password or its hash. A plain scalar; what stands there instead is in no error.
#[derive(Clone, Debug)]
pub struct Password(pub Secret);

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer) {
            Ok(text) => Ok(Self(text.into())),
            Err(_) => Err(D::Error::custom("expected a password; put it in quotes")),
        }
    }
}

// === HostPattern ===

/// A host pattern: name, `*.suffix`, address or range, each with ports ([`Pattern`] has them all).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern(pub Pattern);

impl FromStr for HostPattern {
    type Err = <Pattern as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

// === Words from a closed set ===

/// What a rule, or no rule, makes of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It goes on.
    Allow,
    /// It is refused.
    Deny,
}

/// `log.level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What needs an operator now.
    Error,
    /// And what an operator can act on.
    Warn,
    /// And one line a stream.
    Info,
    /// And one a connection.
    Debug,
    /// And one a frame.
    Trace,
}

/// `log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `log.output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogOutput {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What may travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// What a limit is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// Each user alone, and of those without a name each source prefix.
    User,
    /// All users of a group together.
    Group,
    /// Each source prefix (/32, /64).
    Source,
}

/// `gateway.balance.strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// In turn.
    RoundRobin,
    /// The one with the fewest streams.
    LeastLoaded,
    /// The better of two by recent answer times and load.
    P2cEwma,
    /// Any.
    Random,
    /// Always the same for the same user or target.
    Sticky,
}

/// `gateway.balance.sticky_by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StickyBy {
    /// By the user.
    User,
    /// By the target.
    Target,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let millis = |text: &str| text.parse::<Duration>().map(|duration| duration.0.as_millis());
        assert_eq!(millis("5s"), Ok(5_000));
        assert_eq!(millis("1h30m"), Ok(5_400_000));
        assert_eq!(millis("500ms"), Ok(500));
        assert_eq!(millis("0"), Ok(0));
        assert_eq!("1ms50us".parse(), Ok(Duration(time::Duration::from_micros(1_050))));
        for bad in ["", "5", "s", "5 s", "-5s", "1.5s", "99999999999999999999s", "400d"] {
            assert!(millis(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        assert_eq!("64KiB".parse(), Ok(Bytes(65_536)));
        assert_eq!("10MB".parse(), Ok(Bytes(10_000_000)));
        assert_eq!("512".parse(), Ok(Bytes(512)));
        for bad in ["", "KiB", "-1", "1TiB", "99999999999GiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_port_alone_listens_everywhere() {
        assert_eq!(":8080".parse(), Ok(ListenAddr::All(8080)));
        assert!(!":8080".parse::<ListenAddr>().unwrap().is_loopback());
        let localhost: ListenAddr = "localhost:1".parse().unwrap();
        assert!(localhost.is_loopback());
        assert_eq!(localhost.to_string(), "localhost:1");
        assert!("[::1]:1".parse::<ListenAddr>().unwrap().is_loopback());
        assert!("example.com:1".parse::<ListenAddr>().is_err());
        assert!("8080".parse::<ListenAddr>().is_err());
    }

    #[test]
    fn ranges_of_ports_run_upwards() {
        assert_eq!("8000-8010".parse(), Ok(Ports(8000..=8010)));
        assert!("8010-8000".parse::<Ports>().is_err());
        assert!("0".parse::<Ports>().is_err());
    }
}
