//! The numbers of the protocol, each with its reason.

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 8;

/// The most bytes a frame carries: large enough that headers and calls cost nothing, small enough that one frame
/// is sent in a few milliseconds over a slow line.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// The most bytes of a WebSocket message, headers included. Senders aim at one full frame; a receiver refuses what
/// is longer before it has it.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// The least credit a side may announce for a new stream. A stream whose credit and unread bytes together are at
/// most half of this has credit on its way, always, so a sender may wait for a worthwhile amount.
pub const MIN_WINDOW: u32 = 16 * 1024;

/// The credit of a new stream unless its side says otherwise.
pub const START_WINDOW: u32 = 256 * 1024;

/// The most credit a stream can have at any time; a frame that would raise it further is an error.
pub const MAX_WINDOW: u32 = (1 << 31) - 1;

/// The most bytes of all fields of a hello.
pub const MAX_HELLO: usize = 8 * 1024;

/// The most bytes of all fields of an open. Everything in it at its limit takes half of that; the rest is room for
/// fields to come.
pub const MAX_OPEN: usize = 8 * 1024;

/// The most bytes of all fields of an answer to an open.
pub const MAX_ANSWER: usize = 1024;

/// The most bytes of a client's name.
pub const MAX_CLIENT_ID: usize = 128;

/// The most bytes of a software's name and version.
pub const MAX_SOFTWARE: usize = 128;

/// The most ports a client may ask for.
pub const MAX_PORTS: usize = 256;

/// The most bytes of a host name (what SOCKS5 can carry; DNS allows 253).
pub const MAX_HOST: usize = 255;

/// The most bytes of a user's name (what SOCKS5 can carry).
pub const MAX_USER: usize = 255;

/// The most bytes of a group's name.
pub const MAX_GROUP: usize = 128;

/// The most groups an open may name.
pub const MAX_GROUPS: usize = 16;

/// The most bytes of a front's name.
pub const MAX_FRONT: usize = 64;

/// The most bytes of a trace context: version 00 has 55, and later versions may append.
pub const MAX_TRACEPARENT: usize = 128;

/// The most bytes of the words beside a failed open.
pub const MAX_ERROR_TEXT: usize = 256;

/// The most bytes of the words beside a go-away.
pub const MAX_REASON: usize = 256;

/// The most bytes of rules in one frame.
pub const MAX_RULES_CHUNK: usize = MAX_PAYLOAD - 5;

/// Data of fewer bytes than this is expected to be copied by whoever queues it, and joined with its neighbours, so
/// that a held byte costs about a byte.
pub const COPIED_BELOW: usize = 4 * 1024;
