use std::{error::Error, fmt, time::Duration};

use anyproxy_frame::{DecodeError, FieldTooLong, GoAwayCode, StreamId};

/// What a peer did that ends the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerError {
    /// A message that does not decode.
    Malformed(DecodeError),
    /// Something came before the hello.
    HelloMissing,
    /// A second hello.
    HelloRepeated,
    /// No hello within this time.
    HelloTimeout(Duration),
    /// No answer to a ping within this time.
    PingTimeout(Duration),
    /// An open with a number that is not above all earlier ones.
    StreamReused(StreamId),
    /// A frame on a stream that was never opened.
    UnknownStream(StreamId),
    /// A frame on a stream whose open is not answered yet.
    Unanswered(StreamId),
    /// Datagrams on a connection, or bytes or credit on a stream of datagrams.
    WrongNetwork(StreamId),
    /// More bytes than the stream had credit for.
    WindowExceeded {
        /// The stream.
        stream: StreamId,
        /// The credit it had.
        credit: u32,
        /// The bytes that came.
        len: usize,
    },
    /// Credit of 0.
    WindowZero(StreamId),
    /// Credit beyond what a stream can have.
    WindowOverflow(StreamId),
    /// A go-away that takes back what an earlier one said.
    GoAwayRaised {
        /// The last open honoured, as the first one said.
        was: u32,
        /// As this one says.
        now: u32,
    },
    /// Too many empty data frames.
    EmptyData(u32),
    /// Too many mistakes that each cost a reset.
    CausedResets(u32),
    /// Too many opens reset before anybody could look at them.
    UnseenResets(u32),
    /// Opens reset before their answer, too many in too short a time.
    CancelledOpens,
    /// Too many frames that mean nothing.
    Ignored,
    /// Too many pings.
    Pings,
    /// More control frames are waiting than may, because the peer does not read.
    ControlBacklog(u64),
    /// A version of rules longer than allowed.
    RulesTooLong(u64),
    /// Rules with the version 0, or a part of one version within another.
    RulesOutOfOrder(u32),
}

impl PeerError {
    /// What to tell the peer. Its [`close_code`](GoAwayCode::close_code) goes with it.
    pub fn code(&self) -> GoAwayCode {
        match self {
            Self::HelloTimeout(_) | Self::PingTimeout(_) => GoAwayCode::Timeout,
            Self::WindowExceeded { .. } | Self::WindowZero(_) | Self::WindowOverflow(_) => {
                GoAwayCode::FlowControl
            }
            Self::EmptyData(_)
            | Self::CausedResets(_)
            | Self::UnseenResets(_)
            | Self::CancelledOpens
            | Self::Ignored
            | Self::Pings
            | Self::ControlBacklog(_)
            | Self::RulesTooLong(_) => GoAwayCode::Excess,
            _ => GoAwayCode::Protocol,
        }
    }
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(_) => f.write_str("malformed message"),
            Self::HelloMissing => f.write_str("frame before the hello"),
            Self::HelloRepeated => f.write_str("second hello"),
            Self::HelloTimeout(limit) => write!(f, "no hello within {limit:?}"),
            Self::PingTimeout(limit) => write!(f, "no answer to a ping within {limit:?}"),
            Self::StreamReused(id) => write!(f, "stream {id} opened again"),
            Self::UnknownStream(id) => write!(f, "frame on stream {id}, which was never opened"),
            Self::Unanswered(id) => write!(f, "frame on stream {id} before its open was answered"),
            Self::WrongNetwork(id) => write!(f, "frame on stream {id} that its network does not have"),
            Self::WindowExceeded { stream, credit, len } => {
                write!(f, "{len} bytes on stream {stream} with credit for {credit}")
            }
            Self::WindowZero(id) => write!(f, "credit of 0 for stream {id}"),
            Self::WindowOverflow(id) => write!(f, "credit of stream {id} raised beyond its maximum"),
            Self::GoAwayRaised { was, now } => {
                write!(f, "go-away honours opens up to {now} after saying {was}")
            }
            Self::EmptyData(limit) => write!(f, "more than {limit} empty data frames"),
            Self::CausedResets(limit) => write!(f, "more than {limit} mistakes on streams"),
            Self::UnseenResets(limit) => write!(f, "more than {limit} opens reset at once"),
            Self::CancelledOpens => f.write_str("too many opens reset before their answer"),
            Self::Ignored => f.write_str("too many frames that mean nothing"),
            Self::Pings => f.write_str("too many pings"),
            Self::ControlBacklog(limit) => write!(f, "more than {limit} bytes of answers that are not read"),
            Self::RulesTooLong(limit) => write!(f, "rules of more than {limit} bytes"),
            Self::RulesOutOfOrder(version) => write!(f, "rules of version {version} out of order"),
        }
    }
}

impl Error for PeerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Malformed(error) => Some(error),
            _ => None,
        }
    }
}

impl From<DecodeError> for PeerError {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

/// Why a stream could not be opened. Nothing was sent: another tunnel may be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// The hellos have not been exchanged yet.
    NotReady,
    /// One of the sides is going away, or the tunnel is lost.
    GoingAway,
    /// As many streams are open as may be.
    TooManyStreams(u32),
    /// As many opens are without an answer as may be.
    TooManyUnanswered(u32),
    /// The peer does not read, and control frames pile up.
    Congested,
    /// The process has no memory left for more streams.
    MemoryShort,
    /// Stream numbers have run out: the tunnel must be replaced.
    Exhausted,
    /// A field of the open does not fit the wire.
    Invalid(FieldTooLong),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => f.write_str("the tunnel is not ready"),
            Self::GoingAway => f.write_str("the tunnel is going away"),
            Self::TooManyStreams(limit) => write!(f, "the tunnel has {limit} streams, as many as it may"),
            Self::TooManyUnanswered(limit) => write!(f, "the tunnel has {limit} opens without an answer"),
            Self::Congested => f.write_str("the tunnel is congested"),
            Self::MemoryShort => f.write_str("there is no memory for more streams"),
            Self::Exhausted => f.write_str("the tunnel has no stream numbers left"),
            Self::Invalid(_) => f.write_str("the open does not fit the wire"),
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Invalid(field) => Some(field),
            _ => None,
        }
    }
}
