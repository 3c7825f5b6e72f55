use std::time::Duration;

use anyproxy_core::FOR_EVER;
use anyproxy_front::RelayConfig;
use http::HeaderValue;

use crate::name::ProxyName;

/// The smallest head limit that means anything: less does not hold an ordinary browser's request.
const SMALLEST_HEAD: usize = 8 * 1024;
/// The largest: one connection holds twice as much, so more would be a way to be out of memory.
const LARGEST_HEAD: usize = 16 * 1024 * 1024;
/// The most header fields that may be allowed: room for them is taken for each head, and a map of a third more panics.
const MOST_HEADERS: usize = 16 * 1024;
/// The largest window of HTTP/2 (RFC 9113 section 6.9.1).
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

/// The settings of an HTTP front. `Config::default()` is what a gateway on the open internet wants.
///
/// A value out of the range that its field names means the nearest one in it, and a time-out of more than a hundred years
/// ([`FOR_EVER`]) means that.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// What a login dialogue calls this place (default: AnyProxy).
    pub realm: Realm,
    /// How this proxy signs `Via` and `Proxy-Status` (default: `anyproxy-` and eight random hex digits). Two proxies in
    /// a row must not share a name: a request that comes back with one's own is refused as a loop.
    pub name: ProxyName,
    /// The longest request or response head, in bytes (default: 64 KiB; 8 KiB to 16 MiB). Longer requests get 431,
    /// longer responses become 502. A connection holds at most about twice this.
    pub max_head: usize,
    /// The most header fields of a request, and the most that its `Connection` may name (default: 100; at most 16,384).
    /// More get 431.
    pub max_headers: usize,
    /// The longest request target, in bytes (default: 8 KiB). Longer ones get 414.
    pub max_uri: usize,
    /// How long a request's head may take from its first byte (default: 10 s), or from the end of the response before it if
    /// it began earlier. Then 408 and the connection's end. Empty lines before a head, up to 16 bytes of them, are not its
    /// first byte.
    pub head_timeout: Duration,
    /// How long a connection may be idle before a request's first byte, and how long a user may take nothing of what the
    /// proxy itself has to say (default: 75 s).
    pub keep_alive_timeout: Duration,
    /// How long an exchange may go without a byte from or to the user, the wait for the target's first byte (504) and that
    /// for a user to take its last one included (default: 1 h; `None` = for ever). Too short cuts long polls, too long
    /// keeps the streams of dead peers.
    pub idle_timeout: Option<Duration>,
    /// How many bytes of chunk extensions and other padding one chunked message may carry besides its data
    /// (default: 16 KiB); more ends it. Extensions in requests never exceed 16 KiB, whatever this says.
    pub max_padding: usize,
    /// How many streams to targets a user connection may keep for its next requests (default: 4; 0 = none). They are
    /// closed with the connection.
    pub parked: usize,
    /// How long such a stream is kept without being used (default: 10 s); twice as long where other requests end meanwhile.
    pub parked_timeout: Duration,
    /// Time-outs of what `CONNECT` and `Upgrade` open.
    pub relay: RelayConfig,
    /// The most requests at once on an HTTP/2 connection (default: 128).
    pub max_concurrent_streams: u32,
    /// The receive window of one HTTP/2 stream, in bytes (default: 256 KiB; at most 2^31 - 1): what a user may send
    /// ahead of a slow target.
    pub stream_window: u32,
    /// The receive window of a whole HTTP/2 connection, in bytes (default: 1 MiB; at most 2^31 - 1).
    pub connection_window: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            realm: Realm::default(),
            name: ProxyName::default(),
            max_head: 64 * 1024,
            max_headers: 100,
            max_uri: 8 * 1024,
            head_timeout: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(75),
            idle_timeout: Some(Duration::from_secs(60 * 60)),
            max_padding: 16 * 1024,
            parked: 4,
            parked_timeout: Duration::from_secs(10),
            relay: RelayConfig::default(),
            max_concurrent_streams: 128,
            stream_window: 256 * 1024,
            connection_window: 1024 * 1024,
        }
    }
}

impl Config {
    /// With every value in its range, so that whoever takes one need not fear to add to it.
    pub(crate) fn in_range(self) -> Self {
        Self {
            max_head: self.max_head.clamp(SMALLEST_HEAD, LARGEST_HEAD),
            max_headers: self.max_headers.min(MOST_HEADERS),
            head_timeout: self.head_timeout.min(FOR_EVER),
            keep_alive_timeout: self.keep_alive_timeout.min(FOR_EVER),
            idle_timeout: self.idle_timeout.map(|limit| limit.min(FOR_EVER)),
            parked_timeout: self.parked_timeout.min(FOR_EVER),
            stream_window: self.stream_window.min(LARGEST_WINDOW),
            connection_window: self.connection_window.min(LARGEST_WINDOW),
            ..self
        }
    }
}

/// What a login dialogue calls the place: the realm of RFC 9110 section 11.5.
#[derive(Clone, Debug)]
pub struct Realm(HeaderValue);

impl Realm {
    /// A realm of this name; `None` if it holds what no header can (control characters).
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
        let challenge = format!("Basic realm=\"{quoted}\", charset=\"UTF-8\"");
        HeaderValue::from_str(&challenge).ok().map(Self)
    }

    /// The one challenge of this front (RFC 7617 section 2.1).
    pub(crate) const fn challenge(&self) -> &HeaderValue {
        &self.0
    }
}

impl Default for Realm {
    fn default() -> Self {
        Self(HeaderValue::from_static("Basic realm=\"AnyProxy\", charset=\"UTF-8\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realm_is_quoted() {
        let realm = Realm::new(r#"the "office""#).unwrap();
        assert_eq!(realm.challenge(), r#"Basic realm="the \"office\"", charset="UTF-8""#);
        assert!(Realm::new("a\nb").is_none());
    }
}
