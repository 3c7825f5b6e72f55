use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_core::Outcome;
use anyproxy_mux::PeerError;
use anyproxy_mux::frame::{FieldTooLong, GoAway, OpenErr, OpenErrClass, ResetCode};
use http::StatusCode;

use crate::CarrierError;

/// Why there is no tunnel: something went wrong before both hellos were exchanged.
#[derive(Debug)]
#[non_exhaustive]
pub enum TunnelError {
    /// The carrier failed.
    Carrier(CarrierError),
    /// The peer broke the protocol, or said nothing in time.
    Peer(PeerError),
    /// The gateway does not want this tunnel.
    Refused(Box<GoAway>),
    /// The own hello does not fit the wire.
    Invalid(FieldTooLong),
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Carrier(_) => f.write_str("the tunnel was lost before the hellos"),
            Self::Peer(_) => f.write_str("the peer of the tunnel broke the protocol"),
            Self::Refused(go_away) => {
                write!(f, "the gateway refuses the tunnel: {} {:?}", go_away.code, go_away.reason)
            }
            Self::Invalid(_) => f.write_str("the hello does not fit the wire"),
        }
    }
}

impl Error for TunnelError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Carrier(error) => Some(error),
            Self::Peer(error) => Some(error),
            Self::Refused(_) => None,
            Self::Invalid(error) => Some(error),
        }
    }
}

impl From<CarrierError> for TunnelError {
    fn from(error: CarrierError) -> Self {
        Self::Carrier(error)
    }
}

impl From<PeerError> for TunnelError {
    fn from(error: PeerError) -> Self {
        Self::Peer(error)
    }
}

impl From<FieldTooLong> for TunnelError {
    fn from(error: FieldTooLong) -> Self {
        Self::Invalid(error)
    }
}

/// Why a tunnel ended. Cheap to clone: everybody who waits for the end gets one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// This side closed it.
    Closed,
    /// One of the sides went away, and the last stream has ended.
    Drained,
    /// The carrier failed, or the peer closed it.
    Carrier(Arc<CarrierError>),
    /// The peer broke the protocol, or is dead.
    Peer(PeerError),
    /// The driver was dropped, or panicked.
    Abandoned,
}

impl CloseReason {
    /// A short name, from a closed set: for logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Drained => "drained",
            Self::Carrier(error) => match &**error {
                CarrierError::Io(_) => "lost",
                CarrierError::Closed { .. } => "closed_by_peer",
                CarrierError::Violation { .. } => "violation",
            },
            Self::Peer(PeerError::PingTimeout(_)) => "dead",
            Self::Peer(_) => "violation",
            Self::Abandoned => "abandoned",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by this side"),
            Self::Drained => f.write_str("drained"),
            Self::Carrier(_) => f.write_str("the carrier is lost"),
            Self::Peer(_) => f.write_str("the peer broke the protocol or is dead"),
            Self::Abandoned => f.write_str("the tunnel's task is gone"),
        }
    }
}

impl Error for CloseReason {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Carrier(error) => Some(&**error),
            Self::Peer(error) => Some(error),
            _ => None,
        }
    }
}

/// Why there is no stream. Its `source()` chain ends in an [`Outcome`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// The client looked at the open and did not reach the target.
    Refused(Box<OpenErr>, Outcome),
    /// The open never left: the tunnel is full, going away or lost. Another tunnel may be tried.
    NotSent(Option<anyproxy_mux::OpenError>),
    /// The client went away without having looked at the open. Another tunnel may be tried.
    Disowned,
    /// The tunnel was lost before the answer: the open may have reached the target, so it is not tried again.
    Lost,
}

impl OpenError {
    pub(crate) fn refused(answer: Box<OpenErr>) -> Self {
        let outcome = match answer.class {
            OpenErrClass::Disowned => return Self::Disowned,
            OpenErrClass::Denied => Outcome::Denied,
            OpenErrClass::Unresolved => Outcome::Unresolved,
            OpenErrClass::NetworkUnreachable => Outcome::NetworkUnreachable,
            OpenErrClass::HostUnreachable => Outcome::HostUnreachable,
            OpenErrClass::Refused => Outcome::Refused,
            OpenErrClass::TimedOut => Outcome::TimedOut,
            OpenErrClass::Overloaded => Outcome::Overloaded { retry_after: Duration::from_secs(1) },
            _ => Outcome::Internal,
        };
        Self::Refused(answer, outcome)
    }

    /// Whether the open certainly reached no target, so that another tunnel may be tried.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotSent(_) | Self::Disowned => true,
            // The client says so before it dials.
            Self::Refused(answer, _) => {
                matches!(answer.class, OpenErrClass::Overloaded | OpenErrClass::UnknownRules)
            }
            Self::Lost => false,
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The text comes from a peer: `escape_debug` keeps it on its line.
            Self::Refused(answer, _) => {
                write!(f, "the client says {}: {}", answer.class, answer.text.escape_debug())
            }
            Self::NotSent(Some(why)) => write!(f, "the open was not sent: {why}"),
            Self::NotSent(None) => f.write_str("the open was not sent: the tunnel is lost"),
            Self::Disowned => f.write_str("the client went away before it looked at the open"),
            Self::Lost => f.write_str("the tunnel was lost before the answer"),
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        use anyproxy_mux::OpenError as Mux;
        const OVERLOADED: Outcome = Outcome::Overloaded { retry_after: Duration::from_secs(1) };
        Some(match self {
            Self::Refused(_, outcome) => outcome,
            Self::NotSent(Some(
                Mux::TooManyStreams(_) | Mux::TooManyUnanswered(_) | Mux::Congested | Mux::MemoryShort,
            )) => &OVERLOADED,
            Self::NotSent(Some(Mux::Invalid(_))) => &Outcome::InvalidTarget,
            Self::NotSent(_) | Self::Disowned | Self::Lost => &Outcome::TunnelLost,
        })
    }
}

/// Why a stream was reset: the inner error of the [`ConnectionReset`](io::ErrorKind::ConnectionReset) it reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamReset {
    /// The peer reset it, or broke its rules.
    Peer(ResetCode),
    /// All readers of the tunnel together held too much, and this stream's held much.
    Limit,
    /// The tunnel was lost, or closed.
    TunnelLost,
}

impl fmt::Display for StreamReset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(code) => write!(f, "the other end reset the stream: {code}"),
            Self::Limit => f.write_str("too much was received that nobody read"),
            Self::TunnelLost => f.write_str("the tunnel of the stream was lost"),
        }
    }
}

impl Error for StreamReset {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Peer(_) | Self::Limit => None,
            Self::TunnelLost => Some(&Outcome::TunnelLost),
        }
    }
}

impl From<StreamReset> for io::Error {
    fn from(reset: StreamReset) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, reset)
    }
}

/// Why a WebSocket upgrade did not lead to a tunnel.
#[derive(Debug)]
#[non_exhaustive]
pub enum UpgradeError {
    /// 401: the credentials are wrong, or missing.
    Unauthorized,
    /// 403: the credentials are right, and may not do this.
    Forbidden,
    /// Any other answer than 101.
    Status {
        /// The answer's status.
        status: StatusCode,
        /// How long to wait before another try, if it says so in seconds (RFC 9110 section 10.2.3).
        retry_after: Option<Duration>,
    },
    /// The answer is no upgrade to the protocol that was asked for.
    Protocol(Box<dyn Error + Send + Sync>),
    /// The connection failed.
    Io(io::Error),
}

impl fmt::Display for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauthorized => f.write_str("the gateway does not accept the credentials (401)"),
            Self::Forbidden => f.write_str("the gateway forbids the tunnel (403)"),
            Self::Status { status, .. } => write!(f, "the gateway answered {status}"),
            Self::Protocol(_) => f.write_str("the gateway's answer is not the expected WebSocket upgrade"),
            Self::Io(_) => f.write_str("the connection failed during the upgrade"),
        }
    }
}

impl Error for UpgradeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Protocol(error) => Some(&**error),
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for UpgradeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
