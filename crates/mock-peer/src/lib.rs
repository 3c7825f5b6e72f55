//! The other end of a tunnel in a test's hand: a client or a gateway that says anything, byte by byte if need be.
//!
//! A [`Peer`] is a WebSocket whose frames are written by hand, over real TLS and TCP. It can say what an honest end
//! says ([`Peer::send`]), what no honest end would ([`Peer::message`] for the bytes of a message, [`Peer::ws`] for
//! a WebSocket frame that lies, [`Peer::raw`] for anything below), stop reading, and tell how the other end took it
//! ([`Peer::end`]). [`client`] makes one that has logged in at a gateway, [`MockGateway`] one that a client has
//! connected to.
//!
//! Nothing here shares code with the tunnel it talks to, but for the frames themselves.
//!
//! ```no_run
//! use anyproxy_mock_peer::frame::{GoAwayCode, ToClient};
//! use anyproxy_mock_peer::{Account, client};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> anyproxy_mock_peer::Result {
//! let account = Account { user: "mallory", password: "secret", group: "default" };
//! let mut peer = client::join("127.0.0.1:8443".parse()?, &account, "evil").await?;
//! // A window frame for a stream that was never opened.
//! peer.message(&[5, 0, 0, 4, 0, 0, 0, 9, 0, 0, 0, 1]).await?;
//! assert_eq!(peer.end::<ToClient>().await?.code(), Some(GoAwayCode::Protocol));
//! # Ok(())
//! # }
//! ```

mod gateway;
mod peer;
mod tls;
mod ws;

pub mod client;

pub use anyproxy_frame as frame;
pub use client::Account;
pub use gateway::MockGateway;
pub use peer::{End, Peer};
pub use ws::Ws;

/// The first thing that went wrong.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
