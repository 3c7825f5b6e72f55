use std::time::Duration;

use anyproxy_frame::{GoAway, Open, OpenErr, OpenOk, ResetCode, StreamId};
use bytes::Bytes;

/// Something the owner of a multiplexer should know. `H` is the peer's hello.
///
/// Every stream that was returned by `open`, or announced by [`Opened`](Self::Opened), gets one
/// [`Closed`](Self::Closed) and nothing after it, as long as the tunnel lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<H> {
    /// The peer's hello has come. A gateway judges it and answers with its own.
    PeerHello(Box<H>),
    /// At a client: the gateway wants this stream. Answer with `accept` or `refuse`.
    Opened {
        /// The stream.
        id: StreamId,
        /// What the gateway wants.
        open: Box<Open>,
    },
    /// At a gateway: the client's answer. After an error [`Closed`](Self::Closed) follows.
    Answered {
        /// The stream.
        id: StreamId,
        /// The answer.
        answer: Result<OpenOk, Box<OpenErr>>,
    },
    /// Bytes for the reader; give them back to `consumed` as they are read. Put them into
    /// [`Chunks`](crate::Chunks), so that what is held costs what it counts.
    Data {
        /// The stream.
        id: StreamId,
        /// The bytes.
        data: Bytes,
    },
    /// A datagram for the reader. It does not count as held: the owner bounds its queue and drops the newest.
    Datagram {
        /// The stream.
        id: StreamId,
        /// The datagram.
        data: Bytes,
    },
    /// So many bytes given to `send`, or the datagram given to `send_datagram`, were handed to `poll_transmit`.
    Sent {
        /// The stream.
        id: StreamId,
        /// The bytes.
        bytes: usize,
    },
    /// The peer has sent its last byte. A clean end, once what came before has been read.
    Fin {
        /// The stream.
        id: StreamId,
    },
    /// The peer ended the stream, or broke its rules. If [`Fin`](Self::Fin) came before, the reader still sees a
    /// clean end, and only the writer learns of this.
    Reset {
        /// The stream.
        id: StreamId,
        /// Why.
        code: ResetCode,
    },
    /// Too much is held for readers in all, and this stream held much: it has been reset, which was said before if it
    /// was not over, and its owner drops what the reader has not read. The reader sees an error then, also where
    /// [`Fin`](Self::Fin) came, never a clean end. [`Closed`](Self::Closed) follows.
    Discarded {
        /// The stream.
        id: StreamId,
        /// What was held for its reader, whether or not its owner can still drop it.
        held: u32,
    },
    /// The stream is over, both ways, and nothing is held for its reader. Its number will not be seen again.
    Closed {
        /// The stream.
        id: StreamId,
    },
    /// The peer takes no more opens. Those it disowns are answered as such before this.
    GoAway(Box<GoAway>),
    /// At a client: the gateway's rules are whole.
    Rules {
        /// Their version.
        version: u32,
        /// The rules.
        rules: Bytes,
    },
    /// A ping was answered after this time.
    Rtt(Duration),
}
