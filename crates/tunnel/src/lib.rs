//! AnyProxy's tunnel: the multiplexer driven over WebSocket and TLS.
//!
//! A client inside a private network dials its gateway and logs in; from then on one connection, the *carrier*,
//! holds many streams. Both ends look alike: a [`Driver`] owns the carrier and the state machine of
//! `anyproxy-mux`, and is spawned by the caller in a tracker of its own; everything else is a handle.
//!
//! - At the gateway [`accept`] waits for the client's hello; once that is judged there is a [`Tunnel`], and
//!   [`Tunnel::open`] gives streams.
//! - At the client [`connect`] introduces the client; [`Requests`] then tells what the gateway wants opened.
//! - [`Stream`] is one stream at either end, and keeps what every stream of AnyProxy promises: `shutdown` is a fin,
//!   an unfinished stream that is dropped is a reset, and a reset or a lost tunnel reads as
//!   [`ConnectionReset`](std::io::ErrorKind::ConnectionReset), never as an end.
//!
//! The carrier in production is a [`WebSocket`]; whatever carries messages whole and in order may be one
//! ([`Carrier`]).
//!
//! ```
//! use anyproxy_tunnel::frame::{ClientHello, GatewayHello, HostRef, Open, OpenOk};
//! use anyproxy_tunnel::{Config, Request, WebSocket, accept, connect};
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (near, far) = tokio::io::duplex(4096);
//!
//! // The client: serves one request by saying hello.
//! let client = tokio::spawn(async move {
//!     let carrier = WebSocket::client(far);
//!     let (_tunnel, mut requests, _hello, driver) =
//!         connect(carrier, ClientHello::new("printer-room", 1), Config::default()).await.expect("a gateway");
//!     let driver = tokio::spawn(driver);
//!     if let Some(Request::Open(request)) = requests.next().await {
//!         let mut stream = request.accept(OpenOk::default());
//!         stream.write_all(b"hello").await.expect("a living stream");
//!         stream.shutdown().await.expect("a living stream");
//!         let _ = stream.read_to_end(&mut Vec::new()).await;
//!     }
//!     driver.await
//! });
//!
//! // The gateway: judges the client, then opens a stream.
//! let accepting = accept(WebSocket::server(near), Config::default()).await?;
//! assert_eq!(accepting.hello().client_id, "printer-room");
//! let (tunnel, driver) = accepting.finish(GatewayHello::new(7))?;
//! let driver = tokio::spawn(driver);
//! let open = Open::tcp(HostRef::Name("printer.lan".into()), 631);
//! let (mut stream, _ok) = tunnel.open(open).await?;
//! stream.shutdown().await?;
//! let mut said = String::new();
//! stream.read_to_string(&mut said).await?;
//! assert_eq!(said, "hello");
//! tunnel.close();
//! driver.await?;
//! client.await??;
//! # Ok(())
//! # }
//! ```

mod config;
mod error;

mod client;
mod gateway;

mod cell;
mod stream;
mod sync;

mod driver;
mod link;
mod progress;
mod shared;

mod carrier;
mod outbox;
mod rfc6455;
mod socket;
mod websocket;

pub mod upgrade;

pub use anyproxy_mux::{Memory, PeerError, Share, frame};

pub use carrier::{Carrier, CarrierError};
pub use client::{ClientTunnel, KEPT_RULES, OpenRequest, Request, Requests, connect};
pub use config::{Config, DroppedDatagrams};
pub use driver::Driver;
pub use error::{CloseReason, OpenError, StreamReset, TunnelError, UpgradeError};
pub use gateway::{Accepting, Opening, Tunnel, accept};
#[doc(hidden)]
pub use rfc6455::fuzz;
pub use socket::tune;
pub use stream::Stream;
pub use websocket::WebSocket;
