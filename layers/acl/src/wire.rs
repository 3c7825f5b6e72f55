//! The encoded form of a policy, version 1. Numbers are LEB128 unless they say a size; texts are a length and UTF-8.
//!
//! ```text
//! policy    = 0x01 flags:u8 count list*                  flags: bit 0 = guarded
//! list      = action:u8 count condition* count rule*     action: the default; 0 = deny, 1 = allow
//! condition = networks:u8 words words words              networks: bit 0 = tcp, bit 1 = udp; users, groups, fronts
//! words     = count text*
//! rule      = action:u8 condition-number count pattern*
//! pattern   = kind:u8 host ports                         kind: bits 0-2 host, bits 3-4 ports
//! host      = ε | text | text | range | range            0 any, 1 name, 2 below a name, 3 IPv4, 4 IPv6
//! range     = prefix:u8 byte*                            as many bytes as the prefix needs
//! ports     = ε | u16 | u16 u16                          0 all, 1 one, 2 from and to
//! ```

use std::error::Error;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyproxy_core::{Host, HostName};
use bytes::{BufMut as _, Bytes, BytesMut};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::entries::Conditions;
use crate::pattern::{Hosts, Ports};
use crate::rule::{Condition, words};
use crate::rules::Written;
use crate::{Action, Networks, Pattern, Policy, Rules};

const FORMAT: u8 = 1;
const GUARDED: u8 = 1;

/// The title of lists that came over the wire; their own titles and places stay where their file is.
const TITLE: &str = "the gateway's rules";

/// How much of a policy that comes from elsewhere is taken in.
///
/// What a decoded policy holds in memory follows from these: some hundred bytes a rule, as much a pattern, fifty a
/// word and a constant factor for the text; 200 MB where every default limit is reached.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the encoded form (default: 8 MiB).
    pub bytes: usize,
    /// Lists (default: 16).
    pub lists: usize,
    /// Rules, and different conditions of rules, of all lists (default: 262,144).
    pub rules: usize,
    /// Patterns of all rules (default: 524,288).
    pub patterns: usize,
    /// Users, groups and fronts of all conditions (default: 262,144).
    pub words: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 8 << 20, lists: 16, rules: 1 << 18, patterns: 1 << 19, words: 1 << 18 }
    }
}

/// Why bytes are no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// They end too early.
    Truncated,
    /// They go on behind the end.
    Surplus,
    /// A format of another version.
    Format(u8),
    /// More than the limit of this.
    TooMany(&'static str),
    /// A number that does not fit, or is spelled longer than it needs.
    Number,
    /// A byte or a number that stands for nothing here.
    Unknown(&'static str),
    /// A text that is not UTF-8.
    Text,
    /// A name that is not in its canonical form.
    Name,
    /// A range with a prefix that is too long, or with spare bits.
    Range,
    /// Ports out of order, or only port 0.
    Ports,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("the rules end too early"),
            Self::Surplus => f.write_str("the rules go on behind their end"),
            Self::Format(format) => write!(f, "rules of format {format}, which is not known"),
            Self::TooMany(what) => write!(f, "the rules have too many {what}"),
            Self::Number => f.write_str("the rules have a number that does not fit"),
            Self::Unknown(what) => write!(f, "the rules have an unknown {what}"),
            Self::Text => f.write_str("the rules have a text that is not UTF-8"),
            Self::Name => f.write_str("the rules have a name that is not in its canonical form"),
            Self::Range => f.write_str("the rules have an address range that is none"),
            Self::Ports => f.write_str("the rules have a range of ports that is none"),
        }
    }
}

impl Error for DecodeError {}

impl Policy {
    /// Writes the policy down for another process, without titles and origins. A hundred thousand rules are two to
    /// three megabytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        out.put_u8(if self.guarded { GUARDED } else { 0 });
        put_count(&mut out, self.lists.len());
        for list in &self.lists {
            put_action(&mut out, list.default_action());
            let conditions = list.conditions().iter();
            put_count(&mut out, conditions.len());
            conditions.for_each(|condition| put_condition(&mut out, condition));
            put_count(&mut out, list.len());
            list.written().iter().for_each(|rule| put_rule(&mut out, rule));
        }
        out.freeze()
    }

    /// Reads what [`encode`](Self::encode) wrote, and compiles it. Takes time and memory in proportion to the input,
    /// and the input is whatever the peer sent: a megabyte takes tens of milliseconds, so do it off the reactor.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] for what is no policy or is beyond the limits.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, DecodeError> {
        if bytes.len() > limits.bytes {
            return Err(DecodeError::TooMany("bytes"));
        }
        let mut reader = Reader { rest: bytes, left: *limits };
        let policy = reader.policy()?;
        if reader.rest.is_empty() { Ok(policy) } else { Err(DecodeError::Surplus) }
    }
}

// === writing ===

fn put_count(out: &mut BytesMut, count: usize) {
    put_number(out, u32::try_from(count).expect("2^32 of anything fit no memory"));
}

fn put_number(out: &mut BytesMut, mut number: u32) {
    while let rest @ 1.. = number >> 7 {
        out.put_u8(0x80 | (number & 0x7f) as u8);
        number = rest;
    }
    out.put_u8(number as u8);
}

fn put_text(out: &mut BytesMut, text: &str) {
    put_count(out, text.len());
    out.put_slice(text.as_bytes());
}

fn put_action(out: &mut BytesMut, action: Action) {
    out.put_u8(match action {
        Action::Deny => 0,
        Action::Allow => 1,
    });
}

fn put_condition(out: &mut BytesMut, condition: &Condition) {
    out.put_u8(condition.networks.bits());
    for words in [&condition.users, &condition.groups, &condition.fronts] {
        put_count(out, words.len());
        words.iter().for_each(|word| put_text(out, word));
    }
}

fn put_rule(out: &mut BytesMut, rule: &Written) {
    put_action(out, rule.action);
    put_number(out, rule.condition);
    put_count(out, rule.patterns.len());
    rule.patterns.iter().for_each(|pattern| put_pattern(out, pattern));
}

fn put_pattern(out: &mut BytesMut, pattern: &Pattern) {
    let Ports { from, to } = pattern.ports;
    let ports = if pattern.ports == Ports::ALL {
        0
    } else if from == to {
        1
    } else {
        2
    };
    let host = match &pattern.hosts {
        Hosts::Any => 0,
        Hosts::Name(_) => 1,
        Hosts::Below(_) => 2,
        Hosts::Range(IpNet::V4(_)) => 3,
        Hosts::Range(IpNet::V6(_)) => 4,
    };
    out.put_u8(host | ports << 3);
    match &pattern.hosts {
        Hosts::Any => {}
        Hosts::Name(name) | Hosts::Below(name) => put_text(out, name.as_str()),
        Hosts::Range(IpNet::V4(range)) => put_range(out, range.prefix_len(), &range.addr().octets()),
        Hosts::Range(IpNet::V6(range)) => put_range(out, range.prefix_len(), &range.addr().octets()),
    }
    if ports >= 1 {
        out.put_u16(from);
    }
    if ports == 2 {
        out.put_u16(to);
    }
}

fn put_range(out: &mut BytesMut, prefix: u8, octets: &[u8]) {
    out.put_u8(prefix);
    out.put_slice(&octets[..octets_of(prefix)]);
}

const fn octets_of(prefix: u8) -> usize {
    prefix.div_ceil(8) as usize
}

// === reading ===

struct Reader<'a> {
    rest: &'a [u8],
    /// What may still come.
    left: Limits,
}

impl<'a> Reader<'a> {
    fn policy(&mut self) -> Result<Policy, DecodeError> {
        match self.byte()? {
            FORMAT => {}
            other => return Err(DecodeError::Format(other)),
        }
        let guarded = match self.byte()? {
            0 => false,
            GUARDED => true,
            _ => return Err(DecodeError::Unknown("flag")),
        };
        let count = self.count("lists", |left| &mut left.lists)?;
        let lists = (0..count).map(|_| self.list()).collect::<Result<Vec<_>, _>>()?;
        let policy = Policy::new(lists);
        Ok(if guarded { policy.guarded() } else { policy })
    }

    fn list(&mut self) -> Result<Rules, DecodeError> {
        let default = self.action()?;
        let mut conditions = Conditions::default();
        let declared = self.count("conditions", |left| &mut left.rules)?;
        for number in 0..declared {
            let condition = self.condition()?;
            // The same condition twice would let two numbers mean one.
            if conditions.number(condition) as usize != number {
                return Err(DecodeError::Unknown("condition"));
            }
        }
        let count = self.count("rules", |left| &mut left.rules)?;
        let rules = (0..count).map(|_| self.rule(declared)).collect::<Result<Box<[_]>, _>>()?;
        Ok(Rules::compile(TITLE.into(), default, rules, conditions))
    }

    fn condition(&mut self) -> Result<Condition, DecodeError> {
        let networks = Networks::from_bits(self.byte()?).ok_or(DecodeError::Unknown("network"))?;
        Ok(Condition { networks, users: self.words()?, groups: self.words()?, fronts: self.words()? })
    }

    fn words(&mut self) -> Result<Box<[Arc<str>]>, DecodeError> {
        let count = self.count("words", |left| &mut left.words)?;
        let texts = (0..count).map(|_| self.text()).collect::<Result<Vec<_>, _>>()?;
        Ok(words(texts))
    }

    fn rule(&mut self, conditions: usize) -> Result<Written, DecodeError> {
        let action = self.action()?;
        let condition = self.number()?;
        if condition as usize >= conditions {
            return Err(DecodeError::Unknown("condition"));
        }
        let count = self.count("patterns", |left| &mut left.patterns)?;
        let patterns = (0..count).map(|_| self.pattern()).collect::<Result<_, _>>()?;
        Ok(Written { action, patterns, condition, origin: None })
    }

    fn pattern(&mut self) -> Result<Pattern, DecodeError> {
        let kind = self.byte()?;
        let hosts = match kind & 7 {
            0 => Hosts::Any,
            1 => Hosts::Name(self.name()?),
            2 => Hosts::Below(self.name()?),
            3 => Hosts::Range(self.four()?.into()),
            4 => Hosts::Range(self.six()?.into()),
            _ => return Err(DecodeError::Unknown("pattern")),
        };
        let ports = match kind >> 3 {
            0 => Ports::ALL,
            1 => {
                let port = self.port()?;
                Ports { from: port, to: port }
            }
            2 => Ports { from: self.port()?, to: self.port()? },
            _ => return Err(DecodeError::Unknown("pattern")),
        };
        if ports.from > ports.to || ports.to == 0 {
            Err(DecodeError::Ports)
        } else {
            Ok(Pattern { hosts, ports })
        }
    }

    fn name(&mut self) -> Result<HostName, DecodeError> {
        let text = self.text()?;
        match Host::parse(text) {
            Ok(Host::Name(name)) if name.as_str() == text => Ok(name),
            _ => Err(DecodeError::Name),
        }
    }

    fn four(&mut self) -> Result<Ipv4Net, DecodeError> {
        let (prefix, octets) = self.range::<4>()?;
        let range = Ipv4Net::new(Ipv4Addr::from(octets), prefix).map_err(|_| DecodeError::Range)?;
        if range.trunc() == range { Ok(range) } else { Err(DecodeError::Range) }
    }

    fn six(&mut self) -> Result<Ipv6Net, DecodeError> {
        let (prefix, octets) = self.range::<16>()?;
        let address = Ipv6Addr::from(octets);
        let range = Ipv6Net::new(address, prefix).map_err(|_| DecodeError::Range)?;
        // A mapped range has an IPv4 form, and only that is ever asked for.
        let mapped = prefix >= 96 && address.to_ipv4_mapped().is_some();
        if range.trunc() == range && !mapped { Ok(range) } else { Err(DecodeError::Range) }
    }

    fn range<const N: usize>(&mut self) -> Result<(u8, [u8; N]), DecodeError> {
        let prefix = self.byte()?;
        let mut octets = [0; N];
        let given = octets.get_mut(..octets_of(prefix)).ok_or(DecodeError::Range)?;
        given.copy_from_slice(self.take(given.len())?);
        Ok((prefix, octets))
    }

    fn port(&mut self) -> Result<u16, DecodeError> {
        let octets = self.take(2)?;
        Ok(u16::from_be_bytes([octets[0], octets[1]]))
    }

    fn action(&mut self) -> Result<Action, DecodeError> {
        match self.byte()? {
            0 => Ok(Action::Deny),
            1 => Ok(Action::Allow),
            _ => Err(DecodeError::Unknown("action")),
        }
    }

    fn text(&mut self) -> Result<&'a str, DecodeError> {
        let length = self.number()? as usize;
        std::str::from_utf8(self.take(length)?).map_err(|_| DecodeError::Text)
    }

    /// A count, taken off what is left of its limit. Everything counted has a byte at least, so that nothing is
    /// reserved that cannot come.
    fn count(
        &mut self,
        what: &'static str,
        limit: impl FnOnce(&mut Limits) -> &mut usize,
    ) -> Result<usize, DecodeError> {
        let count = self.number()? as usize;
        let left = limit(&mut self.left);
        *left = left.checked_sub(count).ok_or(DecodeError::TooMany(what))?;
        if count > self.rest.len() { Err(DecodeError::Truncated) } else { Ok(count) }
    }

    fn number(&mut self) -> Result<u32, DecodeError> {
        let mut number = 0;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            let bits = u32::from(byte & 0x7f);
            number |= bits << shift;
            let fits = bits << shift >> shift == bits;
            let longest = byte == 0 && shift > 0;
            match (byte & 0x80 == 0, fits && !longest) {
                (_, false) => return Err(DecodeError::Number),
                (true, true) => return Ok(number),
                (false, true) => {}
            }
        }
        Err(DecodeError::Number)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}
