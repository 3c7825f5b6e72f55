use std::fmt;

use anyproxy_core::Outcome;

/// What a user whose connection is not passed on is told: a fatal alert (RFC 8446 section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Alert {
    /// A rule says no, or the stack wants a login, which this front cannot ask for.
    AccessDenied = 49,
    /// The hello is longer than this front reads.
    DecodeError = 50,
    /// The target cannot be reached, for whatever reason, or the way to it leads back here: TLS has no words for it.
    InternalError = 80,
    /// The hello names no server (RFC 8446 section 9.2).
    MissingExtension = 109,
    /// The name is not served here, or does not resolve at the far end.
    UnrecognizedName = 112,
}

impl Alert {
    /// The alert for a login or a dial that was not served.
    #[must_use]
    pub const fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Denied | Outcome::LoginRequired | Outcome::LockedOut { .. } => Self::AccessDenied,
            Outcome::Unresolved | Outcome::InvalidTarget => Self::UnrecognizedName,
            _ => Self::InternalError,
        }
    }

    /// The record that says it. No version has been agreed on yet, so the record's is TLS 1.2, as that of every later
    /// version is too (RFC 8446 section 5.1).
    pub(crate) const fn record(self) -> [u8; 7] {
        const ALERT: u8 = 21;
        const FATAL: u8 = 2;
        [ALERT, 3, 3, 0, 2, FATAL, self as u8]
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AccessDenied => "access denied",
            Self::DecodeError => "decode error",
            Self::InternalError => "internal error",
            Self::MissingExtension => "missing extension",
            Self::UnrecognizedName => "unrecognized name",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_outcome_has_an_alert() {
        let retry_after = Duration::from_secs(1);
        for (outcome, alert) in [
            (Outcome::LoginRequired, 49),
            (Outcome::LockedOut { retry_after }, 49),
            (Outcome::Denied, 49),
            (Outcome::Limited { retry_after }, 80),
            (Outcome::Overloaded { retry_after }, 80),
            (Outcome::NoClient, 80),
            (Outcome::Unresolved, 112),
            (Outcome::NetworkUnreachable, 80),
            (Outcome::HostUnreachable, 80),
            (Outcome::TunnelLost, 80),
            (Outcome::Refused, 80),
            (Outcome::TimedOut, 80),
            (Outcome::Internal, 80),
        ] {
            assert_eq!(Alert::of(outcome).record(), [0x15, 3, 3, 0, 2, 2, alert], "{outcome}");
        }
    }
}
