use std::error::Error;
use std::fmt;

use crate::Outcome;
use crate::causes::causes;

/// Which layer said no: the link of an error's chain just before its [`Outcome`].
///
/// Who counts refusals can tell layers apart by it, and knows none of them. A layer joins with one line, where its
/// error would point to the outcome alone:
///
/// ```
/// use anyproxy_core::{Outcome, Refusal};
///
/// #[derive(Debug)]
/// struct OfficeClosed;
///
/// impl std::fmt::Display for OfficeClosed {
///     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
///         f.write_str("the office is closed")
///     }
/// }
///
/// impl std::error::Error for OfficeClosed {
///     fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
///         Some(const { &Refusal::new("office_hours", Outcome::Denied) })
///     }
/// }
///
/// assert_eq!(Refusal::of(&OfficeClosed).map(|refusal| refusal.layer()), Some("office_hours"));
/// assert_eq!(Outcome::of(&OfficeClosed), Outcome::Denied);
/// ```
///
/// An error without one is no layer's: the client or the target said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    layer: &'static str,
    outcome: Outcome,
}

impl Refusal {
    /// A refusal of `layer`. The name is a metric's label, hence `'static`: their number is bounded. Lower case, words
    /// joined by underscores.
    #[must_use]
    pub const fn new(layer: &'static str, outcome: Outcome) -> Self {
        Self { layer, outcome }
    }

    /// The refusal an error names, the outermost one; `None` if no layer refused.
    ///
    /// tower's time-out and load-shed count as the layers `timeout` and `load_shed`.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        causes(error).find_map(|error| {
            if let Some(refusal) = error.downcast_ref::<Self>() {
                return Some(*refusal);
            }
            if error.is::<tower::timeout::error::Elapsed>() {
                return Some(Self::new("timeout", Outcome::of(error)));
            }
            error
                .is::<tower::load_shed::error::Overloaded>()
                .then(|| Self::new("load_shed", Outcome::of(error)))
        })
    }

    /// The layer.
    #[must_use]
    pub const fn layer(&self) -> &'static str {
        self.layer
    }

    /// What it means to the user.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused by {}", self.layer)
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_refusal_inside_an_io_error_is_found() {
        let refusal = Refusal::new("acl", Outcome::Denied);
        assert_eq!(Refusal::of(&io::Error::other(refusal)), Some(refusal));
        assert_eq!(Outcome::of(&io::Error::other(refusal)), Outcome::Denied);
    }

    #[test]
    fn what_no_layer_said_is_no_refusal() {
        assert_eq!(Refusal::of(&Outcome::Refused), None);
        assert_eq!(Refusal::of(&io::Error::from(io::ErrorKind::TimedOut)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn tower_s_time_out_is_a_layer() {
        use tower::ServiceExt as _;
        let never = tower::service_fn(|()| std::future::pending::<Result<(), crate::BoxError>>());
        let timeout = tower::timeout::Timeout::new(never, std::time::Duration::from_secs(1));
        let error = timeout.oneshot(()).await.unwrap_err();
        assert_eq!(Refusal::of(&*error), Some(Refusal::new("timeout", Outcome::TimedOut)));
    }
}
