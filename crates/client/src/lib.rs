//! AnyProxy's client: stands inside a private network, keeps tunnels to its gateways, and dials the targets they
//! ask for.
//!
//! The client trusts a gateway to speak for its users, and no further. It makes sure whom it talks to before a
//! credential leaves ([`ClientTls`]); it resolves names itself, by the system's ways; it judges the name it was asked for
//! and every address by rules of its own, and dials exactly the addresses it has judged. What a search list or an alias
//! made of the name in between it does not learn, and no rule judges that. Rules of the gateway on ranges of addresses
//! hold here besides, since only the client sees the addresses behind names: they narrow, and nothing a gateway sends
//! widens.
//!
//! - [`Config`] is what a client is told at its start;
//! - [`Client::run`] keeps [`Replicas`] of tunnels to each gateway, for ever: what is lost is connected again, with
//!   patience that grows and is random, so that a gateway which restarts is not run over;
//! - [`Handle`] swaps the rules of a running client, and tells how many tunnels stand.
//!
//! Names are looked up in the blocking pool of the runtime, up to 384 at once for targets, 64 of them for one user: a runtime
//! that allows fewer blocking threads than tokio's 512 lets users wait for each other's lookups.
//!
//! When a stream ends, or could not be opened, one event of the target `access` says so, at level info.
//!
//! ```no_run
//! use anyproxy_acl::{Pattern, Policy, Rules};
//! use anyproxy_client::{Client, ClientTls, Config};
//! use anyproxy_core::{Credentials, Target};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn client(stop: CancellationToken) -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = Config::new(
//!     vec![Target::parse("gateway.example.com:8443")?],
//!     ClientTls::new(Vec::new(), None)?,
//!     "printer-room",
//!     Credentials::new("gateway_user", "gateway_password"),
//! );
//! config.rules = Policy::new([Rules::allowed("printers", [Pattern::parse("*.printers.lan:631")?.into()])]);
//! Client::new(config)?.run(stop).await;
//! # Ok(())
//! # }
//! ```

mod config;
mod door;
mod tls;

mod client;

mod pool;
mod supervisor;

mod backoff;
mod link;
mod resolve;

mod reserve;

mod serve;

mod judge;
mod open;

mod race;
mod relay;
mod udp;

mod access;

#[cfg(test)]
mod tests;

pub use client::{Client, Handle};
pub use config::{Config, InvalidConfig, MAX_REPLICAS, OpenPort, Replicas};
pub use tls::{ClientTls, TlsError};

pub use anyproxy_tunnel::frame::Transport;
