use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_core::{Fault, Outcome};
use anyproxy_tunnel::OpenError;
use anyproxy_tunnel::frame::{FieldTooLong, OpenErrClass};

/// When another try makes sense where a client is full or does not have the newest rules yet.
const SOON: Duration = Duration::from_secs(1);

/// A dial that its client did not serve.
///
/// Its chain ends in the [`Outcome`] for the user, behind a [`Fault`] where the failure is the client's or the
/// tunnel's and not the target's. The client's own words are shown escaped.
#[derive(Debug)]
pub struct NotServed {
    client: Arc<str>,
    verdict: Verdict,
    cause: Cause,
}

#[derive(Clone, Copy, Debug)]
enum Verdict {
    Client(Fault),
    Target(Outcome),
}

#[derive(Debug)]
enum Cause {
    Open(OpenError),
    Draining,
    PinnedElsewhere,
    NoTunnel,
    Silence,
    Unwritable(FieldTooLong),
}

impl NotServed {
    pub(crate) fn new(client: &Arc<str>, error: OpenError) -> Self {
        Self { client: client.clone(), verdict: judge(&error), cause: Cause::Open(error) }
    }

    /// The gateway drains: users come back when another one, or this one anew, is there.
    pub(crate) fn draining(client: &Arc<str>) -> Self {
        Self::declined(client, Cause::Draining, 5 * SOON)
    }

    /// Another client of the group serves the flows of this association.
    pub(crate) fn pinned_elsewhere(client: &Arc<str>) -> Self {
        Self::declined(client, Cause::PinnedElsewhere, SOON)
    }

    /// No tunnel of the client takes opens.
    pub(crate) fn no_tunnel(client: &Arc<str>) -> Self {
        let fault = Fault::Unreached(Outcome::TunnelLost);
        Self { client: client.clone(), verdict: Verdict::Client(fault), cause: Cause::NoTunnel }
    }

    /// The client did not answer in time.
    pub(crate) fn unanswered(client: &Arc<str>) -> Self {
        let fault = Fault::Unanswered(Outcome::TimedOut);
        Self { client: client.clone(), verdict: Verdict::Client(fault), cause: Cause::Silence }
    }

    /// What the dial says of its user does not fit the wire. Cut short it might mean somebody else to the rules at
    /// the client.
    pub(crate) fn unwritable(client: &Arc<str>, field: FieldTooLong) -> Self {
        let verdict = Verdict::Target(Outcome::Internal);
        Self { client: client.clone(), verdict, cause: Cause::Unwritable(field) }
    }

    fn declined(client: &Arc<str>, cause: Cause, retry_after: Duration) -> Self {
        let fault = Fault::Declined(Outcome::Overloaded { retry_after });
        Self { client: client.clone(), verdict: Verdict::Client(fault), cause }
    }

    /// The client that was asked.
    #[must_use]
    pub fn client(&self) -> &str {
        &self.client
    }
}

/// Whose failure it is.
fn judge(error: &OpenError) -> Verdict {
    let outcome = Outcome::of(error);
    match error {
        OpenError::Refused(answer, _) => match answer.class {
            // The rules that judged the open are still on their way to this client.
            OpenErrClass::UnknownRules | OpenErrClass::Overloaded => {
                Verdict::Client(Fault::Declined(Outcome::Overloaded { retry_after: SOON }))
            }
            _ => Verdict::Target(outcome),
        },
        OpenError::NotSent(_) => match outcome {
            Outcome::Overloaded { .. } => Verdict::Client(Fault::Declined(outcome)),
            Outcome::TunnelLost => Verdict::Client(Fault::Unreached(outcome)),
            _ => Verdict::Target(outcome),
        },
        OpenError::Disowned => Verdict::Client(Fault::Declined(outcome)),
        // Sent and unanswered, or something newer that makes no promise.
        _ => Verdict::Client(Fault::Unanswered(outcome)),
    }
}

impl fmt::Display for NotServed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not served by client {}: ", self.client.escape_debug())?;
        match &self.cause {
            Cause::Open(error) => error.fmt(f),
            Cause::Draining => f.write_str("the gateway drains"),
            Cause::PinnedElsewhere => f.write_str("another client has the association"),
            Cause::NoTunnel => f.write_str("no tunnel takes opens"),
            Cause::Silence => f.write_str("no answer in time"),
            Cause::Unwritable(field) => field.fmt(f),
        }
    }
}

impl Error for NotServed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(match &self.verdict {
            Verdict::Client(fault) => fault,
            Verdict::Target(outcome) => outcome,
        })
    }
}

#[cfg(test)]
mod tests {
    use anyproxy_tunnel::frame::OpenErr;

    use super::*;

    fn moves(error: OpenError) -> bool {
        Fault::of(&NotServed::new(&"east".into(), error)).is_some_and(Fault::may_ask_another)
    }

    #[test]
    fn a_target_s_refusal_is_no_fault_of_the_client() {
        let answer = OpenErr::new(OpenErrClass::Refused, "");
        let error = NotServed::new(&"east".into(), OpenError::Refused(Box::new(answer), Outcome::Refused));
        assert_eq!(Outcome::of(&error), Outcome::Refused);
        assert_eq!(Fault::of(&error), None);
    }

    #[test]
    fn a_full_client_declines_and_is_not_blamed() {
        let answer = OpenErr::new(OpenErrClass::Overloaded, "");
        let error = NotServed::new(&"east".into(), OpenError::Refused(Box::new(answer), Outcome::Internal));
        assert!(Fault::of(&error).is_some_and(|fault| fault.may_ask_another() && !fault.is_failure()));
        assert!(matches!(Outcome::of(&error), Outcome::Overloaded { .. }));
    }

    #[test]
    fn m16_only_an_open_that_nobody_acted_on_may_move() {
        assert!(moves(OpenError::NotSent(None)));
        assert!(moves(OpenError::Disowned));
        assert!(!moves(OpenError::Lost));
        assert!(!Fault::of(&NotServed::unanswered(&"east".into())).is_some_and(Fault::may_ask_another));
    }

    #[test]
    fn a13_a_client_s_words_are_shown_escaped_and_short() {
        let words = "no\r\nroute\x1b[2J".to_owned() + &"x".repeat(1 << 20);
        let answer = OpenErr::new(OpenErrClass::Internal, words);
        let shown = NotServed::new(&"east".into(), OpenError::Refused(Box::new(answer), Outcome::Internal))
            .to_string();
        assert!(!shown.contains(['\r', '\n', '\x1b']), "{shown}");
        assert!(shown.len() < 1024);
    }
}
