//! The HTTP proxy front of AnyProxy.
//!
//! [`HttpProxy`] turns what HTTP users say into logins and dials of a [`GatewayStack`](anyproxy_core::GatewayStack),
//! and what becomes of them into responses. It speaks:
//!
//! - HTTP/1.1 and 1.0 (RFC 9112), by hyper, and HTTP/2 (RFC 9113) where the listener's TLS agreed on it;
//! - `CONNECT`, also from HTTP/1.0, and `Upgrade`: bytes both ways, half-close kept, a reset stays a reset;
//! - requests in absolute form, sent on in HTTP/1.1, bodies streaming both ways;
//! - the extended CONNECT of RFC 8441 for WebSockets.
//!
//! ```no_run
//! use anyproxy_core::Dial;
//! use anyproxy_front::Listener;
//! use anyproxy_http::HttpProxy;
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn run() -> std::io::Result<()> {
//! // An open gateway that dials by itself.
//! let dials = tower::service_fn(|dial: Dial| async move {
//!     let stream = tokio::net::TcpStream::connect(dial.target.to_string()).await?;
//!     Ok::<_, std::io::Error>(tokio::io::BufReader::new(stream))
//! });
//! let listener = Listener::bind(&["127.0.0.1:8080".parse().expect("an address")])?;
//! HttpProxy::new(tower::make::Shared::new(dials)).serve(listener, CancellationToken::new()).await;
//! # Ok(())
//! # }
//! ```
//!
//! # One request
//!
//! 1. Hyper or h2 reads the head. What two readers could understand differently is refused there, or in `ask`, and
//!    nothing behind it is read: `Host`, lengths, codings, targets. A request goes on in our own framing, never in
//!    the user's.
//! 2. The login in `Proxy-Authorization` is presented to the stack, for every request anew; 407 asks for one.
//! 3. The stack dials. Every request is a dial of its own, so that no rule, limit or count is skipped. A
//!    [`ReuseLayer`] around the terminal service may answer it with a stream that an earlier request of the same
//!    connection has left behind.
//! 4. The request goes out and the response comes back on this stream, in the task of the user's connection. Fields
//!    that end at a proxy end here; `Via` is signed, and a request that bears our own signature is a loop.
//!    A target may answer before it has read all, and read on: the response's end then waits for the request's.
//! 5. What fails becomes a response, by one function: status, `Retry-After`, and the cause in `Proxy-Status`
//!    (RFC 9209).
//!
//! A user who closes, or half-closes, before the answer is taken to have left: the dial is given up. They are seen to
//! leave behind up to 16 KiB that they have said meanwhile; what is said behind a `CONNECT` or an `Upgrade` is the
//! tunnel's, and so is its end. A target that breaks off within a response breaks the user's response off too; it never
//! looks complete.
//!
//! # Limits
//!
//! [`Config`] has them all, with what happens beyond them.
//!
//! # Features
//!
//! `front`, on by default, is all of the above. Without it only the sans-IO parts are left, which need
//! neither tokio nor TLS.

#[cfg(feature = "front")]
mod config;
#[cfg(feature = "front")]
mod proxy;

#[cfg(feature = "front")]
mod ask;
#[cfg(feature = "front")]
mod requests;

#[cfg(feature = "front")]
mod body;
#[cfg(feature = "front")]
mod exchange;
#[cfg(feature = "front")]
mod fields;

#[cfg(feature = "front")]
mod refusal;
#[cfg(feature = "front")]
mod reuse;
#[cfg(feature = "front")]
mod session;

#[cfg(feature = "front")]
mod http2;

// Without the front, the fuzz targets are all that calls these.
#[cfg_attr(not(feature = "front"), allow(dead_code))]
mod name;
mod proxy_status;
#[cfg_attr(not(feature = "front"), allow(dead_code))]
mod wire;

#[cfg(feature = "front")]
pub use body::UserBody;
#[cfg(feature = "front")]
pub use config::{Config, Realm};
pub use name::ProxyName;
#[cfg(feature = "front")]
pub use proxy::{HttpProxy, RequestService};
#[cfg(feature = "front")]
pub use requests::{Requests, ResponseBody, ResponseFuture, StreamOf};
#[cfg(feature = "front")]
pub use reuse::{Kept, Reuse, ReuseLayer};
pub use wire::Malformed;

/// What the fuzz targets call: each checks one thing about any bytes, and panics where it does not hold.
#[doc(hidden)]
pub mod fuzz {
    /// A target's bytes: heads end where they end, and mean the same however they are split.
    pub fn http_head(data: &[u8]) {
        crate::wire::check_split(data);
    }

    /// Any text in `Proxy-Status` comes back as it was.
    pub fn proxy_status(data: &[u8]) {
        crate::proxy_status::check_proxy_status(data);
    }
}
