//! Which member of a group serves a dial: the terminal service of AnyProxy's stacks.
//!
//! [`Balance`] asks its [`Endpoints`] who may serve a dial now, chooses one by its [`Strategy`], and hands the dial
//! on. It knows clients only as members with a name and a load.
//!
//! - **Load** belongs to the member, counts from the dial on, and leaves with the stream's last byte.
//! - **Ejection**: a member that fails several times in a row gets no dials for a while, a longer one each time; then
//!   it is tried again. Only failures of the member count ([`Fault::is_failure`]), never a target's refusal, and the
//!   last healthy member of a group is never ejected.
//! - **Retries**: a dial that provably nobody acted on ([`Fault::may_ask_another`]) goes to another member, at most
//!   twice. Every other failure is the dial's answer.
//!
//! ```
//! use anyproxy_balance::{Balance, Settings, Strategy};
//! use anyproxy_core::{Dial, DialService, Endpoints, Front, Outcome, Target};
//!
//! # async fn example(clients: impl Endpoints) -> Result<(), anyproxy_core::BoxError> {
//! let (dials, handle) = Balance::pair(Strategy::LeastLoaded, clients);
//!
//! let dial = Dial::tcp(Target::parse("printer.lan:631")?, "192.0.2.1:4000".parse()?, Front::HTTP);
//! match dials.dial(dial).await {
//!     Ok(_stream) => { /* the client has reached the target */ }
//!     Err(error) if Outcome::of(&*error) == Outcome::NoClient => { /* nobody is there */ }
//!     Err(_) => {}
//! }
//!
//! // Later, while dials run:
//! handle.replace(Settings { retries: 0, ..Strategy::Random.into() });
//! # Ok(())
//! # }
//! ```
//!
//! Nothing waits here: a group without members is [`NoClient`] at once. Waiting for one belongs above the queue,
//! where it holds no seat.
//!
//! [`Endpoints`]: anyproxy_core::Endpoints
//! [`Fault::is_failure`]: anyproxy_core::Fault::is_failure
//! [`Fault::may_ask_another`]: anyproxy_core::Fault::may_ask_another

mod service;

mod strategy;

mod health;

mod error;

pub use error::NoClient;
pub use health::Ejection;
pub use service::{Balance, BalanceHandle, ResponseFuture, Settings};
pub use strategy::{StickyBy, Strategy};
