//! The request by which a client's connection becomes a WebSocket (RFC 6455 section 4.2), and its answers.

use std::time::Duration;

use anyproxy_core::{Credentials, DEFAULT_GROUP, Outcome};
use anyproxy_tunnel::upgrade::{GROUP_HEADER, PATH, SUBPROTOCOL};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, HOST, HeaderName, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The body of an answer.
pub(crate) type Body = Full<Bytes>;

/// A request for an upgrade that is in order; who asks is still to be verified.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) credentials: Option<Credentials>,
    pub(crate) group: String,
    accept: String,
}

/// Why there is no upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Another path than [`PATH`].
    NotFound,
    /// Another method than GET.
    Method,
    /// No upgrade to a WebSocket was asked for, or another version than 13.
    Version,
    /// The request is not one of RFC 6455, or not for this protocol.
    Malformed(&'static str),
    /// A page of another site asks, in somebody's browser.
    ForeignOrigin,
    /// The account's clients may not serve this group.
    Group,
    /// What the verifier made of the login.
    Login(Outcome),
}

impl Wish {
    /// Judges a request, cheapest first; nothing here takes longer than reading it.
    pub(crate) fn read<B>(request: &Request<B>) -> Result<Self, Refused> {
        let headers = request.headers();
        if request.uri().path() != PATH {
            return Err(Refused::NotFound);
        }
        if request.method() != Method::GET {
            return Err(Refused::Method);
        }
        if request.version() != Version::HTTP_11 {
            return Err(Refused::Malformed("HTTP/1.1 is needed"));
        }
        let asks = has_token(headers, &CONNECTION, "upgrade") && has_token(headers, &UPGRADE, "websocket");
        if !asks || one(headers, &SEC_WEBSOCKET_VERSION)?.is_none_or(|version| version != "13") {
            return Err(Refused::Version);
        }
        let key = one(headers, &SEC_WEBSOCKET_KEY)?.map(HeaderValue::as_bytes).unwrap_or_default();
        if !STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16) {
            return Err(Refused::Malformed("Sec-WebSocket-Key is not 16 bytes in base64"));
        }
        if !is_own_origin(headers)? {
            return Err(Refused::ForeignOrigin);
        }
        if !has_token(headers, &SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
            return Err(Refused::Malformed("the subprotocol is not anyproxy.v1"));
        }
        let group = match one(headers, &GROUP_HEADER)? {
            None => DEFAULT_GROUP,
            Some(group) => std::str::from_utf8(group.as_bytes())
                .map_err(|_| Refused::Malformed("Anyproxy-Group is not UTF-8"))?,
        };
        Ok(Self {
            credentials: credentials(headers)?,
            group: group.to_owned(),
            accept: derive_accept_key(key),
        })
    }

    /// The answer that makes the connection a WebSocket.
    pub(crate) fn granted(&self) -> Response<Body> {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        response
    }
}

impl Refused {
    /// The answer that tells why.
    pub(crate) fn answer(&self) -> Response<Body> {
        let (status, text) = match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "nothing is here"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "only GET"),
            Self::Version => (StatusCode::UPGRADE_REQUIRED, "this is a WebSocket of version 13"),
            Self::Malformed(what) => (StatusCode::BAD_REQUEST, *what),
            Self::ForeignOrigin => (StatusCode::FORBIDDEN, "not for pages of other sites"),
            Self::Group => (StatusCode::FORBIDDEN, "this account may not serve the group"),
            Self::Login(outcome) => login_answer(*outcome),
        };
        let mut response = Response::new(Body::from(format!("{text}\n")));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        match self {
            Self::Method => {
                headers.insert(http::header::ALLOW, HeaderValue::from_static("GET"));
            }
            Self::Version => {
                headers.insert(CONNECTION, HeaderValue::from_static("close, Upgrade"));
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            Self::Login(Outcome::LoginRequired) => {
                let challenge =
                    HeaderValue::from_static("Basic realm=\"anyproxy gateway\", charset=\"UTF-8\"");
                headers.insert(WWW_AUTHENTICATE, challenge);
            }
            Self::Login(outcome) => {
                if let Some(after) = outcome.retry_after() {
                    headers.insert(RETRY_AFTER, HeaderValue::from(seconds(after)));
                }
            }
            _ => {}
        }
        response
    }
}

fn login_answer(outcome: Outcome) -> (StatusCode, &'static str) {
    match outcome {
        Outcome::LoginRequired => (StatusCode::UNAUTHORIZED, "login required"),
        Outcome::LockedOut { .. } | Outcome::Limited { .. } => {
            (StatusCode::TOO_MANY_REQUESTS, "too many wrong logins")
        }
        Outcome::Denied => (StatusCode::FORBIDDEN, "denied"),
        Outcome::Overloaded { .. } | Outcome::TimedOut => {
            (StatusCode::SERVICE_UNAVAILABLE, "no capacity left")
        }
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal error"),
    }
}

/// Whole seconds, rounded up: a peer that comes back when told is not too early.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// The one value of a header; more than one means that two readers may see two requests.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Refused> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Refused::Malformed("a header is repeated")),
    }
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// Clients send no origin; some libraries name the gateway itself. A browser names the page that asks (RFC 6455
/// section 10.2).
fn is_own_origin(headers: &HeaderMap) -> Result<bool, Refused> {
    let Some(origin) = one(headers, &ORIGIN)? else { return Ok(true) };
    let Some(host) = one(headers, &HOST)? else { return Ok(false) };
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    Ok(authority
        .is_some_and(|(_, authority)| host.to_str().is_ok_and(|host| host.eq_ignore_ascii_case(authority))))
}

/// Basic credentials (RFC 7617). Another scheme, or what cannot be read, counts as none; a repeated header as wrong.
fn credentials(headers: &HeaderMap) -> Result<Option<Credentials>, Refused> {
    let Some(value) = one(headers, &AUTHORIZATION)? else { return Ok(None) };
    let decoded = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok())
        .and_then(|decoded| String::from_utf8(decoded).ok());
    Ok(decoded.and_then(|pair| {
        let (username, password) = pair.split_once(':')?;
        Some(Credentials::new(username, password))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Request<()> {
        Request::get(PATH)
            .header(HOST, "gw.example:8443")
            .header(CONNECTION, "keep-alive, Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
            .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
            .header(AUTHORIZATION, "Basic ZWFzdDpwYTpzcw==")
            .body(())
            .unwrap()
    }

    fn with(name: HeaderName, value: &'static str) -> Request<()> {
        let mut request = wish();
        request.headers_mut().insert(name, HeaderValue::from_static(value));
        request
    }

    fn status(request: &Request<()>) -> StatusCode {
        Wish::read(request).map_or_else(|refused| refused.answer(), |wish| wish.granted()).status()
    }

    #[test]
    fn a_wish_in_order_is_granted_with_the_key_of_rfc_6455() {
        let wish = Wish::read(&wish()).unwrap();
        let granted = wish.granted();
        assert_eq!(granted.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(granted.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(granted.headers()[SEC_WEBSOCKET_PROTOCOL], SUBPROTOCOL);
        assert_eq!(wish.group, DEFAULT_GROUP);
        let credentials = wish.credentials.unwrap();
        assert_eq!((&*credentials.username, credentials.password.expose_secret()), ("east", "pa:ss"));
    }

    #[test]
    fn w7_another_version_is_told_the_right_one() {
        let refused = Wish::read(&with(SEC_WEBSOCKET_VERSION, "12")).unwrap_err();
        let answer = refused.answer();
        assert_eq!(answer.status(), StatusCode::UPGRADE_REQUIRED);
        assert_eq!(answer.headers()[SEC_WEBSOCKET_VERSION], "13");
    }

    #[test]
    fn w7_bad_keys_are_bad_requests() {
        for key in ["", "x", "dGhlIHNhbXBsZSBub25jZQ", "AAAA", "dGhlIHNhbXBsZSBub25jZWFiYw=="] {
            assert_eq!(status(&with(SEC_WEBSOCKET_KEY, key)), StatusCode::BAD_REQUEST, "{key}");
        }
        let mut twice = wish();
        twice.headers_mut().append(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(status(&twice), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn w7_wrong_paths_and_foreign_origins_are_refused() {
        let mut elsewhere = wish();
        *elsewhere.uri_mut() = "/ws/".parse().unwrap();
        assert_eq!(status(&elsewhere), StatusCode::NOT_FOUND);
        assert_eq!(status(&with(ORIGIN, "https://evil.example")), StatusCode::FORBIDDEN);
        assert_eq!(status(&with(ORIGIN, "null")), StatusCode::FORBIDDEN);
        assert_eq!(status(&with(ORIGIN, "https://gw.example:8443")), StatusCode::SWITCHING_PROTOCOLS);
    }

    #[test]
    fn another_subprotocol_is_refused() {
        assert_eq!(status(&with(SEC_WEBSOCKET_PROTOCOL, "anyproxy.v2, chat")), StatusCode::BAD_REQUEST);
        assert_eq!(
            status(&with(SEC_WEBSOCKET_PROTOCOL, "anyproxy.v2, anyproxy.v1")),
            StatusCode::SWITCHING_PROTOCOLS
        );
    }

    #[test]
    fn w6_no_extension_is_ever_agreed_to() {
        let offered = with(http::header::SEC_WEBSOCKET_EXTENSIONS, "permessage-deflate");
        let granted = Wish::read(&offered).unwrap().granted();
        assert!(!granted.headers().contains_key(http::header::SEC_WEBSOCKET_EXTENSIONS));
    }

    #[test]
    fn a_refused_login_is_answered_by_its_outcome() {
        let answer = Refused::Login(Outcome::LoginRequired).answer();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert!(answer.headers().contains_key(WWW_AUTHENTICATE));
        let answer =
            Refused::Login(Outcome::LockedOut { retry_after: Duration::from_millis(1_500) }).answer();
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.headers()[RETRY_AFTER], "2");
    }
}
