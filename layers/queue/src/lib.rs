//! Bounded, fair waiting for AnyProxy's dials, as tower layers.
//!
//! - [`QueueLayer`]: at most so many streams at once, in all and per user, and so many unanswered dials per user; in
//!   front of them a waiting line with a bound and a deadline, served user by user in turn. A stream keeps its seat until
//!   its last byte.
//! - [`WaitForClient`]: a [`tower::retry`] policy that holds a dial back while no client of its group is connected, so
//!   that a client's reconnect goes unnoticed. It belongs *above* the queue: who waits for a client holds no seat, and
//!   an absent group does not starve the present ones.
//!
//! ```
//! use std::time::Duration;
//!
//! use anyproxy_core::{DialService, Endpoints};
//! use anyproxy_queue::{QueueLayer, Settings, WaitForClient};
//! use tower::ServiceBuilder;
//!
//! fn stack<E: Endpoints>(clients: E, dials: impl DialService<Future: Send>) -> impl DialService {
//!     let queue = Settings { max_connections: 10_000, per_user_connections: 200, ..Settings::default() };
//!     ServiceBuilder::new()
//!         .retry(WaitForClient::new(clients, Duration::from_secs(3)))
//!         .layer(QueueLayer::new(queue))
//!         .service(dials)
//! }
//! ```
//!
//! # What is refused, and as what
//!
//! | refusal | when | outcome |
//! |---|---|---|
//! | [`TooManyConnections`] | at once: the user has as many streams as they may | `Limited` |
//! | [`Overloaded`] | at once where the line is full, else at the deadline | `Overloaded` |
//!
//! A full line does not mean that whoever came first keeps everybody else out: a newcomer takes the last place of the
//! user who has the most.

mod queue;

mod line;

mod error;

mod wait_for_client;

pub use error::{Overloaded, TooManyConnections};
pub use line::{Permit, Settings, Status};
pub use queue::{Queue, QueueHandle, QueueLayer, ResponseFuture};
pub use wait_for_client::{WaitForClient, WaitHandle, WaitSettings, Waiting};
