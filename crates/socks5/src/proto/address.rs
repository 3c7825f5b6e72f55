use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyproxy_core::{Host, InvalidTarget, Target};
use bytes::BufMut;

const V4: u8 = 0x01;
const NAME: u8 = 0x03;
const V6: u8 = 0x04;

/// Neither IPv4, IPv6 nor a name: the type seen.
pub(super) struct UnknownType(pub(super) u8);

/// An address as it stands in requests, replies and datagrams (RFC 1928 section 5):
///
/// ```text
/// +------+----------+------+
/// | ATYP |   ADDR   | PORT |
/// +------+----------+------+
/// |  1   | variable |  2   |
/// +------+----------+------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Address<'a> {
    Ip(SocketAddr),
    Name(&'a [u8], u16),
}

impl<'a> Address<'a> {
    /// Reads the address that `src` begins with, and what follows it; `None` until all of it is there.
    pub(super) fn decode(src: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, UnknownType> {
        let Some((&kind, src)) = src.split_first() else { return Ok(None) };
        Ok(match kind {
            V4 => src
                .split_first_chunk::<4>()
                .and_then(|(ip, src)| ip_and_port(Ipv4Addr::from(*ip).into(), src)),
            V6 => src
                .split_first_chunk::<16>()
                .and_then(|(ip, src)| ip_and_port(Ipv6Addr::from(*ip).into(), src)),
            NAME => src.split_first().and_then(|(&length, src)| {
                let (name, src) = src.split_at_checked(length.into())?;
                let (port, src) = port(src)?;
                Some((Self::Name(name, port), src))
            }),
            other => return Err(UnknownType(other)),
        })
    }

    /// The address as something to dial. A name must be one: an address written as a name is that address, and what
    /// some resolver might take for one is refused.
    pub(super) fn to_target(self) -> Result<Target, InvalidTarget> {
        match self {
            Self::Ip(address) => Target::try_from(address),
            Self::Name(name, port) => {
                let name = str::from_utf8(name).map_err(|_| InvalidTarget::Host)?;
                Target::new(Host::parse(name)?, port)
            }
        }
    }
}

fn ip_and_port<'a>(ip: IpAddr, src: &'a [u8]) -> Option<(Address<'a>, &'a [u8])> {
    let (port, src) = port(src)?;
    Some((Address::Ip(SocketAddr::new(ip, port)), src))
}

fn port(src: &[u8]) -> Option<(u16, &[u8])> {
    src.split_first_chunk().map(|(port, src)| (u16::from_be_bytes(*port), src))
}

pub(super) fn encode_socket(address: SocketAddr, dst: &mut impl BufMut) {
    match address.ip() {
        IpAddr::V4(ip) => {
            dst.put_u8(V4);
            dst.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            dst.put_u8(V6);
            dst.put_slice(&ip.octets());
        }
    }
    dst.put_u16(address.port());
}

pub(super) fn encode_target(target: &Target, dst: &mut impl BufMut) {
    match target.host() {
        Host::Ip(ip) => encode_socket(SocketAddr::new(*ip, target.port()), dst),
        Host::Name(name) => {
            let name = name.as_str().as_bytes();
            dst.put_u8(NAME);
            dst.put_u8(u8::try_from(name.len()).expect("a host name has at most 255 bytes"));
            dst.put_slice(name);
            dst.put_u16(target.port());
        }
    }
}
