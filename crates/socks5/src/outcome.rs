use anyproxy_core::Outcome;

use crate::proto::ReplyCode;

/// What a user is told about a dial that was not served. (A refused login is told before there is a request, by
/// RFC 1929's status.)
///
/// Limits and lack of capacity have no code of their own in SOCKS5, nor has the gateway's own failure.
#[must_use]
pub const fn reply_code(outcome: Outcome) -> ReplyCode {
    match outcome {
        Outcome::Denied | Outcome::LoginRequired => ReplyCode::NotAllowed,
        Outcome::NoClient | Outcome::NetworkUnreachable => ReplyCode::NetworkUnreachable,
        Outcome::Unresolved | Outcome::HostUnreachable | Outcome::InvalidTarget => ReplyCode::HostUnreachable,
        Outcome::Refused => ReplyCode::ConnectionRefused,
        Outcome::TimedOut => ReplyCode::TtlExpired,
        Outcome::UnsupportedCommand => ReplyCode::CommandNotSupported,
        _ => ReplyCode::GeneralFailure,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn s8_every_outcome_has_the_code_of_the_table() {
        let retry_after = Duration::from_secs(1);
        for (outcome, code) in [
            (Outcome::Denied, 0x02),
            (Outcome::Limited { retry_after }, 0x01),
            (Outcome::Overloaded { retry_after }, 0x01),
            (Outcome::NoClient, 0x03),
            (Outcome::Unresolved, 0x04),
            (Outcome::NetworkUnreachable, 0x03),
            (Outcome::HostUnreachable, 0x04),
            (Outcome::TunnelLost, 0x01),
            (Outcome::Refused, 0x05),
            (Outcome::TimedOut, 0x06),
            (Outcome::UnsupportedCommand, 0x07),
            (Outcome::Internal, 0x01),
        ] {
            assert_eq!(reply_code(outcome) as u8, code, "{outcome}");
        }
    }
}
