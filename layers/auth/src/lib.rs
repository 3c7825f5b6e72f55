//! Logins for AnyProxy: accounts, password hashes and lock-out, as tower layers.
//!
//! A front asks one question before anything else: who is this? [`AuthLayer`] turns a dial service into the answer: a
//! service of [`Login`](anyproxy_core::Login) whose response is that dial service, bound to an
//! [`Identity`](anyproxy_core::Identity). No front can dial without it, and the types say so.
//!
//! ```
//! use anyproxy_auth::{Accounts, AuthLayer, LockoutLayer, User, Verify};
//! use anyproxy_core::{Credentials, Dial, DialService, Front, GatewayStack, Login, Outcome, Target};
//! use tower::ServiceBuilder;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), anyproxy_core::BoxError> {
//! let accounts = Accounts::new([User::plain("alice", "secret").in_groups(["blue"])])?;
//! let stack = ServiceBuilder::new()
//!     .layer(LockoutLayer::default())                      // by source, before anything is spent on a guess
//!     .layer(AuthLayer::new(Verify::new(accounts)))        // Login -> a dial service that signs each Dial
//!     .service_fn(|dial: Dial| async move {
//!         assert_eq!(dial.identity.user(), Some("alice"));
//!         Ok::<_, std::io::Error>(tokio::io::BufReader::new(tokio::io::duplex(64).0))
//!     });
//!
//! let source = "192.0.2.1:4000".parse()?;
//! let login = |password| {
//!     let credentials = Some(Credentials::new("alice", password));
//!     stack.login(Login::new(credentials, source, Front::HTTP))
//! };
//! let dials = login("secret").await?;
//! dials.dial(Dial::tcp(Target::parse("printer.lan:631")?, source, Front::HTTP)).await?;
//!
//! let error = login("wrong").await.unwrap_err();
//! assert_eq!(Outcome::of(&*error), Outcome::LoginRequired);
//! # Ok(())
//! # }
//! ```
//!
//! # Parts
//!
//! - [`AuthLayer`] takes any [`Verifier`](anyproxy_core::Verifier): [`Verify`] below, or a service of your own that asks
//!   an HTTP endpoint, a directory, a database.
//! - [`Accounts`] are built from [`User`]s, with passwords in clear or hashed ([`PasswordHash`]: argon2id, bcrypt), or
//!   from an [`htpasswd`] file; everything is checked then, and later code meets no bad one. [`hash_password`] makes
//!   hashes.
//! - [`Verify`] verifies logins against them and can be used without a stack, as a gateway does for its clients. Its
//!   [`AccountsHandle`] replaces the accounts while logins go on; what that revokes is revoked.
//! - [`StandingLayer`] refuses what revoked users still dial by connections that outlive their account, and what they had
//!   let wait.
//! - [`HashPool`] bounds what hashing costs; [`LockoutLayer`] bounds guessing.
//!
//! # What an attacker learns
//!
//! Nothing from time: passwords in clear are compared as keyed digests, and a user who does not exist is compared
//! with somebody else's account, quick or slow as accounts are. Nothing from memory: passwords in clear are kept as
//! digests, remembered logins too. Nothing from text: no error and no `Debug` here shows a password or a hash.

mod accounts;
mod error;
mod hash;
mod htpasswd;
mod layer;
mod lockout;
mod pool;
mod remembered;
mod standing;
mod verify;

use aws_lc_rs::{hmac, rand};

pub use accounts::{Accounts, Fault, InvalidAccount, MAX_PASSWORD, Password, User};
pub use error::Rejected;
pub use hash::{InvalidHash, PasswordHash, hash_password};
pub use htpasswd::{InvalidLine, htpasswd};
pub use layer::{Auth, AuthFuture, AuthLayer, Identified};
pub use lockout::{LockedOut, Lockout, LockoutFuture, LockoutHandle, LockoutLayer, LockoutPolicy};
pub use pool::HashPool;
pub use standing::{Standing, StandingFuture, StandingLayer};
pub use verify::{AccountsHandle, Verdict, Verify};

/// A key that nobody knows and that dies with the process.
fn random_key() -> hmac::Key {
    hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new())
        .expect("the operating system gives random bytes")
}
