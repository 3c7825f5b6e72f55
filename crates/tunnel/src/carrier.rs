use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;

/// What carries messages to the peer and back, whole and in order: a [`WebSocket`](crate::WebSocket) in production.
///
/// The driver calls it from one task, and sends only after [`poll_ready`](Self::poll_ready) said so.
pub trait Carrier: Send + Unpin + 'static {
    /// The next message; `None` when the peer has ended the carrier in an orderly way without saying more.
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CarrierError>>>;

    /// Whether there is room for one more message. A carrier holds back as little as it can: what it has taken,
    /// more urgent frames can no longer overtake.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Takes one message, of at most [`MAX_MESSAGE`](anyproxy_mux::frame::MAX_MESSAGE) bytes: these pieces, joined, and
    /// leaves none of them. It comes in pieces so that bulk is copied once, to where it leaves from.
    ///
    /// # Errors
    ///
    /// That of the connection; the carrier is over then.
    fn start_send(&mut self, message: &mut Vec<Bytes>) -> io::Result<()>;

    /// Passes all that was taken to the connection.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends the carrier, telling the peer the close code (RFC 6455 section 7.4.1) and the reason where there is a way
    /// to. Called again until it is ready, with the same words.
    fn poll_close(&mut self, cx: &mut Context<'_>, code: u16, reason: &str) -> Poll<io::Result<()>>;
}

/// Why a carrier carries no more.
#[derive(Debug)]
#[non_exhaustive]
pub enum CarrierError {
    /// The connection failed, or ended without a word.
    Io(io::Error),
    /// The peer closed it, and said why.
    Closed {
        /// The close code (RFC 6455 section 7.4.1); 1005 if there was none.
        code: u16,
        /// The reason. Untrusted: escape it before it is shown.
        reason: String,
    },
    /// The peer broke the rules of the carrier.
    Violation {
        /// The close code to answer with.
        code: u16,
        /// What it did.
        what: Cow<'static, str>,
    },
}

impl fmt::Display for CarrierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_) => f.write_str("the connection failed"),
            Self::Closed { code, reason } => write!(f, "closed by the peer with {code} {reason:?}"),
            Self::Violation { what, .. } => write!(f, "the peer broke the carrier's rules: {what}"),
        }
    }
}

impl Error for CarrierError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for CarrierError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
