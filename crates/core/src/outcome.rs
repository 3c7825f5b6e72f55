use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

/// What became of a login or a dial that was not served: the last link of an error's `source()` chain.
///
/// A layer's own error names the fact (`Denied { target }`) and points here with `source()`; each front has one
/// function that turns an outcome into its protocol's answer. [`Outcome::of`] finds it again in any error:
///
/// ```
/// use anyproxy_core::Outcome;
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
///         Some(&Outcome::Denied)
///     }
/// }
///
/// assert_eq!(Outcome::of(&OfficeClosed), Outcome::Denied);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The login is missing or wrong.
    LoginRequired,
    /// Too many wrong logins came from this source.
    LockedOut {
        /// When another try makes sense.
        retry_after: Duration,
    },
    /// A rule says no, at either end.
    Denied,
    /// A rate or a limit of this user says not now.
    Limited {
        /// When another try makes sense.
        retry_after: Duration,
    },
    /// The gateway or the client has no room, or drains.
    Overloaded {
        /// When another try makes sense.
        retry_after: Duration,
    },
    /// No client serves this user's group.
    NoClient,
    /// The target's name does not resolve.
    Unresolved,
    /// There is no way to the target's network.
    NetworkUnreachable,
    /// There is no way to the target's host.
    HostUnreachable,
    /// The target refused the connection.
    Refused,
    /// The tunnel was lost before the answer.
    TunnelLost,
    /// The dial, or the target's first byte, took too long.
    TimedOut,
    /// The user's protocol asked for a command that is not served.
    UnsupportedCommand,
    /// The target cannot be written down as an address or a name.
    InvalidTarget,
    /// Something else; the log knows.
    Internal,
}

impl Outcome {
    /// The outcome an error means: its own if it is one, else that of its source, and so on; [`Outcome::Internal`]
    /// where nothing in the chain means anything. The outermost meaning wins.
    ///
    /// Also knows tower's and tokio's time-outs, tower's `Overloaded`, and [`io::Error`] by its content, then kind.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut link = Some(error);
        while let Some(error) = link {
            if let Some(outcome) = Self::of_link(error) {
                return outcome;
            }
            link = error.source();
        }
        Self::Internal
    }

    fn of_link(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(outcome) = error.downcast_ref::<Self>() {
            return Some(*outcome);
        }
        if error.is::<tower::timeout::error::Elapsed>() || error.is::<tokio::time::error::Elapsed>() {
            return Some(Self::TimedOut);
        }
        if error.is::<tower::load_shed::error::Overloaded>() {
            return Some(Self::Overloaded { retry_after: Duration::from_secs(1) });
        }
        let error = error.downcast_ref::<io::Error>()?;
        // `io::Error::other(e).source()` is `e.source()`, not `e`: what it wraps must be asked first.
        if let Some(inner) = error.get_ref() {
            let inner: &(dyn Error + 'static) = inner;
            let outcome = Self::of(inner);
            if outcome != Self::Internal {
                return Some(outcome);
            }
        }
        Self::of_kind(error.kind())
    }

    fn of_kind(kind: io::ErrorKind) -> Option<Self> {
        match kind {
            io::ErrorKind::ConnectionRefused => Some(Self::Refused),
            io::ErrorKind::NetworkUnreachable => Some(Self::NetworkUnreachable),
            io::ErrorKind::HostUnreachable => Some(Self::HostUnreachable),
            io::ErrorKind::TimedOut => Some(Self::TimedOut),
            io::ErrorKind::PermissionDenied => Some(Self::Denied),
            _ => None,
        }
    }

    /// When another try makes sense, where the outcome knows.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::LockedOut { retry_after }
            | Self::Limited { retry_after }
            | Self::Overloaded { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// A short name, from a closed set: for logs and metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::LoginRequired => "login_required",
            Self::LockedOut { .. } => "locked_out",
            Self::Denied => "denied",
            Self::Limited { .. } => "limited",
            Self::Overloaded { .. } => "overloaded",
            Self::NoClient => "no_client",
            Self::Unresolved => "unresolved",
            Self::NetworkUnreachable => "network_unreachable",
            Self::HostUnreachable => "host_unreachable",
            Self::Refused => "refused",
            Self::TunnelLost => "tunnel_lost",
            Self::TimedOut => "timed_out",
            Self::UnsupportedCommand => "unsupported_command",
            Self::InvalidTarget => "invalid_target",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LoginRequired => "login required",
            Self::LockedOut { .. } => "too many wrong logins",
            Self::Denied => "denied by a rule",
            Self::Limited { .. } => "over a limit of this user",
            Self::Overloaded { .. } => "no capacity left",
            Self::NoClient => "no client is connected",
            Self::Unresolved => "the name does not resolve",
            Self::NetworkUnreachable => "network unreachable",
            Self::HostUnreachable => "host unreachable",
            Self::Refused => "connection refused by the target",
            Self::TunnelLost => "the tunnel was lost",
            Self::TimedOut => "timed out",
            Self::UnsupportedCommand => "command not supported",
            Self::InvalidTarget => "not a valid target",
            Self::Internal => "internal error",
        })
    }
}

impl Error for Outcome {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_inside_an_io_error_is_found() {
        let error = io::Error::other(Outcome::NoClient);
        assert_eq!(Outcome::of(&error), Outcome::NoClient);
    }

    #[test]
    fn an_io_error_without_content_is_known_by_its_kind() {
        let error = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(Outcome::of(&error), Outcome::Refused);
        assert_eq!(Outcome::of(&io::Error::other("what?")), Outcome::Internal);
    }

    #[test]
    fn the_outermost_meaning_wins() {
        #[derive(Debug)]
        struct Late(Outcome);
        impl fmt::Display for Late {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("late")
            }
        }
        impl Error for Late {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let error = io::Error::new(io::ErrorKind::TimedOut, Late(Outcome::TunnelLost));
        assert_eq!(Outcome::of(&error), Outcome::TunnelLost);
    }

    #[tokio::test(start_paused = true)]
    async fn tower_s_time_out_means_timed_out() {
        use tower::ServiceExt as _;
        let never = tower::service_fn(|()| std::future::pending::<Result<(), crate::BoxError>>());
        let error =
            tower::timeout::Timeout::new(never, Duration::from_secs(1)).oneshot(()).await.unwrap_err();
        assert_eq!(Outcome::of(&*error), Outcome::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn tokio_s_time_out_means_timed_out() {
        let never = std::future::pending::<()>();
        let error = tokio::time::timeout(Duration::from_secs(1), never).await.unwrap_err();
        assert_eq!(Outcome::of(&error), Outcome::TimedOut);
    }
}
