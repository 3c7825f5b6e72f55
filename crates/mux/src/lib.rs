//! AnyProxy's multiplexer: streams, windows and fairness, without IO and without a clock.
//!
//! A tunnel carries many streams over one connection. This crate is what both of its ends keep in mind: which streams
//! there are, how many bytes each may send ([credit](Config::window)), whose turn it is, whether the peer is still
//! there and whether it behaves. Frames ([`anyproxy_frame`]), commands and the time go into a [`Mux`]; frames and
//! events come out. The sockets, the tasks and the clock belong to whoever drives it.
//!
//! Only a [`Gateway`] opens streams, and only a [`Client`] answers. Everything else is the same at both ends.
//!
//! ```
//! use std::time::Instant;
//!
//! use anyproxy_mux::{Client, Config, Event, Gateway, Mux};
//! use anyproxy_mux::frame::{ClientHello, GatewayHello, HostRef, Open, OpenOk};
//! use bytes::Bytes;
//!
//! let now = Instant::now();
//! let mut gateway = Mux::<Gateway>::new(Config::default(), now);
//! let mut client = Mux::<Client>::new(Config::default(), now);
//!
//! // The client says who it is, and the gateway answers.
//! client.hello(ClientHello::new("client-1", 7))?;
//! while let Some(frame) = client.poll_transmit(now) {
//!     gateway.handle_frame(now, frame)?;
//! }
//! assert!(matches!(gateway.poll_event(), Some(Event::PeerHello(hello)) if hello.client_id == "client-1"));
//! gateway.hello(GatewayHello::new(1))?;
//!
//! // A user wants something; the client dials it.
//! let id = gateway.open(Open::tcp(HostRef::Name("intranet".into()), 80))?;
//! gateway.send(id, Bytes::from_static(b"GET / HTTP/1.0\r\n\r\n"));
//! while let Some(frame) = gateway.poll_transmit(now) {
//!     client.handle_frame(now, frame)?;
//! }
//! client.accept(id, OpenOk::default());
//! while let Some(frame) = client.poll_transmit(now) {
//!     gateway.handle_frame(now, frame)?;
//! }
//! assert!(matches!(gateway.poll_event(), Some(Event::Answered { answer: Ok(_), .. })));
//!
//! // Only now do the bytes move.
//! assert!(gateway.poll_transmit(now).is_some());
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # What a peer can cost
//!
//! Every limit is a field of [`Config`]. A stream's bytes are bounded by its window, all of a tunnel's by
//! [`held_limit`](Config::held_limit); what is over the limits that an honest peer keeps ends the tunnel with a
//! [`PeerError`] that names the fact; all tunnels of a process share a [`Memory`]. A stream that is over leaves nothing
//! behind: its number is below the highest opened, and that is all there is to know of it.
//!
//! # What has to be told where
//!
//! - The owner keeps received bytes in [`Chunks`], or hands them on, and calls [`Mux::consumed`] as they are read:
//!   that is what makes a slow reader slow its sender, and no one else.
//! - The owner of a sending stream bounds what it gives to [`Mux::send`] by [`Event::Sent`].
//! - Events are asked for after each message of the peer, or the bounds above are no bounds.

mod bandwidth;
mod budget;
mod chunks;
mod client;
mod config;
mod control;
mod error;
mod event;
mod gateway;
mod liveness;
mod memory;
#[doc(hidden)]
pub mod model;
mod mux;
mod schedule;
mod side;
mod stream;

pub use anyproxy_frame as frame;
pub use chunks::Chunks;
pub use client::Client;
pub use config::Config;
pub use error::{OpenError, PeerError};
pub use event::Event;
pub use gateway::Gateway;
pub use memory::{Memory, Share};
pub use mux::Mux;
pub use side::Side;
