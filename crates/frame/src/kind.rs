//! The kinds of frames, as they stand in the first byte of a header.

pub(crate) const HELLO: u8 = 0x00;
pub(crate) const OPEN: u8 = 0x01;
pub(crate) const OPEN_OK: u8 = 0x02;
pub(crate) const OPEN_ERR: u8 = 0x03;
pub(crate) const DATA: u8 = 0x04;
pub(crate) const WINDOW: u8 = 0x05;
pub(crate) const FIN: u8 = 0x06;
pub(crate) const RESET: u8 = 0x07;
pub(crate) const DATAGRAM: u8 = 0x08;
pub(crate) const PING: u8 = 0x09;
pub(crate) const PONG: u8 = 0x0a;
pub(crate) const GO_AWAY: u8 = 0x0b;
pub(crate) const RULES: u8 = 0x0c;

/// From here on kinds belong to extensions; who does not know one ignores it.
pub(crate) const FIRST_EXTENSION: u8 = 0x80;
