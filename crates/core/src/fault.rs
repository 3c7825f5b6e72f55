use std::error::Error;
use std::fmt;

use crate::Outcome;
use crate::causes::causes;

/// What a failed dial says about the member of a group that was asked: a link in an error's chain, before its
/// [`Outcome`].
///
/// What a balancer acts on. An error without one is the target's, or a rule's: another member would say the same,
/// and the member that said it is well.
///
/// ```
/// use anyproxy_core::{Fault, Outcome};
///
/// let error = Fault::Unreached(Outcome::TunnelLost);
/// assert_eq!(Outcome::of(&error), Outcome::TunnelLost);
/// assert!(Fault::of(&error).is_some_and(Fault::may_ask_another));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The member has no room, or is about to leave: it did not act on the dial, and nothing is wrong with it.
    Declined(Outcome),
    /// The dial provably never reached the member.
    Unreached(Outcome),
    /// The member was asked and gave no answer: it may have acted on the dial.
    Unanswered(Outcome),
}

impl Fault {
    /// The fault an error names; `None` if it names none.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        causes(error).find_map(|error| error.downcast_ref::<Self>().copied())
    }

    /// Whether another member may be asked: nobody has acted on the dial.
    #[must_use]
    pub const fn may_ask_another(self) -> bool {
        matches!(self, Self::Declined(_) | Self::Unreached(_))
    }

    /// Whether it speaks against the member's health.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Unreached(_) | Self::Unanswered(_))
    }

    const fn outcome(&self) -> &Outcome {
        match self {
            Self::Declined(outcome) | Self::Unreached(outcome) | Self::Unanswered(outcome) => outcome,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Declined(_) => "the client takes no more dials now",
            Self::Unreached(_) => "the dial did not reach the client",
            Self::Unanswered(_) => "the client did not answer",
        })
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.outcome())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_fault_inside_an_io_error_is_found() {
        let fault = Fault::Unreached(Outcome::TunnelLost);
        assert_eq!(Fault::of(&io::Error::other(fault)), Some(fault));
        assert_eq!(Fault::of(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
    }
}
