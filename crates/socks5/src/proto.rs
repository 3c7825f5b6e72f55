//! The protocol without IO: SOCKS version 5 (RFC 1928) with user name and password (RFC 1929), the server's side.
//!
//! Bytes come in, events and bytes go out; nothing here reads a clock, a socket or more memory than a message
//! needs. [`Handshake`] is the way from the first byte to the request, [`Reply`] the last word of it, [`Packet`] what
//! travels on an association's UDP port.
//!
//! ```text
//! user    05 02 00 02                     greeting: methods 00 (none) and 02 (user name and password)
//! server  05 02                           choice
//! user    01 05 alice 06 secret           login (RFC 1929)
//! server  01 00                           verdict
//! user    05 01 00 03 0b printer.lan 02 77     request: CONNECT, a name, port 631
//! server  05 00 00 01 00 00 00 00 00 00   reply
//! ```

mod address;
mod handshake;
mod packet;
mod reply;

pub use handshake::{Event, Handshake, HandshakeError, Method, Methods, Request};
pub use packet::{Packet, PacketError, encode_header};
pub use reply::{Reply, ReplyCode};

/// Plays `input` as a user's side of a handshake, whole and in pieces: whatever comes out must not depend on where
/// the pieces end. For fuzzing.
///
/// # Panics
///
/// If it does.
#[doc(hidden)]
pub fn fuzz(input: &[u8]) {
    handshake::fuzz(input);
}

/// Decodes `input` as a datagram of an association; what decodes must encode to what decodes to the same. For
/// fuzzing.
///
/// # Panics
///
/// If it does not.
#[doc(hidden)]
pub fn fuzz_udp(input: &[u8]) {
    packet::fuzz(input);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// What the repository keeps of fuzzing stays found.
    #[test]
    fn the_committed_corpora_hold() {
        for (corpus, check) in [("socks5_parser", super::fuzz as fn(&[u8])), ("socks5_udp", super::fuzz_udp)]
        {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(corpus);
            let mut files = std::fs::read_dir(folder).unwrap().peekable();
            assert!(files.peek().is_some());
            for file in files {
                check(&std::fs::read(file.unwrap().path()).unwrap());
            }
        }
    }
}
