//! AnyProxy's gateway: accepts clients, keeps their registry and opens streams on their tunnels.
//!
//! Clients inside private networks dial the gateway, log in and keep tunnels open; users' dials are served on these.
//! Two types matter:
//!
//! - [`Gateway`] lets clients log in: TLS, the WebSocket upgrade with its checks, the credentials, the hello; all of
//!   it within one deadline and in a bounded room. It owns the tunnels until they end, and drains them.
//! - [`Clients`] is the registry that a stack's terminal service chooses from: as [`Endpoints`], it tells who may
//!   serve a dial now and waits for somebody who may; one [`Client`] is an [`Endpoint`], a dial service on its
//!   tunnels.
//!
//! Around them: [`Routes`] decides about the group of a dial, [`Ports`] is the front of ports that clients ask for,
//! and [`Authenticate`] is whoever knows the clients' accounts. A gateway of its own, with one account:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use anyproxy_core::{Login, Outcome};
//! use anyproxy_front::{Listener, Tls};
//! use anyproxy_gateway::{ClientAccount, Clients, Config, Gateway};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn gateway(tls: Tls) -> Result<(), Box<dyn std::error::Error>> {
//! let east = Arc::new(ClientAccount::new("east", ["blue"]));
//! let authenticate = tower::service_fn(move |login: Login| {
//!     let east = east.clone();
//!     async move {
//!         let right = login.credentials.is_some_and(|login| login.password.expose_secret() == "not like this");
//!         if right { Ok(east) } else { Err(Outcome::LoginRequired) }
//!     }
//! });
//!
//! let clients = Clients::default(); // its clones go into the stack's `Balance`
//! let gateway = Gateway::new(authenticate, clients.clone(), Config::default());
//! gateway.serve(Listener::bind_any(8443)?, tls, CancellationToken::new()).await;
//! # Ok(())
//! # }
//! ```
//!
//! [`Endpoints`]: anyproxy_core::Endpoints
//! [`Endpoint`]: anyproxy_core::Endpoint

mod gateway;

mod account;
mod upgrade;
mod waiting_room;

mod registry;

mod client;
mod error;
mod pins;
mod routes;
mod rules;

mod ports;

pub use anyproxy_core::OnlyClient;

pub use account::{Authenticate, ClientAccount, FRONT};
pub use client::{Carried, Client, ClientStream, TunnelStatus};
pub use error::NotServed;
pub use gateway::{Config, Gateway};
pub use ports::Ports;
pub use registry::{Clients, DEFAULT_OPEN_TIMEOUT};
pub use routes::Routes;
