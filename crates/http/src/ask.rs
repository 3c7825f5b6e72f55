//! What a request asks for, judged by its head alone.

use std::net::IpAddr;

use anyproxy_core::{Credentials, Host, InvalidTarget, Target};
use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose};
use bytes::Bytes;
use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::Scheme;
use http::{Method, StatusCode, Version};
use http_body::Body;

use crate::config::Config;
use crate::fields::RequestBody;
use crate::refusal::Refusal;
use crate::wire::{content_length, is_chunked, list_has, option_count};

/// What the user wants.
#[derive(Debug)]
pub(crate) enum Ask {
    /// `CONNECT`: bytes to and from a target.
    Tunnel(Target),
    /// A request to be sent on.
    Forward(Route),
    /// `TRACE` or `OPTIONS` whose `Max-Forwards` ends here (RFC 9110 section 7.6.2).
    Here,
}

/// Where a request goes, and how it is said there.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) target: Target,
    /// The `Host` field: made from the URI, never the user's (RFC 9112 section 3.2.2).
    pub(crate) host: String,
    pub(crate) body: RequestBody,
    pub(crate) expects: bool,
    pub(crate) upgrade: Option<HeaderValue>,
    pub(crate) max_forwards: Option<u32>,
    /// An extended CONNECT (RFC 8441): an upgrade that the user says in HTTP/2's words.
    pub(crate) extended: bool,
    /// What the target must answer to the key that was made up for it. Only an extended CONNECT has one; a user who
    /// upgrades in HTTP/1.1 has the key and looks for themselves.
    pub(crate) proof: Option<HeaderValue>,
}

impl Ask {
    /// Reads a request's head. What is refused here never reaches the stack, nor a target.
    pub(crate) fn read(
        parts: &Parts,
        body: &impl Body<Data = Bytes>,
        config: &Config,
    ) -> Result<Self, Refusal> {
        if uri_length(parts) > config.max_uri {
            let text = "The request target is too long.\n";
            return Err(Refusal::with_status(StatusCode::URI_TOO_LONG, text).closing());
        }
        // In HTTP/1.1 the parser has said so already; in HTTP/2 there are as many as fit the head.
        if field_count(parts).max(option_count(&parts.headers)) > config.max_headers {
            let text = "The request has too many header fields.\n";
            return Err(Refusal::with_status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text).closing());
        }
        check_host(parts)?;
        if parts.uri.path() == "*" && parts.method != Method::OPTIONS {
            // A server as a whole has options and nothing else (RFC 9113 section 8.3.1).
            return Err(Refusal::bad_request("The path * is for OPTIONS alone.\n"));
        }
        let framing = framing(parts, body)?;
        // Where it is for this hop alone, no target is asked.
        let expects = expects_continue(parts)?
            && !list_has(&parts.headers, &header::CONNECTION, header::EXPECT.as_str());
        if let Some(protocol) = parts.extensions.get::<Protocol>() {
            return extended(parts, protocol.as_str());
        }
        if parts.method == Method::CONNECT {
            return tunnel(parts, framing);
        }
        let max_forwards = max_forwards(parts)?;
        if max_forwards == Some(0) {
            return Ok(Self::Here);
        }
        if parts.method == Method::TRACE && framing != RequestBody::None {
            return Err(Refusal::bad_request("TRACE has no body.\n"));
        }
        let (target, host) = absolute(parts)?;
        let upgrade = upgrade(parts).filter(|_| framing == RequestBody::None);
        let max_forwards = max_forwards.map(|left| left - 1);
        let route = Route {
            target,
            host,
            body: framing,
            expects,
            upgrade,
            max_forwards,
            extended: false,
            proof: None,
        };
        Ok(Self::Forward(route))
    }
}

/// What the user presents as login: `None` for nothing, and for what is no Basic login (RFC 7617 section 2). More
/// than one is refused, since two readers might choose differently.
pub(crate) fn credentials(headers: &HeaderMap) -> Result<Option<Credentials>, Refusal> {
    let mut values = headers.get_all(header::PROXY_AUTHORIZATION).iter();
    let only = values.next();
    if values.next().is_some() {
        return Err(Refusal::bad_request("One Proxy-Authorization at most.\n"));
    }
    Ok(only.and_then(basic))
}

fn basic(value: &HeaderValue) -> Option<Credentials> {
    /// Some clients leave the padding out.
    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let value = value.as_bytes();
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, encoded) = (&value[..space], value[space..].trim_ascii());
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = String::from_utf8(BASE64.decode(encoded).ok()?).ok()?;
    let (username, password) = pair.split_once(':')?;
    // Neither may hold control characters, nor could a log line show them.
    let plain = !pair.chars().any(char::is_control);
    plain.then(|| Credentials::new(username, password))
}

/// How many header fields there are: the crumbs of a cookie that HTTP/2 has split are one (RFC 9113 section 8.2.3).
fn field_count(parts: &Parts) -> usize {
    let split = parts.version == Version::HTTP_2;
    let crumbs = if split { parts.headers.get_all(header::COOKIE).iter().count() } else { 0 };
    parts.headers.len() - crumbs.saturating_sub(1)
}

fn uri_length(parts: &Parts) -> usize {
    let scheme = parts.uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len());
    let authority = parts.uri.authority().map_or(0, |authority| authority.as_str().len());
    scheme + authority + parts.uri.path_and_query().map_or(0, |path| path.as_str().len())
}

/// Whether a byte may stand in a `Host` field (RFC 3986 section 3.2.2); names that are not ASCII are left to others.
const fn may_be_in_host(byte: u8) -> bool {
    matches!(
        byte,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | 0x80.. | b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&'
            | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=' | b':' | b'[' | b']'
    )
}

/// One valid `Host` in HTTP/1.1, at most one elsewhere (RFC 9112 section 3.2), whatever the URI says besides.
fn check_host(parts: &Parts) -> Result<(), Refusal> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else {
        let required = parts.version == Version::HTTP_11;
        return if required { Err(Refusal::bad_request("A Host field is required.\n")) } else { Ok(()) };
    };
    if hosts.next().is_some() || !host.as_bytes().iter().all(|byte| may_be_in_host(*byte)) {
        return Err(Refusal::bad_request("One valid Host field is required.\n"));
    }
    Ok(())
}

/// How the request's body is told from what follows it. In HTTP/1 the machine below has decided already; this refuses
/// what it took with more good will than is safe to pass on.
fn framing(parts: &Parts, body: &impl Body<Data = Bytes>) -> Result<RequestBody, Refusal> {
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        if !is_chunked(&parts.headers) {
            let text = "The only transfer coding understood is chunked.\n";
            return Err(Refusal::with_status(StatusCode::NOT_IMPLEMENTED, text).closing());
        }
        return Ok(RequestBody::Chunked);
    }
    match content_length(&parts.headers) {
        Ok(Some(length)) => Ok(RequestBody::Length(length)),
        Ok(None) if body.is_end_stream() => Ok(RequestBody::None),
        Ok(None) => Ok(RequestBody::Chunked),
        Err(_) => Err(Refusal::bad_request("Not a valid Content-Length.\n")),
    }
}

/// `Expect: 100-continue` or nothing (RFC 9110 section 10.1.1).
pub(crate) fn expects_continue(parts: &Parts) -> Result<bool, Refusal> {
    let mut values = parts.headers.get_all(header::EXPECT).iter();
    let Some(value) = values.next().filter(|_| parts.version != Version::HTTP_10) else { return Ok(false) };
    if values.next().is_some() || !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        let text = "The only expectation met is 100-continue.\n";
        return Err(Refusal::with_status(StatusCode::EXPECTATION_FAILED, text).closing());
    }
    Ok(true)
}

fn max_forwards(parts: &Parts) -> Result<Option<u32>, Refusal> {
    if !matches!(parts.method, Method::TRACE | Method::OPTIONS) {
        return Ok(None);
    }
    let Some(value) = parts.headers.get(header::MAX_FORWARDS) else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let left = digits.and_then(|digits| digits.parse().ok());
    left.map(Some).ok_or_else(|| Refusal::bad_request("Not a valid Max-Forwards.\n"))
}

/// The protocols a request wants to change to; never HTTP/2, which begins without an upgrade since RFC 9113 and would
/// carry requests past whoever reads them here.
fn upgrade(parts: &Parts) -> Option<HeaderValue> {
    let asked = parts.version == Version::HTTP_11 && list_has(&parts.headers, &header::CONNECTION, "upgrade");
    let protocol = parts.headers.get(header::UPGRADE).filter(|_| asked)?;
    let text = protocol.to_str().ok()?;
    (!text.to_ascii_lowercase().contains("h2c")).then(|| protocol.clone())
}

/// The authority form (RFC 9112 section 3.2.3): host and port, nothing else.
fn tunnel(parts: &Parts, framing: RequestBody) -> Result<Ask, Refusal> {
    if !matches!(framing, RequestBody::None | RequestBody::Length(0)) {
        return Err(Refusal::bad_request("CONNECT has no body.\n"));
    }
    let authority = parts.uri.authority().filter(|_| parts.uri.scheme().is_none());
    let authority = authority.filter(|_| parts.uri.path_and_query().is_none());
    let authority = authority.ok_or_else(|| Refusal::bad_request("CONNECT takes host:port.\n"))?;
    Ok(Ask::Tunnel(Target::parse(authority.as_str())?))
}

/// The absolute form (RFC 9112 section 3.2.2) of an `http` URI.
fn absolute(parts: &Parts) -> Result<(Target, String), Refusal> {
    let Some((scheme, authority)) = parts.uri.scheme().zip(parts.uri.authority()) else {
        return Err(Refusal::bad_request(
            "This is an HTTP proxy, not a web server: configure it as a proxy in your program.\n\
             For example: curl -x http://USER:PASSWORD@THIS_HOST:PORT http://TARGET/\n",
        ));
    };
    if *scheme == Scheme::HTTPS {
        let text = "Use CONNECT for https: this proxy does not speak TLS for you.\n";
        return Err(Refusal::with_status(StatusCode::NOT_IMPLEMENTED, text).closing());
    }
    if *scheme != Scheme::HTTP {
        return Err(Refusal::bad_request("The only scheme served is http.\n"));
    }
    if authority.as_str().contains('@') {
        return Err(Refusal::bad_request("Credentials do not belong into a URI.\n"));
    }
    let target = target(authority.as_str(), 80)?;
    let host = match (target.host(), target.port()) {
        // No formatting for what every request has: dotted decimals have one form, which this is.
        (Host::Ip(IpAddr::V4(_)), port) if is_plain(authority.as_str(), port) => {
            authority.as_str().to_owned()
        }
        (Host::Name(name), 80) => name.as_str().to_owned(),
        (Host::Ip(IpAddr::V6(address)), 80) => format!("[{address}]"),
        (host, 80) => host.to_string(),
        _ => target.to_string(),
    };
    Ok((target, host))
}

/// Whether an IPv4 address and perhaps a port are written as they are said to the target: in digits and three dots, and
/// without the port that need not be said.
fn is_plain(authority: &str, port: u16) -> bool {
    let (mut dots, mut colon) = (0, false);
    for byte in authority.bytes() {
        match byte {
            b'0'..=b'9' => {}
            b'.' => dots += 1,
            b':' => colon = true,
            _ => return false,
        }
    }
    dots == 3 && (port != 80) == colon
}

fn target(authority: &str, default: u16) -> Result<Target, InvalidTarget> {
    let behind_brackets = authority.rfind(']').map_or(0, |index| index + 1);
    if authority[behind_brackets..].contains(':') {
        Target::parse(authority)
    } else {
        Target::new(Host::parse(authority)?, default)
    }
}

/// An extended CONNECT (RFC 8441): a WebSocket at the target, said in HTTP/1.1 there.
fn extended(parts: &Parts, protocol: &str) -> Result<Ask, Refusal> {
    if protocol != "websocket" {
        let text = "The only protocol served by an extended CONNECT is websocket.\n";
        return Err(Refusal::with_status(StatusCode::NOT_IMPLEMENTED, text));
    }
    let (target, host) = absolute(parts)?;
    Ok(Ask::Forward(Route {
        target,
        host,
        body: RequestBody::None,
        expects: false,
        upgrade: Some(HeaderValue::from_static("websocket")),
        max_forwards: None,
        extended: true,
        proof: None,
    }))
}

/// What HTTP/1.1 wants to see of a WebSocket and an extended CONNECT does not say (RFC 6455 section 4.1). By what is
/// returned the target proves that it has understood (section 4.2.2).
pub(crate) fn complete_websocket(headers: &mut HeaderMap) -> Option<HeaderValue> {
    use sha1::{Digest as _, Sha1};
    use std::hash::{BuildHasher as _, RandomState};

    const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

    // Not a secret: it only must not repeat (RFC 6455 section 10.3).
    let nonce =
        [RandomState::new().hash_one(1), RandomState::new().hash_one(2)].map(u64::to_be_bytes).concat();
    let key = general_purpose::STANDARD.encode(nonce);
    let proof = general_purpose::STANDARD.encode(Sha1::digest([key.as_str(), GUID].concat()));
    if let Ok(key) = HeaderValue::try_from(key) {
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
    headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert_with(|| HeaderValue::from_static("13"));
    HeaderValue::try_from(proof).ok()
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::{Empty, Full};

    use super::*;

    fn read(request: http::request::Builder) -> Result<Ask, StatusCode> {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let body: Empty<Bytes> = Empty::new();
        let config = Config::default();
        Ask::read(&parts, &body, &config).map_err(|refusal| refusal.into_response(&config).status())
    }

    fn get(uri: &str) -> http::request::Builder {
        Request::builder().uri(uri).header("host", "ignored")
    }

    #[test]
    fn h1_the_host_is_that_of_the_uri() {
        for (uri, target, host) in [
            ("http://T.lan./x?y", "t.lan:80", "t.lan"),
            ("http://t.lan:80", "t.lan:80", "t.lan"),
            ("http://t.lan:8080/", "t.lan:8080", "t.lan:8080"),
            ("http://[::1]/", "[::1]:80", "[::1]"),
            ("http://[::1]:81/", "[::1]:81", "[::1]:81"),
            ("http://127.0.0.1:80/", "127.0.0.1:80", "127.0.0.1"),
            ("http://127.0.0.1./", "127.0.0.1:80", "127.0.0.1"),
            ("http://127.0.0.1:81/", "127.0.0.1:81", "127.0.0.1:81"),
        ] {
            let Ok(Ask::Forward(route)) = read(get(uri)) else { panic!("{uri}") };
            assert_eq!((route.target.to_string().as_str(), route.host.as_str()), (target, host));
        }
    }

    #[test]
    fn h2_hosts_are_one_and_valid() {
        let plain = || Request::builder().uri("http://t/");
        assert_eq!(read(plain()).unwrap_err(), StatusCode::BAD_REQUEST);
        assert!(read(plain().version(Version::HTTP_10)).is_ok());
        assert_eq!(
            read(plain().header("host", "a").header("host", "a")).unwrap_err(),
            StatusCode::BAD_REQUEST
        );
        for bad in ["a,b", "a b", "u@h", "h/x", "a\tb"] {
            assert_eq!(read(plain().header("host", bad)).unwrap_err(), StatusCode::BAD_REQUEST, "{bad:?}");
        }
    }

    #[test]
    fn h3_what_is_not_for_a_proxy_is_refused() {
        assert_eq!(read(get("/")).unwrap_err(), StatusCode::BAD_REQUEST);
        assert_eq!(read(get("*").method("OPTIONS")).unwrap_err(), StatusCode::BAD_REQUEST);
        assert_eq!(read(get("https://t/")).unwrap_err(), StatusCode::NOT_IMPLEMENTED);
        assert_eq!(read(get("ftp://t/")).unwrap_err(), StatusCode::BAD_REQUEST);
        assert_eq!(read(get("http://u:p@t/")).unwrap_err(), StatusCode::BAD_REQUEST);
        for bad in ["http://t:0/", "http://t:99999/", "http://127.1/", "http://0x7f.1/", "http://a..b/"] {
            let Ok(request) = get(bad).body(()) else { continue };
            assert_eq!(read(get(bad)).unwrap_err(), StatusCode::BAD_REQUEST, "{:?}", request.uri());
        }
    }

    #[test]
    fn h4_connect_takes_host_and_port_alone() {
        for bad in ["/", "*", "http://h", "h", "h:0", "u@h:443"] {
            assert_eq!(read(get(bad).method("CONNECT")).unwrap_err(), StatusCode::BAD_REQUEST, "{bad:?}");
        }
        let old = Request::builder().method("CONNECT").uri("t.lan:443").version(Version::HTTP_10);
        assert!(matches!(read(old), Ok(Ask::Tunnel(target)) if target.to_string() == "t.lan:443"));
        let with_body = get("h:443").method("CONNECT").header("content-length", "5");
        assert_eq!(read(with_body).unwrap_err(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn h6_other_codings_than_one_chunked_are_refused() {
        for bad in [",chunked", "chunked, chunked", "gzip, chunked", "identity"] {
            let request = get("http://t/").header("transfer-encoding", bad);
            assert_eq!(read(request).unwrap_err(), StatusCode::NOT_IMPLEMENTED, "{bad}");
        }
        let twice =
            get("http://t/").header("transfer-encoding", "chunked").header("transfer-encoding", "chunked");
        assert_eq!(read(twice).unwrap_err(), StatusCode::NOT_IMPLEMENTED);
    }

    #[test]
    fn h17_an_unknown_expectation_fails() {
        assert_eq!(
            read(get("http://t/").header("expect", "miracles")).unwrap_err(),
            StatusCode::EXPECTATION_FAILED
        );
    }

    #[test]
    fn h22_a_long_uri_is_414() {
        let uri = |length: usize| format!("http://t/{}", "a".repeat(length - "http://t/".len()));
        assert!(read(get(&uri(8 * 1024))).is_ok());
        assert_eq!(read(get(&uri(8 * 1024 + 1))).unwrap_err(), StatusCode::URI_TOO_LONG);
    }

    #[test]
    fn h25_max_forwards_ends_here_or_counts_down() {
        let options = |left: &str| read(get("http://t/").method("OPTIONS").header("max-forwards", left));
        assert!(matches!(options("0"), Ok(Ask::Here)));
        assert!(matches!(options("7"), Ok(Ask::Forward(Route { max_forwards: Some(6), .. }))));
        assert_eq!(options("-1").unwrap_err(), StatusCode::BAD_REQUEST);
        assert!(matches!(read(get("http://t/").header("max-forwards", "0")), Ok(Ask::Forward(_))));
    }

    #[test]
    fn a_body_of_unknown_length_is_chunked() {
        let (parts, ()) = get("http://t/").method("POST").body(()).unwrap().into_parts();
        let body = Full::new(Bytes::from_static(b"x"));
        let Ok(Ask::Forward(route)) = Ask::read(&parts, &body, &Config::default()) else { panic!() };
        assert_eq!(route.body, RequestBody::Chunked);
    }

    fn login(values: &[&str]) -> Result<Option<(String, String)>, Refusal> {
        let fields =
            values.iter().map(|value| (header::PROXY_AUTHORIZATION, HeaderValue::from_str(value).unwrap()));
        let found = credentials(&fields.collect())?;
        Ok(found.map(|found| (found.username.into(), found.password.expose_secret().into())))
    }

    #[test]
    fn p2_odd_logins_are_none_and_colons_belong_to_the_password() {
        // "user:pa:ss" and, in UTF-8, "ü:€".
        assert_eq!(login(&["Basic dXNlcjpwYTpzcw=="]).unwrap(), Some(("user".into(), "pa:ss".into())));
        assert_eq!(login(&["bAsIc dXNlcjpwYTpzcw"]).unwrap(), Some(("user".into(), "pa:ss".into())));
        assert_eq!(login(&["Basic w7w64oKs"]).unwrap(), Some(("ü".into(), "€".into())));
        // Another scheme, none, no colon, bad base64, no UTF-8 (ff 3a), a line feed in the name.
        for odd in [
            "Bearer dXNlcjpw",
            "dXNlcjpw",
            "Basic dXNlcg==",
            "Basic %%%%",
            "Basic /zo=",
            "Basic YQpiOmM=",
            "",
        ] {
            assert_eq!(login(&[odd]).unwrap(), None, "{odd:?}");
        }
        assert!(login(&["Basic dXNlcjpw", "Basic dXNlcjpw"]).is_err());
        assert_eq!(login(&[]).unwrap(), None);
    }
}
