use std::error::Error;
use std::fmt;
use std::time::Duration;

use anyproxy_core::{Outcome, Refusal};

/// Of both refusals: one layer's limits.
const LAYER: &str = "queue";
/// When another try makes sense: seats come free all the time, and a crowd that comes back later than this would
/// leave them empty.
const SOON: Duration = Duration::from_secs(1);

/// There is no seat: the waiting line is full, or the wait took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overloaded {
    /// The waiting line has no place left for this user.
    LineFull,
    /// No seat came free in time.
    TooLate,
    /// Nobody waits any more: the gateway drains.
    Closed,
}

impl fmt::Display for Overloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LineFull => "the waiting line is full",
            Self::TooLate => "no connection came free in time",
            Self::Closed => "nobody waits for a connection any more",
        })
    }
}

impl Error for Overloaded {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(const { &Refusal::new(LAYER, Outcome::Overloaded { retry_after: SOON }) })
    }
}

/// The user has as many connections as they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TooManyConnections;

impl fmt::Display for TooManyConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the user has as many connections as they may")
    }
}

impl Error for TooManyConnections {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(const { &Refusal::new(LAYER, Outcome::Limited { retry_after: SOON }) })
    }
}
