//! What every AnyProxy front shares.
//!
//! A front speaks a protocol; everything around the protocol is the same for all of them and lives here:
//!
//! - [`Listener`]: addresses, TLS, the accept loop that owns its connections and survives a machine without
//!   descriptors;
//! - [`Connection`]: what a front needs of a user's connection, and [`UserStream`], the real one, plain or TLS;
//! - [`Relay`]: bytes both ways between a user and a stream, each way ended as it should be, no memory while idle;
//! - [`Rewind`]: a connection whose first bytes were looked at, for ports that speak several protocols;
//! - [`gone`] and [`lost`]: a user who does not wait for the dial;
//! - [`farewell`]: the end of a connection whose last answer must arrive;
//! - [`Throttle`]: warnings that a user can cause, but not at will.
//!
//! A front is an accept loop, a dial and a relay. The smallest one asks nobody anything and always dials one target:
//!
//! ```no_run
//! use anyproxy_core::{Dial, DialService, Front, Target};
//! use anyproxy_front::{Listener, RelayConfig, relay};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn front(dials: impl DialService) -> Result<(), Box<dyn std::error::Error>> {
//! let target = Target::parse("printer.lan:631")?;
//! let listener = Listener::bind(&["127.0.0.1:6310".parse()?])?;
//! let stop = CancellationToken::new();
//! listener
//!     .serve(stop, move |user, source| {
//!         let dial = dials.dial(Dial::tcp(target.clone(), source, Front::new("printer")));
//!         async move {
//!             if let Ok(stream) = dial.await {
//!                 relay(user, stream, RelayConfig::default()).await;
//!             }
//!         }
//!     })
//!     .await;
//! # Ok(())
//! # }
//! ```

mod connection;
mod farewell;
mod gone;
mod listener;
mod relay;
mod rewind;
mod throttle;
mod tls;

pub use connection::{Connection, UserStream};
pub use farewell::farewell;
pub use gone::{gone, lost};
pub use listener::{DEFAULT_HANDSHAKE_TIMEOUT, Listener, Rebind};
pub use relay::{End, Relay, RelayConfig, relay};
pub use rewind::Rewind;
pub use throttle::Throttle;
pub use tls::Tls;
