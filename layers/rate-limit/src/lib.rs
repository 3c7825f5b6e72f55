//! Dials and bytes per second for AnyProxy, as tower layers.
//!
//! [`RateLimitLayer`] refuses dials that come too fast and says when the next one may come; [`BandwidthLayer`] slows
//! the streams of those who move too much. Both go by user, group or source ([`Key`]), share their state among all
//! that is cloned from one layer, and can be changed while dials run.
//!
//! ```
//! use anyproxy_core::{Dial, DialService, Front, Outcome, Target};
//! use anyproxy_rate_limit::{Bandwidth, BandwidthLayer, Key, Quota, RateLimitLayer};
//! use tower::ServiceBuilder;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), anyproxy_core::BoxError> {
//! let dials = ServiceBuilder::new()
//!     .layer(RateLimitLayer::new(Quota::new(Key::Source, 1, 2)?))                       // 1 a second, 2 at once
//!     .layer(BandwidthLayer::new(Bandwidth::new(Key::User).up(10 << 20).down(10 << 20)))     // 10 MiB/s each way
//!     .service_fn(|_: Dial| async {
//!         Ok::<_, std::io::Error>(tokio::io::BufReader::new(tokio::io::duplex(64).0))
//!     });
//!
//! let dial = Dial::tcp(Target::parse("printer.lan:631")?, "192.0.2.1:4000".parse()?, Front::HTTP);
//! dials.dial(dial.clone()).await?;
//! dials.dial(dial.clone()).await?;
//! let error = dials.dial(dial).await.unwrap_err();
//! assert!(matches!(Outcome::of(&*error), Outcome::Limited { .. }));
//! # Ok(())
//! # }
//! ```
//!
//! # Place in a stack
//!
//! Below whatever signs dials, since both go by identity. The rate limit above whatever tries again: it counts
//! dials, not tries. A dial refused here has cost its user nothing; one refused further in has.
//!
//! # What is kept
//!
//! Of each key a 64-bit digest and one number, and none of it longer than it means something. State is cleared away
//! by the calls themselves, a little at a time, so there is no task to own; a million keys at once take 40 MiB.

mod bandwidth;
mod key;
mod keyed;
mod limit;
mod throttled;

pub use bandwidth::{Bandwidth, BandwidthFuture, BandwidthHandle, BandwidthLayer, BandwidthLimit};
pub use key::Key;
pub use limit::{Limited, Quota, RateLimit, RateLimitFuture, RateLimitHandle, RateLimitLayer, ZeroQuota};
pub use throttled::Throttled;
