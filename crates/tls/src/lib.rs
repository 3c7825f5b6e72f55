//! AnyProxy's TLS: rustls, on aws-lc-rs, with the AES-GCM that is fastest on the machine, and a stream for bulk.
//!
//! # The stream
//!
//! A tunnel carries all that its users move, and rustls' own streams copy each received byte three times on its way out: into
//! a buffer of rustls', into a record's memory, into the reader's. One copy is a twentieth to a tenth of all CPU at full speed.
//! So [`Stream`] lets rustls do what is hard (handshakes, certificates, the key schedule, tickets) and protects the records of TLS
//! 1.3 itself, with the keys that rustls hands out for that purpose ([`rustls::kernel`], made for kernels that do the same): a
//! record is opened straight into the reader's buffer and sealed from where its content lies. TLS 1.2 stays with rustls.
//!
//! - `record.rs`: one record, sealed and opened (RFC 8446 section 5.2). `aead.rs`: the cipher below it.
//! - `traffic.rs`: what else there is once the handshake is done: key updates, tickets, alerts.
//! - `connection.rs`: rustls, for the handshake and for TLS 1.2.
//! - `stream.rs`: a socket around them; `buffer.rs`: the sealed bytes between.
//! - `model.rs`: both ends without a socket, for the fuzz target and the tests.
//!
//! # The cipher
//!
//! Half of what a tunnel at full speed costs beside the kernel is AES-GCM. aws-lc has vector instructions for it where a
//! CPU has AVX-512, and falls back to half of that speed where it has not, even if it could work on two blocks at once
//! (VAES with AVX2: AMD from Zen 3 on, Intel from Alder Lake on). For those ring has an implementation. So [`provider`]
//! asks the CPU once, and takes the cipher, and nothing else, from ring where that is faster; key exchange
//! (X25519MLKEM768 first), signatures, hashes and TLS 1.2 stay with aws-lc-rs everywhere.
//!
//! ```
//! use rustls::{ClientConfig, RootCertStore};
//!
//! # fn main() -> Result<(), rustls::Error> {
//! let config = ClientConfig::builder_with_provider(anyproxy_tls::provider())
//!     .with_safe_default_protocol_versions()?
//!     .with_root_certificates(RootCertStore::empty())
//!     .with_no_client_auth();
//! # Ok(())
//! # }
//! ```

#[cfg(target_arch = "x86_64")]
mod gcm;

mod aead;
mod buffer;
mod connection;
mod model;
mod record;
mod stream;
mod traffic;

#[cfg(test)]
mod tests;

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

#[doc(hidden)]
pub use model::play;
pub use stream::Stream;

/// What to build rustls' settings with: TLS 1.3 and 1.2, their cipher suites in rustls' own order.
///
/// Made once in a process, from what its CPU can do.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = aws_lc_rs::default_provider();
        #[cfg(target_arch = "x86_64")]
        if gcm::is_faster() {
            gcm::replace(&mut provider.cipher_suites);
        }
        Arc::new(provider)
    });
    PROVIDER.clone()
}
