use std::net::{Ipv4Addr, SocketAddr};

use bytes::{BufMut as _, Bytes, BytesMut};

use super::address::encode_socket;

/// The answer to a request (RFC 1928 section 6):
///
/// ```text
/// +-----+-----+-------+------+----------+----------+
/// | VER | REP |  RSV  | ATYP | BND.ADDR | BND.PORT |
/// +-----+-----+-------+------+----------+----------+
/// |  1  |  1  | X'00' |  1   | variable |    2     |
/// +-----+-----+-------+------+----------+----------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// How it went.
    pub code: ReplyCode,
    /// For an association, where to send datagrams. Otherwise `0.0.0.0:0`: the address a client dials from is
    /// inside a network that users are not told about.
    pub bound: SocketAddr,
}

/// The REP field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReplyCode {
    /// The target is connected, or the association is up.
    Succeeded = 0x00,
    /// None of the others.
    GeneralFailure = 0x01,
    /// A rule says no.
    NotAllowed = 0x02,
    /// No way to the network.
    NetworkUnreachable = 0x03,
    /// No way to the host, or no such host.
    HostUnreachable = 0x04,
    /// The target refused.
    ConnectionRefused = 0x05,
    /// It took too long.
    TtlExpired = 0x06,
    /// BIND, or no command at all.
    CommandNotSupported = 0x07,
    /// An address of a type nobody knows.
    AddressTypeNotSupported = 0x08,
}

impl Reply {
    /// A reply that tells no address.
    #[must_use]
    pub const fn new(code: ReplyCode) -> Self {
        Self { code, bound: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0) }
    }

    /// Success, and the address to send datagrams to.
    #[must_use]
    pub const fn associated(bound: SocketAddr) -> Self {
        Self { code: ReplyCode::Succeeded, bound }
    }

    /// The bytes: 10 of them, or 22 with an IPv6 address.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut dst = BytesMut::with_capacity(22);
        dst.put_slice(&[5, self.code as u8, 0]);
        encode_socket(self.bound, &mut dst);
        dst.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_as_written_in_hex() {
        assert_eq!(&Reply::new(ReplyCode::Succeeded).encode()[..], b"\x05\0\0\x01\0\0\0\0\0\0");
        assert_eq!(&Reply::new(ReplyCode::TtlExpired).encode()[..], b"\x05\x06\0\x01\0\0\0\0\0\0");
        let bound = "192.0.2.1:4660".parse().unwrap();
        assert_eq!(&Reply::associated(bound).encode()[..], b"\x05\0\0\x01\xc0\0\x02\x01\x12\x34");
        let bound = "[2001:db8::1]:4660".parse().unwrap();
        assert_eq!(
            &Reply::associated(bound).encode()[..],
            b"\x05\0\0\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x12\x34"
        );
    }
}
