//! Which header fields travel on, and which end here (RFC 9110 sections 7.6 and 11.7, RFC 9112).

use bytes::BytesMut;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};

use crate::name::ProxyName;
use crate::wire::{encode_field, list_has};

/// Not in `http::header`.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Whether a field is about this connection only, or about this proxy.
fn ends_here(name: &HeaderName) -> bool {
    match *name {
        header::CONNECTION | header::TE | header::TRANSFER_ENCODING | header::UPGRADE => true,
        _ => name == KEEP_ALIVE || name == HTTP2_SETTINGS || name.as_str().starts_with("proxy-"),
    }
}

/// The fields that a `Connection` field names besides: they end here too.
struct Nominated<'a>(Vec<&'a [u8]>);

impl<'a> Nominated<'a> {
    fn by(headers: &'a HeaderMap) -> Self {
        let values = headers.get_all(header::CONNECTION).iter();
        let tokens = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let tokens = tokens.map(<[u8]>::trim_ascii);
        // The usual ones name no field, and without them the list is empty and costs nothing.
        let usual = |token: &&[u8]| {
            token.is_empty()
                || token.eq_ignore_ascii_case(b"keep-alive")
                || token.eq_ignore_ascii_case(b"close")
        };
        Self(tokens.filter(|token| !usual(token)).collect())
    }

    fn has(&self, name: &HeaderName) -> bool {
        self.0.iter().any(|token| token.eq_ignore_ascii_case(name.as_str().as_bytes()))
    }
}

/// How a request's body travels to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestBody {
    None,
    Length(u64),
    Chunked,
}

/// What of a request goes to the target besides its fields.
pub(crate) struct RequestHead<'a> {
    pub(crate) method: &'a Method,
    /// In origin form, or `*`.
    pub(crate) path: &'a str,
    pub(crate) host: &'a str,
    pub(crate) headers: &'a HeaderMap,
    /// The version the user spoke.
    pub(crate) version: Version,
    pub(crate) body: RequestBody,
    /// The protocol to upgrade to.
    pub(crate) upgrade: Option<&'a HeaderValue>,
    /// What is left of `Max-Forwards`.
    pub(crate) max_forwards: Option<u32>,
    /// Whether the target's connection will not be used again.
    pub(crate) close: bool,
}

impl RequestHead<'_> {
    /// Writes the head in our own framing: what the user said about lengths, codings and connections is not copied
    /// but said anew.
    pub(crate) fn encode(&self, dst: &mut BytesMut, name: &ProxyName) {
        // Enough for what almost all requests say, so that this is one allocation.
        dst.reserve(128 + self.path.len() + self.host.len() + 48 * self.headers.len());
        dst.extend_from_slice(self.method.as_str().as_bytes());
        // A URI may have a query and no path.
        dst.extend_from_slice(if self.path.starts_with('?') { b" /" } else { b" " });
        dst.extend_from_slice(self.path.as_bytes());
        dst.extend_from_slice(b" HTTP/1.1\r\n");
        encode_field(dst, "host", self.host.as_bytes());

        let nominated = Nominated::by(self.headers);
        // HTTP/2 may split it, and HTTP/1.1 knows only one (RFC 9113 section 8.2.3).
        let split_cookie = self.version == Version::HTTP_2;
        for (field, value) in self.headers {
            let said_anew = match *field {
                header::HOST | header::CONTENT_LENGTH => true,
                header::VIA => false,
                header::COOKIE if split_cookie => true,
                // Counted down, whoever names it.
                header::MAX_FORWARDS if self.max_forwards.is_some() => true,
                header::TRAILER if self.body != RequestBody::Chunked => true,
                // Hop by hop in its effect; a body of no length is never announced.
                header::EXPECT if self.body == RequestBody::None => true,
                _ => ends_here(field) || nominated.has(field),
            };
            if !said_anew {
                encode_field(dst, field.as_str(), value.as_bytes());
            }
        }

        if split_cookie && self.headers.contains_key(header::COOKIE) {
            let crumbs: Vec<&[u8]> =
                self.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
            encode_field(dst, "cookie", &crumbs.join(&b"; "[..]));
        }
        match self.body {
            RequestBody::None => {}
            RequestBody::Length(length) => encode_field(dst, "content-length", length.to_string().as_bytes()),
            RequestBody::Chunked => encode_field(dst, "transfer-encoding", b"chunked"),
        }
        if let Some(left) = self.max_forwards {
            encode_field(dst, "max-forwards", left.to_string().as_bytes());
        }
        let trailers = list_has(self.headers, &header::TE, "trailers");
        if trailers {
            encode_field(dst, "te", b"trailers");
        }
        if let Some(protocol) = self.upgrade {
            encode_field(dst, "upgrade", protocol.as_bytes());
        }
        match (self.upgrade.is_some(), trailers, self.close) {
            (true, _, _) => encode_field(dst, "connection", b"upgrade"),
            (false, true, false) => encode_field(dst, "connection", b"te"),
            (false, true, true) => encode_field(dst, "connection", b"te, close"),
            (false, false, true) => encode_field(dst, "connection", b"close"),
            (false, false, false) => {}
        }
        dst.extend_from_slice(b"via: ");
        dst.extend_from_slice(received_as(self.version));
        dst.extend_from_slice(name.as_str().as_bytes());
        dst.extend_from_slice(b"\r\n\r\n");
    }
}

/// The version of a message, as `Via` tells it.
fn received_as(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_2 => b"2.0 ",
        Version::HTTP_10 => b"1.0 ",
        _ => b"1.1 ",
    }
}

/// Takes out of a target's response what ends here, and signs it. Of its lengths `length` alone stays: what was found
/// to be the one it has.
pub(crate) fn clean_response(headers: &mut HeaderMap, http_11: bool, length: Option<u64>, name: &ProxyName) {
    let nominated = Nominated::by(headers);
    // A length that is said once and plainly is not taken out to be said again.
    let stays = length.is_some() && {
        let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
        let only = values.next().filter(|_| values.next().is_none());
        only.is_some_and(|value| value.as_bytes().iter().all(u8::is_ascii_digit))
    };
    // Almost every response has one or two such fields, most have no other.
    let gone: Vec<HeaderName> = headers
        .keys()
        .filter(|field| {
            let signed = **field == header::VIA;
            match **field {
                header::CONTENT_LENGTH => !stays,
                _ => ends_here(field) || (!signed && nominated.has(field)),
            }
        })
        .cloned()
        .collect();
    for field in gone {
        headers.remove(field);
    }
    if let Some(length) = length.filter(|_| !stays) {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    headers.append(header::VIA, name.via(http_11));
}

/// Takes out of a trailer section what may not stand there (RFC 9110 section 6.5.1): whatever says where a message
/// ends, where it goes, who sends it or how it is to be read.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    let gone: Vec<HeaderName> = trailers.keys().filter(|field| forbidden_trailer(field)).cloned().collect();
    for field in gone {
        trailers.remove(field);
    }
}

fn forbidden_trailer(name: &HeaderName) -> bool {
    let forbidden = matches!(
        *name,
        header::CONTENT_LENGTH
            | header::HOST
            | header::TRAILER
            | header::AUTHORIZATION
            | header::WWW_AUTHENTICATE
            | header::COOKIE
            | header::SET_COOKIE
            | header::CONTENT_ENCODING
            | header::CONTENT_TYPE
            | header::CONTENT_RANGE
            | header::CACHE_CONTROL
            | header::EXPECT
            | header::MAX_FORWARDS
            | header::PRAGMA
            | header::RANGE
            | header::AGE
            | header::EXPIRES
            | header::DATE
            | header::LOCATION
            | header::RETRY_AFTER
            | header::VARY
            | header::VIA
            | header::WARNING
    );
    forbidden || ends_here(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_static(value)))
            .collect()
    }

    fn encoded(fields: &[(&'static str, &'static str)]) -> String {
        encoded_with(RequestBody::Length(3), fields)
    }

    fn encoded_with(body: RequestBody, fields: &[(&'static str, &'static str)]) -> String {
        let mut dst = BytesMut::new();
        let head = RequestHead {
            method: &Method::POST,
            path: "/p?q",
            host: "t.lan",
            headers: &headers(fields),
            version: Version::HTTP_11,
            body,
            upgrade: None,
            max_forwards: None,
            close: false,
        };
        head.encode(&mut dst, &ProxyName::new("gate").unwrap());
        String::from_utf8(dst.to_vec()).unwrap()
    }

    #[test]
    fn h12_nominated_fields_go_and_framing_host_and_via_stay() {
        let fields = [
            ("connection", "Transfer-Encoding, content-LENGTH, Host, Via, Connection, X-Real-IP, x-other"),
            ("x-real-ip", "canary"),
            ("via", "1.0 before"),
            ("x-stays", "yes"),
        ];
        let head = encoded(&fields);
        assert!(!head.contains("canary") && head.contains("x-stays: yes"), "{head}");
        assert!(head.contains("via: 1.0 before\r\n") && head.contains("via: 1.1 gate\r\n"), "{head}");
        assert!(head.contains("host: t.lan\r\n") && head.contains("content-length: 3\r\n"), "{head}");
        assert!(!head.contains("connection"), "{head}");
    }

    #[test]
    fn h12_fields_with_a_rule_of_their_own_go_too_where_they_are_nominated() {
        for name in ["cookie", "max-forwards", "trailer", "expect"] {
            let head = encoded_with(RequestBody::Chunked, &[(name, "canary")]);
            assert!(head.contains("canary"), "{head}");
            let head = encoded_with(RequestBody::Chunked, &[("connection", name), (name, "canary")]);
            assert!(!head.contains("canary"), "{head}");
        }
    }

    #[test]
    fn h13_what_is_for_this_hop_or_this_proxy_ends_here_both_ways() {
        let fields = [
            ("proxy-authorization", "canary"),
            ("proxy-connection", "canary"),
            ("proxy-whatever", "canary"),
            ("keep-alive", "canary"),
            ("te", "canary"),
            ("upgrade", "canary"),
            ("authorization", "stays"),
        ];
        let head = encoded(&fields);
        assert!(!head.contains("canary") && head.contains("authorization: stays\r\n"), "{head}");
        let mut response = headers(&fields);
        clean_response(&mut response, true, None, &ProxyName::new("gate").unwrap());
        let left: Vec<&str> = response.keys().map(HeaderName::as_str).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(response[header::VIA], "1.1 gate");
    }

    #[test]
    fn h9_forbidden_trailers_are_dropped_and_others_stay() {
        let fields = [("content-length", "1"), ("host", "h"), ("authorization", "a"), ("grpc-status", "0")];
        let mut trailers = headers(&fields);
        clean_trailers(&mut trailers);
        assert_eq!(trailers, headers(&[("grpc-status", "0")]));
    }

    #[test]
    fn trailers_are_asked_for_where_the_user_takes_them() {
        let head = encoded(&[("te", "gzip, Trailers")]);
        assert!(head.contains("te: trailers\r\nconnection: te\r\n"), "{head}");
    }
}
