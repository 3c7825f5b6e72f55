//! The vocabulary of AnyProxy.
//!
//! A gateway is a tower stack. A *front* (HTTP proxy, SOCKS5, …) turns what a user says into a [`Login`] and then
//! into a [`Dial`]; *layers* decide about them; the *terminal service* opens one stream to the target. This crate
//! holds the words these parts share, and nothing that decides anything:
//!
//! - [`Login`] → a dial service: `Service<Login, Response = impl DialService>`, in short a [`GatewayStack`];
//! - [`Dial`] → a stream: `Service<Dial, Response = impl ByteStream>`, in short a [`DialService`];
//! - [`Target`], [`Host`]: where to, names and addresses in one canonical form;
//! - [`Identity`], [`Credentials`], [`Secret`]: who asks; [`SourcePrefix`]: from where, as limits count it; [`Digest`]:
//!   what their state is kept by;
//! - [`Outcome`]: what became of it, the last link of every error's `source()` chain; [`Refusal`]: which layer said
//!   so, the link before;
//! - [`Guarded`], [`Metered`]: the two wrappers a stream needs, since the response of a dial is *alive* and what it
//!   holds must leave with its last byte;
//! - [`Datagrams`]: a udp dial's packets on its stream;
//! - [`poll_read_bytes`], [`lend`], [`share`]: how bulk passes wrappers without a copy;
//! - [`Endpoints`]: the members of a group, as a balancer sees them; [`Fault`]: what a failed dial says about one;
//!   [`OnlyClient`]: the one that a dial is for;
//! - [`RulesMark`]: which rules the far end has still to apply;
//! - [`Journal`]: what is learned about a dial on its way, for the one who writes the access line;
//! - [`run_blocking`]: work that blocks, on a machine that may have no thread left for it.
//!
//! The smallest dial service answers each dial with a pipe:
//!
//! ```
//! use anyproxy_core::{Dial, DialService, Front, Target};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), anyproxy_core::BoxError> {
//! let echo = tower::service_fn(|_dial: Dial| async {
//!     let (near, far) = tokio::io::duplex(64);
//!     drop(far);
//!     Ok::<_, std::io::Error>(tokio::io::BufReader::new(near))
//! });
//! let target = Target::parse("printer.lan:631")?;
//! let _stream = echo.dial(Dial::tcp(target, "192.0.2.1:4000".parse()?, Front::HTTP)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Streams
//!
//! Every stream, and every wrapper around one, keeps three promises: `shutdown` is a fin (the other direction goes
//! on), dropping an unfinished stream is a reset, and a peer's reset reads as
//! [`ConnectionReset`](std::io::ErrorKind::ConnectionReset), never as an end.
//!
//! # tower's own layers
//!
//! A dial stack is a tower stack, so tower's layers go around it. What each does there, as
//! `tests/tower_layers.rs` shows:
//!
//! | layer | around dials |
//! |---|---|
//! | `timeout` | As it is: bounds the dial, not the stream, and means [`Outcome::TimedOut`]. The outermost meaning wins, so put it where that is the true one: around the terminal it says "the dial", around everything it hides "no client". |
//! | `filter` | As it is. Its predicate's error is found again by type, and ends in an outcome as any layer's does. |
//! | `retry` | As it is: a [`Dial`] is cheap to clone and has no payload, so no byte of a user is sent twice. Each dial has a policy of its own. Counters within count attempts, counters outside count dials. |
//! | `concurrency_limit` | Limits dials under way, not streams: the permit ends with the answer. To limit streams, let a permit ride in the stream ([`Guarded`]). Clones share the limit, two stacks made by one layer do not: `GlobalConcurrencyLimitLayer` does. |
//! | `load_shed` | Refuses only what `poll_ready` would let wait, as [`Outcome::Overloaded`]: put it directly around `concurrency_limit` or `buffer`. Above a layer that is always ready, as those that queue, balance or retry are, it never sheds. |
//! | `buffer` | Makes a [`DialService`] of a service that cannot be cloned; costs a task and a hop through a channel for each dial. A service that fails to be ready ends it for good. |
//! | `rate_limit` | No use: it counts for one instance, cannot be cloned, and lets users wait instead of telling them when to come again. |

mod blocking;
mod causes;
mod credentials;
mod datagrams;
mod dial;
mod digest;
mod endpoints;
mod fault;
mod identity;
mod journal;
mod kept;
mod login;
mod outcome;
mod printable;
mod refusal;
mod rules;
mod seam;
mod service;
mod source;
mod stream;
mod target;
mod trace_parent;
mod turn;

pub use blocking::run_blocking;
pub use credentials::{Credentials, Secret};
pub use datagrams::{Datagrams, MAX_DATAGRAM};
pub use dial::{Association, Dial, Network, OnlyClient};
pub use digest::{AsItIs, Digest, DigestMap};
pub use endpoints::{Endpoint, Endpoints, Load};
pub use fault::Fault;
pub use identity::{Account, DEFAULT_GROUP, Identity};
pub use journal::{Journal, Pulse, StreamRef};
pub use kept::{lend, poll_read_bytes, share};
pub use login::{Front, Login};
pub use outcome::Outcome;
pub use printable::printable;
pub use refusal::Refusal;
pub use rules::{Judge, RulesMark, RulesVersion};
pub use seam::{BoxDial, BoxFuture, BoxGateway, BoxStream};
pub use service::{DialService, GatewayStack, Verifier};
pub use source::SourcePrefix;
pub use stream::{ByteStream, Ending, Guarded, Meter, Metered};
pub use target::{Host, HostName, InvalidTarget, Target};
pub use trace_parent::TraceParent;
pub use turn::end_turn;

/// Longer than any process lives: a hundred years. A time-out that somebody set is cut to it before it is added to an
/// instant, which `Duration::MAX` would overflow.
pub const FOR_EVER: std::time::Duration = std::time::Duration::from_secs(100 * 365 * 86_400);

/// An error whose type the parts of a stack need not know; its chain ends in an [`Outcome`] where one is meant.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
