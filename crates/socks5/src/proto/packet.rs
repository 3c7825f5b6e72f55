use std::error::Error;
use std::fmt;

use anyproxy_core::{InvalidTarget, Target};
use bytes::BufMut;

use super::address::{Address, encode_target};

/// A datagram on an association's port (RFC 1928 section 7), either way:
///
/// ```text
/// +-------+------+------+----------+----------+------+
/// |  RSV  | FRAG | ATYP | DST.ADDR | DST.PORT | DATA |
/// +-------+------+------+----------+----------+------+
/// | X'00' |  1   |  1   | variable |    2     | rest |
/// +-------+------+------+----------+----------+------+
/// ```
///
/// From the user it says where to, to the user it says where from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The far end.
    pub target: Target,
    /// What is for it, or from it. May be empty.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a whole datagram.
    ///
    /// # Errors
    ///
    /// A [`PacketError`] for what is to be dropped.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, PacketError> {
        let Some((&[high, low, fragment], rest)) = datagram.split_first_chunk() else {
            return Err(PacketError::Short);
        };
        if (high, low) != (0, 0) {
            return Err(PacketError::Reserved);
        }
        if fragment != 0 {
            return Err(PacketError::Fragment(fragment));
        }
        let (address, payload) = Address::decode(rest)
            .map_err(|unknown| PacketError::AddressType(unknown.0))?
            .ok_or(PacketError::Short)?;
        Ok(Self { target: address.to_target().map_err(PacketError::Target)?, payload })
    }
}

/// Writes what stands before the payload of a datagram from `source`.
pub fn encode_header(source: &Target, dst: &mut impl BufMut) {
    dst.put_slice(&[0, 0, 0]);
    encode_target(source, dst);
}

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PacketError {
    /// It ends within its header.
    Short,
    /// The reserved bytes are not zero.
    Reserved,
    /// It is a fragment; this server does not put them together, which RFC 1928 leaves to it.
    Fragment(u8),
    /// An address of a type nobody knows.
    AddressType(u8),
    /// No address or name to send to.
    Target(InvalidTarget),
}

impl fmt::Display for PacketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("datagram ends within its header"),
            Self::Reserved => f.write_str("reserved bytes are not zero"),
            Self::Fragment(number) => write!(f, "fragment {number:#04x}"),
            Self::AddressType(kind) => write!(f, "unknown address type {kind:#04x}"),
            Self::Target(error) => error.fmt(f),
        }
    }
}

impl Error for PacketError {}

pub(super) fn fuzz(input: &[u8]) {
    let Ok(packet) = Packet::decode(input) else { return };
    let mut again = Vec::new();
    encode_header(&packet.target, &mut again);
    again.extend_from_slice(packet.payload);
    assert_eq!(Packet::decode(&again).as_ref(), Ok(&packet));
    // A name may be written in several ways, and an address as a name; the payload is what it was in any case.
    assert!(input.ends_with(packet.payload));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(text: &str) -> Target {
        Target::parse(text).unwrap()
    }

    #[test]
    fn datagrams_as_written_in_hex() {
        let packet = Packet { target: target("192.0.2.1:53"), payload: b"hi" };
        assert_eq!(Packet::decode(b"\0\0\0\x01\xc0\0\x02\x01\0\x35hi"), Ok(packet));
        let packet = Packet { target: target("printer.lan:53"), payload: b"hi" };
        assert_eq!(Packet::decode(b"\0\0\0\x03\x0bprinter.lan\0\x35hi"), Ok(packet));
        let packet = Packet { target: target("[2001:db8::1]:53"), payload: b"hi" };
        assert_eq!(
            Packet::decode(b"\0\0\0\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\0\x35hi"),
            Ok(packet)
        );
    }

    #[test]
    fn u4_fragments_are_dropped() {
        for fragment in [0x01, 0x80, 0xff] {
            let datagram = [0, 0, fragment, 1, 192, 0, 2, 1, 0, 53, b'x'];
            assert_eq!(Packet::decode(&datagram), Err(PacketError::Fragment(fragment)));
        }
    }

    #[test]
    fn u5_malformed_datagrams_are_dropped_and_an_empty_payload_is_not() {
        let whole = b"\0\0\0\x03\x0bprinter.lan\0\x35";
        for end in 0..whole.len() {
            assert_eq!(Packet::decode(&whole[..end]), Err(PacketError::Short), "{end}");
        }
        assert_eq!(Packet::decode(whole).unwrap().payload, b"");
        assert_eq!(Packet::decode(b"\x01\0\0\x01\xc0\0\x02\x01\0\x35x"), Err(PacketError::Reserved));
        assert_eq!(Packet::decode(b"\0\x01\0\x01\xc0\0\x02\x01\0\x35x"), Err(PacketError::Reserved));
        assert_eq!(Packet::decode(b"\0\0\0\x02\xc0\0\x02\x01\0\x35x"), Err(PacketError::AddressType(2)));
        for bad in
            [&b"\0\0\0\x01\xc0\0\x02\x01\0\0x"[..], b"\0\0\0\x03\0\0\x35x", b"\0\0\0\x03\x03a b\0\x35x"]
        {
            assert!(matches!(Packet::decode(bad), Err(PacketError::Target(_))), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_what_encodes_again(input in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&input);
        }

        #[test]
        fn a_perturbed_datagram_decodes_to_what_encodes_again(
            host in "[a-z]{1,20}(\\.[a-z]{1,10}){0,3}|([0-9]{1,3}\\.){3}[0-9]{1,3}|::[0-9a-f]{1,4}",
            port in 1_u16..,
            payload in proptest::collection::vec(any::<u8>(), 0..100),
            at in any::<proptest::sample::Index>(),
            flip in any::<u8>(),
        ) {
            let Ok(host) = anyproxy_core::Host::parse(&host) else { return Ok(()) };
            let target = Target::new(host, port).unwrap();
            let mut datagram = Vec::new();
            encode_header(&target, &mut datagram);
            datagram.extend_from_slice(&payload);
            prop_assert_eq!(Packet::decode(&datagram), Ok(Packet { target, payload: &payload }));
            let at = at.index(datagram.len());
            datagram[at] ^= flip;
            fuzz(&datagram);
        }
    }
}
