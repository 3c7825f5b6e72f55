//! TLS passthrough for AnyProxy: a front that reads where TLS users want to go, and leaves their TLS alone.
//!
//! A user's first message, the ClientHello, carries the name of the server in the clear (Server Name Indication,
//! RFC 6066 section 3). [`Sni`] reads that name, dials it through a
//! [`GatewayStack`](anyproxy_core::GatewayStack), and hands the target everything the user has said, from the first
//! byte. Certificates and keys stay where they are: with the target. Nothing is decrypted here, and the users'
//! programs need no settings, only a name that leads to the gateway.
//!
//! There is nobody to ask for a password, so a login carries no credentials, and what stands between the world and
//! the targets is the list of names that are served, the group they are served by, and the rules of the stack.
//!
//! ```no_run
//! use anyproxy_core::Dial;
//! use anyproxy_front::Listener;
//! use anyproxy_sni::Sni;
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn gateway() -> std::io::Result<()> {
//! // An open gateway that dials by itself.
//! let dials = tower::service_fn(|dial: Dial| async move {
//!     let target = dial.target.to_string();
//!     tokio::net::TcpStream::connect(target).await.map(tokio::io::BufReader::new)
//! });
//! let sni = Sni::new(tower::make::Shared::new(dials), |target| target.host().to_string() == "www.example.com");
//! sni.serve(Listener::bind_any(443)?, CancellationToken::new()).await;
//! # Ok(())
//! # }
//! ```
//!
//! # What is refused, and how
//!
//! A refusal is a TLS alert, the only words a user's program understands at this point: [`Alert`] lists them, and
//! [`Alert::of`] turns an outcome into one. A hello may have 32 KiB and must come within a deadline, in as many pieces
//! as it likes. A user who encrypts their hello (ECH) goes where the outer, public name says.
//!
//! A name may resolve, at the far end, to the gateway itself. The hello would come back and be dialled again, until there
//! is no room for another connection. So one that has the random bytes and the target of a hello that is just being dialled
//! or relayed is refused as a loop; every honest connection makes its own.
//!
//! The reading is rustls's. It wants hellos of TLS 1.2 or later: an older one, without the extension
//! `signature_algorithms`, is answered `handshake_failure`.

mod alert;
mod front;
mod hello;
mod passing;

pub use alert::Alert;
pub use front::Sni;
