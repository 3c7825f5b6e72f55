use std::fmt;

use crate::MAX_REASON;

/// This side takes no more streams: those that live may finish, later ones belong elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoAway {
    /// Why.
    pub code: GoAwayCode,
    /// The last open that is honoured, by number; 0 for none. Opens behind it were never looked at, and may be
    /// made again elsewhere.
    pub last: u32,
    /// Words for the log; at most [`MAX_REASON`] bytes. Untrusted: escape it before it is shown.
    pub reason: String,
}

impl GoAway {
    /// A go-away whose reason is cut at [`MAX_REASON`] bytes.
    pub fn new(code: GoAwayCode, last: u32, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        Self { code, last, reason }
    }

    /// The reason as it is sent: cut, so that a peer never refuses it.
    pub(crate) fn short_reason(&self) -> &str {
        &self.reason[..self.reason.floor_char_boundary(MAX_REASON)]
    }
}

/// Why a side goes away. A code that is not known reads as [`Internal`](Self::Internal).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum GoAwayCode {
    /// It failed.
    Internal = 0,
    /// It shuts down, or drains; open a tunnel elsewhere.
    Shutdown = 1,
    /// Another tunnel, or another instance of the same client, takes the place of this one.
    Replaced = 2,
    /// Stream numbers have run out; open another tunnel.
    Exhausted = 3,
    /// The peer broke the protocol.
    Protocol = 4,
    /// The peer sent more than it had credit for, or granted more than there can be.
    FlowControl = 5,
    /// The peer did too much of what is allowed in small numbers.
    Excess = 6,
    /// The peer did not answer in time.
    Timeout = 7,
    /// The peer may not have this tunnel.
    Refused = 8,
}

impl GoAwayCode {
    /// The code on the wire.
    pub const fn to_u8(self) -> u8 {
        self as u8
    }

    /// The meaning of a code on the wire.
    pub const fn from_u8(code: u8) -> Self {
        match code {
            1 => Self::Shutdown,
            2 => Self::Replaced,
            3 => Self::Exhausted,
            4 => Self::Protocol,
            5 => Self::FlowControl,
            6 => Self::Excess,
            7 => Self::Timeout,
            8 => Self::Refused,
            _ => Self::Internal,
        }
    }

    /// The WebSocket close code that goes with it (RFC 6455 section 7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            Self::Internal => 1011,
            Self::Shutdown | Self::Replaced | Self::Exhausted | Self::Timeout => 1001,
            Self::Protocol | Self::FlowControl => 1002,
            Self::Excess | Self::Refused => 1008,
        }
    }

    /// A short name for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Shutdown => "shutdown",
            Self::Replaced => "replaced",
            Self::Exhausted => "exhausted",
            Self::Protocol => "protocol",
            Self::FlowControl => "flow_control",
            Self::Excess => "excess",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for GoAwayCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
