//! SOCKS5 for AnyProxy: a front that turns what SOCKS5 users say into logins and dials.
//!
//! [`proto`] is the protocol without IO (RFC 1928, RFC 1929); [`Socks5`] speaks it on a
//! [`Listener`](anyproxy_front::Listener) and asks a [`GatewayStack`](anyproxy_core::GatewayStack). It holds no
//! policy: who may log in, what may be dialled and how much of it is for the layers of the stack to say, and
//! [`reply_code`] is the one place where their verdicts become answers.
//!
//! CONNECT is answered when the target is connected and not before; UDP ASSOCIATE is served whole, every destination
//! a dial of its own ([`UdpConfig`]); BIND is not.
//!
//! The smallest gateway, open to everybody who reaches it:
//!
//! ```no_run
//! use anyproxy_core::{DialService, Dial};
//! use anyproxy_front::Listener;
//! use anyproxy_socks5::Socks5;
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn gateway() -> std::io::Result<()> {
//! let direct = tower::service_fn(|dial: Dial| async move {
//!     let target = dial.target.to_string();
//!     tokio::net::TcpStream::connect(target).await.map(tokio::io::BufStream::new)
//! });
//! let listener = Listener::bind(&["127.0.0.1:1080".parse().expect("an address")])?;
//! Socks5::new(tower::make::Shared::new(direct)).serve(listener, CancellationToken::new()).await;
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! `front` (default): the front. Without it only [`proto`] is left, which needs no TLS, and of tokio no more than
//! `anyproxy-core` does.

pub mod proto;

#[cfg(feature = "front")]
mod front;
#[cfg(feature = "front")]
mod outcome;
#[cfg(feature = "front")]
mod udp;

#[cfg(feature = "front")]
pub use front::Socks5;
#[cfg(feature = "front")]
pub use outcome::reply_code;
#[cfg(feature = "front")]
pub use udp::{UdpConfig, UdpDrops};
