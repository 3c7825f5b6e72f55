//! A span for every dial, and one access line when its stream ends.
//!
//! [`TraceLayer`] belongs outermost around a dial stack, just inside the login, so that refusals are told too:
//!
//! ```
//! use anyproxy_core::{Dial, DialService, Front, Target};
//! use anyproxy_trace::TraceLayer;
//! use tower::Layer;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), anyproxy_core::BoxError> {
//! let dials = TraceLayer::new().layer(tower::service_fn(|_: Dial| async {
//!     Ok::<_, std::io::Error>(tokio::io::BufReader::new(tokio::io::duplex(64).0))
//! }));
//! let dial = Dial::tcp(Target::parse("printer.lan:631")?, "192.0.2.1:4000".parse()?, Front::HTTP);
//! drop(dials.dial(dial).await?); // one line of target "access" at level info
//! # Ok(())
//! # }
//! ```
//!
//! # The access line
//!
//! An event of target `access` at level info, with the fields `stream` (the same at both ends of the tunnel),
//! `front`, `user`, `group`, `source`, `network`, `target`, `client`, `bytes_up`, `bytes_down`, `queue_ms`,
//! `open_ms` (of which the client says it resolved and connected for `connect_ms`), `first_byte_ms`, `total_ms`,
//! `outcome` (`ok`, or why there was no stream) and `end` (`whole`, `abandoned` by the user's side, or `reset` by the
//! target's). Queueing, opening and connecting that there was not took 0; what else is not known is absent.
//!
//! Nothing in it is text as a user sent it: targets are in their canonical form and users are accounts.
//!
//! # The span
//!
//! `dial`, at level debug, around everything the inner services do, with `front`, `target` and the identity; and
//! with `traceparent`, where the front was given a W3C trace context that the dial continues
//! ([`TraceParent`](anyproxy_core::TraceParent)).

mod access;
mod service;

pub use access::AccessLine;
pub use service::{ResponseFuture, Trace, TraceLayer};
