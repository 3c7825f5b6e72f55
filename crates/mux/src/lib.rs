//! AnyProxy's multiplexer: streams, windows and fairness, without IO and without a clock. (skeleton)

mod chunks;
mod config;
mod error;
mod event;
mod mux;
mod side;

pub use anyproxy_frame as frame;
pub use chunks::Chunks;
pub use config::Config;
pub use error::{OpenError, PeerError};
pub use event::Event;
pub use mux::Mux;
pub use side::{Client, Gateway, Side};
