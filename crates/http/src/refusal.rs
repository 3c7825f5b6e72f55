use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::time::Duration;

use anyproxy_core::{InvalidTarget, Outcome, Target};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use tracing::{debug, warn};

use crate::config::Config;
use crate::proxy_status::proxy_status;
use crate::wire::Malformed;

/// Not in `http::header`.
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The answer of this proxy itself: what it says instead of a target.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    /// The error type of RFC 9209 section 2.3, where one fits.
    error: Option<&'static str>,
    /// What the user reads.
    text: Cow<'static, str>,
    retry_after: Option<Duration>,
    next_hop: Option<String>,
    /// Whether nothing behind the request may be read any more.
    close: bool,
    /// `OPTIONS` answered by the proxy itself names what it serves.
    allow: bool,
}

impl Refusal {
    const fn new(status: StatusCode, error: Option<&'static str>, text: &'static str) -> Self {
        let text = Cow::Borrowed(text);
        Self { status, error, text, retry_after: None, next_hop: None, close: false, allow: false }
    }

    /// A request that is not understood, or that two readers could understand differently: 400, and nothing behind
    /// it is read.
    pub(crate) const fn bad_request(text: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, None, text).closing()
    }

    /// A request that is understood and not served.
    pub(crate) const fn with_status(status: StatusCode, text: &'static str) -> Self {
        Self::new(status, Some("http_request_denied"), text)
    }

    /// The request was here before (`Via`).
    pub(crate) const fn proxy_loop() -> Self {
        let text = "This request has passed this proxy before.\n";
        Self::new(StatusCode::BAD_GATEWAY, Some("proxy_loop_detected"), text)
    }

    /// The answer of the proxy itself to `OPTIONS`.
    pub(crate) const fn options() -> Self {
        let mut answer = Self::new(StatusCode::OK, None, "");
        answer.allow = true;
        answer
    }

    /// A panic in a handler.
    pub(crate) const fn panicked() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Some("proxy_internal_error"), "Internal error.\n")
            .closing()
    }

    /// The one function from what became of a login or a dial to what HTTP calls it.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        let outcome = Outcome::of(error);
        let mut refusal = Self::from(outcome);
        if refusal.status == StatusCode::INTERNAL_SERVER_ERROR {
            warn!(error = ?error.to_string(), cause = ?error.source().map(ToString::to_string), "a dial failed");
        } else {
            debug!(outcome = outcome.as_str(), error = ?error.to_string(), "refused");
        }
        if let Some(limit) = find::<http_body_util::LengthLimitError>(error) {
            debug!(%limit, "refused");
            refusal = Self::new(StatusCode::PAYLOAD_TOO_LARGE, Some("http_request_denied"), "Too large.\n")
                .closing();
        }
        refusal
    }

    /// Nothing behind this request may be read any more.
    pub(crate) const fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// Names the target in `Proxy-Status`.
    pub(crate) fn towards(mut self, target: &Target) -> Self {
        self.next_hop = Some(target.to_string());
        self
    }

    /// The answer.
    pub(crate) fn into_response(self, config: &Config) -> Response<Bytes> {
        let text = match self.text {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => text.into(),
        };
        let mut response = Response::new(text);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if !response_is_empty(self.status) && !self.allow {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        if self.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            headers.insert(header::PROXY_AUTHENTICATE, config.realm.challenge().clone());
        }
        if let Some(wait) = self.retry_after {
            // Rounded up: a user who comes back at that second is served.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        if let Some(status) = self.error.and_then(|error| {
            HeaderValue::try_from(proxy_status(&config.name, error, self.next_hop.as_deref())).ok()
        }) {
            headers.insert(PROXY_STATUS, status);
        }
        if self.allow {
            let methods = "CONNECT, DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, TRACE";
            headers.insert(header::ALLOW, HeaderValue::from_static(methods));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

fn response_is_empty(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    std::iter::successors(Some(error), |error| (*error).source()).find_map(|error| error.downcast_ref())
}

/// The table: DESIGN calls it outcomes, RFC 9209 section 2.3 proxy error types.
impl From<Outcome> for Refusal {
    fn from(outcome: Outcome) -> Self {
        use StatusCode as S;
        let (status, error, text) = match outcome {
            Outcome::LoginRequired => (S::PROXY_AUTHENTICATION_REQUIRED, None, "Log in to use this proxy.\n"),
            Outcome::LockedOut { .. } => (
                S::TOO_MANY_REQUESTS,
                Some("http_request_denied"),
                "Too many wrong logins. Try again later.\n",
            ),
            Outcome::Denied => (S::FORBIDDEN, Some("http_request_denied"), "Not allowed by a rule.\n"),
            Outcome::Limited { .. } => {
                (S::TOO_MANY_REQUESTS, Some("http_request_denied"), "Over a limit. Try again later.\n")
            }
            Outcome::Overloaded { .. } => (
                S::SERVICE_UNAVAILABLE,
                Some("connection_limit_reached"),
                "No capacity left. Try again later.\n",
            ),
            Outcome::NoClient => {
                (S::SERVICE_UNAVAILABLE, Some("destination_unavailable"), "No client is connected.\n")
            }
            Outcome::Unresolved => (S::BAD_GATEWAY, Some("dns_error"), "The name does not resolve.\n"),
            Outcome::NetworkUnreachable => {
                (S::BAD_GATEWAY, Some("destination_ip_unroutable"), "The network is unreachable.\n")
            }
            Outcome::HostUnreachable => {
                (S::BAD_GATEWAY, Some("destination_ip_unroutable"), "The host is unreachable.\n")
            }
            Outcome::Refused => {
                (S::BAD_GATEWAY, Some("connection_refused"), "The target refused the connection.\n")
            }
            Outcome::TunnelLost => (S::BAD_GATEWAY, Some("connection_terminated"), "The tunnel was lost.\n"),
            Outcome::TimedOut => {
                (S::GATEWAY_TIMEOUT, Some("connection_timeout"), "The dial took too long.\n")
            }
            Outcome::UnsupportedCommand => {
                (S::METHOD_NOT_ALLOWED, Some("http_request_denied"), "This is not served.\n")
            }
            Outcome::InvalidTarget => (S::BAD_REQUEST, Some("http_request_error"), "Not a valid target.\n"),
            _ => (S::INTERNAL_SERVER_ERROR, Some("proxy_internal_error"), "Internal error.\n"),
        };
        Self { retry_after: outcome.retry_after(), ..Self::new(status, error, text) }
    }
}

impl From<InvalidTarget> for Refusal {
    fn from(error: InvalidTarget) -> Self {
        let mut refusal = Self::from(Outcome::InvalidTarget).closing();
        refusal.text = Cow::Owned(format!("Not a valid target: {error}.\n"));
        refusal
    }
}

/// What went wrong between request and response, after the dial.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The user's body failed, or was not what its length promised.
    User(anyproxy_core::BoxError),
    /// The stream failed; whether anything of a response had come.
    Stream { error: io::Error, heard: bool },
    /// The target ended before its response; whether anything of one had come.
    Ended { heard: bool },
    /// The target ended within a body.
    Truncated,
    /// The target's bytes are no HTTP/1.1.
    Malformed(Malformed),
    /// No response in time.
    Silent,
}

impl Fault {
    /// Whether the target had closed its connection before it can have seen the request: another try is safe.
    pub(crate) const fn is_unheard(&self) -> bool {
        matches!(self, Self::Stream { heard: false, .. } | Self::Ended { heard: false })
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::User(_) => "the request's body failed",
            Self::Stream { .. } => "the stream to the target failed",
            Self::Ended { .. } => "the target closed before its response",
            Self::Truncated => "the target closed within its response",
            Self::Malformed(_) => "the target's response is malformed",
            Self::Silent => "the target did not respond in time",
        })
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::User(error) => Some(&**error),
            Self::Stream { error, .. } => Some(error),
            Self::Malformed(error) => Some(error),
            Self::Ended { .. } | Self::Truncated | Self::Silent => None,
        }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        let (status, error, text) = match &fault {
            Fault::User(error) if find::<http_body_util::LengthLimitError>(&**error).is_some() => {
                return Self::of(&**error);
            }
            Fault::User(_) => return Self::bad_request("The request's body is not well-formed.\n"),
            Fault::Stream { heard: false, .. } | Fault::Ended { heard: false } => {
                (StatusCode::BAD_GATEWAY, "connection_terminated", "The target closed before it responded.\n")
            }
            Fault::Stream { heard: true, .. } | Fault::Ended { heard: true } | Fault::Truncated => (
                StatusCode::BAD_GATEWAY,
                "http_response_incomplete",
                "The target closed in the middle of its response.\n",
            ),
            Fault::Malformed(Malformed::HeadTooLarge) => (
                StatusCode::BAD_GATEWAY,
                "http_response_header_section_size",
                "The target's response has too large a head.\n",
            ),
            Fault::Malformed(Malformed::Coding) => (
                StatusCode::BAD_GATEWAY,
                "http_response_transfer_coding",
                "The target's transfer coding is not understood.\n",
            ),
            Fault::Malformed(Malformed::Upgrade) => (
                StatusCode::BAD_GATEWAY,
                "http_upgrade_failed",
                "The target upgraded to what nobody asked for.\n",
            ),
            Fault::Malformed(_) => {
                (StatusCode::BAD_GATEWAY, "http_protocol_error", "The target does not speak HTTP/1.1.\n")
            }
            Fault::Silent => (
                StatusCode::GATEWAY_TIMEOUT,
                "http_response_timeout",
                "The target did not respond in time.\n",
            ),
        };
        debug!(error = %fault, cause = ?fault.source().map(ToString::to_string), "no response");
        Self::new(status, Some(error), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ProxyName;

    fn answer(outcome: Outcome) -> Response<Bytes> {
        let config = Config { name: ProxyName::new("gate").unwrap(), ..Config::default() };
        Refusal::from(outcome).into_response(&config)
    }

    #[test]
    fn every_outcome_has_its_status_and_its_proxy_error() {
        let retry_after = Duration::from_millis(1_200);
        for (outcome, status, error) in [
            (Outcome::LockedOut { retry_after }, 429, "http_request_denied"),
            (Outcome::Denied, 403, "http_request_denied"),
            (Outcome::Limited { retry_after }, 429, "http_request_denied"),
            (Outcome::Overloaded { retry_after }, 503, "connection_limit_reached"),
            (Outcome::NoClient, 503, "destination_unavailable"),
            (Outcome::Unresolved, 502, "dns_error"),
            (Outcome::NetworkUnreachable, 502, "destination_ip_unroutable"),
            (Outcome::HostUnreachable, 502, "destination_ip_unroutable"),
            (Outcome::Refused, 502, "connection_refused"),
            (Outcome::TunnelLost, 502, "connection_terminated"),
            (Outcome::TimedOut, 504, "connection_timeout"),
            (Outcome::UnsupportedCommand, 405, "http_request_denied"),
            (Outcome::InvalidTarget, 400, "http_request_error"),
            (Outcome::Internal, 500, "proxy_internal_error"),
        ] {
            let response = answer(outcome);
            assert_eq!(response.status().as_u16(), status, "{outcome:?}");
            assert_eq!(response.headers()[PROXY_STATUS], format!("gate; error={error}"), "{outcome:?}");
            let waits = response.headers().get(header::RETRY_AFTER);
            assert_eq!(
                waits.map(HeaderValue::as_bytes),
                outcome.retry_after().map(|_| &b"2"[..]),
                "{outcome:?}"
            );
        }
    }

    #[test]
    fn p1_a_missing_login_is_challenged_once() {
        let response = answer(Outcome::LoginRequired);
        assert_eq!(response.status(), StatusCode::PROXY_AUTHENTICATION_REQUIRED);
        let challenges: Vec<_> = response.headers().get_all(header::PROXY_AUTHENTICATE).iter().collect();
        assert_eq!(challenges, ["Basic realm=\"AnyProxy\", charset=\"UTF-8\""]);
    }

    #[test]
    fn an_unknown_error_is_answered_vaguely() {
        let refusal = Refusal::of(&io::Error::other("the canary of an inner error"));
        assert_eq!(refusal.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!refusal.text.contains("canary"));
    }
}
