use bytes::Bytes;

/// What either side may say on an open stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamFrame {
    /// Bytes, in order; they use up credit. At most [`MAX_PAYLOAD`](crate::MAX_PAYLOAD).
    Data(Bytes),
    /// So many more bytes may be sent on this stream.
    Window(u32),
    /// The last byte of this direction has been sent.
    Fin,
    /// Both directions end now; what was not delivered yet is lost.
    Reset(ResetCode),
    /// One datagram, whole; only on streams opened for UDP, and outside of credit.
    /// At most [`MAX_PAYLOAD`](crate::MAX_PAYLOAD), and an empty one is a datagram too.
    Datagram(Bytes),
}

/// Why a stream ended before its time.
///
/// A code that is not known reads as [`Internal`](Self::Internal).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum ResetCode {
    /// This side failed.
    Internal = 0,
    /// Nobody wants the stream any more: the user left, or the open took too long.
    Cancelled = 1,
    /// The far connection (to the user or to the target) was reset.
    PeerReset = 2,
    /// Nothing moved for as long as a stream may idle.
    Idle = 3,
    /// A limit of memory was reached, and this stream held the most.
    Limit = 4,
    /// The peer broke a rule of streams, such as data behind its fin.
    Protocol = 5,
    /// A rule changed, and this stream would not be allowed any more.
    Revoked = 6,
    /// The process is going away and waited as long as it may.
    Shutdown = 7,
}

impl ResetCode {
    /// The code on the wire.
    pub const fn to_u8(self) -> u8 {
        self as u8
    }

    /// The meaning of a code on the wire.
    pub const fn from_u8(code: u8) -> Self {
        match code {
            1 => Self::Cancelled,
            2 => Self::PeerReset,
            3 => Self::Idle,
            4 => Self::Limit,
            5 => Self::Protocol,
            6 => Self::Revoked,
            7 => Self::Shutdown,
            _ => Self::Internal,
        }
    }

    /// A short name for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Cancelled => "cancelled",
            Self::PeerReset => "peer_reset",
            Self::Idle => "idle",
            Self::Limit => "limit",
            Self::Protocol => "protocol",
            Self::Revoked => "revoked",
            Self::Shutdown => "shutdown",
        }
    }
}

impl std::fmt::Display for ResetCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
