//! What dials and logins do, counted.
//!
//! [`MetricsLayer`] goes around both services of a gateway: around the dial stack, outside every layer that
//! refuses, so that refusals are counted too; and around the login stack, so that wrong logins are. It speaks to
//! the [`metrics`] facade; which exporter shows the figures is the program's choice.
//!
//! ```
//! use anyproxy_core::{Dial, DialService, Front, Target};
//! use anyproxy_metrics::MetricsLayer;
//! use tower::Layer;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), anyproxy_core::BoxError> {
//! let dials = MetricsLayer::new().layer(tower::service_fn(|_: Dial| async {
//!     Ok::<_, std::io::Error>(tokio::io::BufReader::new(tokio::io::duplex(64).0))
//! }));
//! let dial = Dial::tcp(Target::parse("printer.lan:631")?, "192.0.2.1:4000".parse()?, Front::HTTP);
//! let stream = dials.dial(dial).await?; // anyproxy_streams_open{front="http"} is 1 until it is dropped
//! # Ok(())
//! # }
//! ```
//!
//! | metric | kind | labels |
//! |---|---|---|
//! | `anyproxy_dials_total` | counter | `front`, `network`, `outcome` |
//! | `anyproxy_streams_open` | gauge | `front` |
//! | `anyproxy_streams_ended_total` | counter | `front`, `end` |
//! | `anyproxy_dial_seconds` | histogram | `phase`: `queue`, `open`, `connect`, `total`, `first_byte` |
//! | `anyproxy_bytes_total` | counter | `front`, `direction`: `up`, `down` |
//! | `anyproxy_logins_total` | counter | `front`, `outcome`; one without credentials that is asked for them is not counted |
//! | `anyproxy_refusals_total` | counter | `layer`, `outcome` |
//! | `anyproxy_user_dials_total` | counter | `user`, `verdict`: `ok`, `failed`, `cancelled` |
//! | `anyproxy_user_streams_open` | gauge | `user` |
//! | `anyproxy_user_bytes_total` | counter | `user`, `direction` |
//!
//! Of the phases, `queue` and `total` are observed for every dial: the wait for a place or a client, and the time from the
//! front's wish to the verdict. The others are those of dials that became a stream: `open` is from asking a client to its
//! answer, and `connect` the part of it that the client says it resolved and connected; what lies between them is the
//! tunnel, and a request that follows another on its stream has neither. `first_byte` is from the front's wish to the
//! target's first byte, if one came.
//!
//! A refusal is counted for the layer whose error names it ([`Refusal`](anyproxy_core::Refusal)), dials and logins
//! alike; what the client or the target refused is in `anyproxy_dials_total` alone.
//!
//! Labels come from closed sets: names of fronts and layers are part of the program, and no host or error text is ever
//! one. Users are only if asked for, and then a number of them
//! ([`with_user_labels`](MetricsLayer::with_user_labels)); without that the last three are not there. Handles are taken
//! when a front is first seen and kept, so nothing is looked up by name afterwards; a byte costs one relaxed addition per
//! read or write.

mod dials;
mod figures;
mod logins;
mod refusals;
mod users;

use std::sync::Arc;

use anyproxy_core::Front;
use tower_layer::Layer;

pub use dials::{DialFuture, StreamMeter};
use figures::Figures;
pub use figures::describe;
pub use logins::LoginFuture;
use users::Users;

/// Counts dials, or logins, whichever the service it wraps answers.
#[derive(Clone, Debug, Default)]
pub struct MetricsLayer {
    figures: Arc<Figures>,
    users: Option<Arc<Users>>,
}

impl MetricsLayer {
    /// Takes no handle yet: each is taken from the recorder of the moment that needs it first, and kept. For a front's,
    /// and with the first front's for the phases, that is [`seen`](Self::seen), or its first dial or login; for those
    /// of a refusal or a user it is the first one. What is taken while there is no recorder counts nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells users apart as well, by name: the first `most` that dial get series of their own, all others share those
    /// of the user `other`, and those without a name the series of `-`, beside the number. 0, the default, tells nobody
    /// apart.
    ///
    /// Each user costs six series, here and in whatever collects them, until the process ends.
    #[must_use]
    pub fn with_user_labels(self, most: usize) -> Self {
        Self { users: (most > 0).then(|| Arc::new(Users::new(most))), ..self }
    }

    /// Takes the handles of `front` now, and those of the phases, so that its series stand at zero before its first
    /// user, and the first dial looks nothing up.
    pub fn seen(&self, front: Front) {
        self.figures.of(front);
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;

    fn layer(&self, inner: S) -> Metrics<S> {
        Metrics { inner, figures: self.figures.clone(), users: self.users.clone() }
    }
}

/// The service of [`MetricsLayer`].
#[derive(Clone, Debug)]
pub struct Metrics<S> {
    inner: S,
    figures: Arc<Figures>,
    users: Option<Arc<Users>>,
}
