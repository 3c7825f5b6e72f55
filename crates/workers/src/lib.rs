//! AnyProxy's threads: each has a tokio runtime of its own, and there is a rule for who sits where.
//!
//! A byte that passes a gateway is read by one task, the tunnel's, and written by another, its user's. In a runtime
//! whose threads share all tasks the two are mostly on different ones: every hand-over wakes a thread, and the bytes
//! change caches. So here tasks stay where they were put:
//!
//! - a tunnel goes to the thread that has the fewest;
//! - a user goes to a thread that has a tunnel, for that is likely to be the one they will use. While that is
//!   busy, they go to whichever is least so: a hand-over costs less than waiting for a turn.
//!
//! Who sits where changes what things cost, never what they do: streams are handles that work from any thread.
//!
//! ```
//! use anyproxy_workers::{Pulse, Workers};
//!
//! # fn main() -> std::io::Result<()> {
//! let (runtime, pulse) = Pulse::runtime()?;
//! runtime.block_on(async {
//!     let (workers, crew) = Workers::start(2, pulse)?;
//!     let tunnel = workers.tunnels().take();
//!     let user = workers.users().take();
//!     assert!(user.is_beside(&tunnel));
//!     user.handle().spawn(async { /* serves the user */ });
//!     crew.stop(std::time::Duration::from_secs(1));
//!     Ok(())
//! })
//! # }
//! ```

mod busy_poll;
mod crew;
mod pulse;
mod seat;

pub use busy_poll::Waits;
pub use crew::Crew;
pub use pulse::Pulse;
pub use seat::{Seat, Seated, Seats, Workers};
