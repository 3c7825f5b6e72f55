use std::fmt;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The TLS settings of a listener: a handle whose clones share them, so that a new certificate can be put in place
/// while the listener runs.
#[derive(Clone)]
pub struct Tls(Arc<ArcSwap<ServerConfig>>);

impl Tls {
    /// Handshakes with `config`, whose ALPN protocols are those the front behind the listener speaks.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self(Arc::new(ArcSwap::new(config)))
    }

    /// Shows the certificate chain and holds the key of these two texts, in PEM, as `anyproxy cert` writes them; TLS
    /// 1.2 and 1.3, no ALPN protocols, no certificates of users asked for. What needs more goes through [`Tls::new`].
    ///
    /// # Errors
    ///
    /// [`InvalidData`](io::ErrorKind::InvalidData) if there is no certificate or no key, or if they do not belong
    /// together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> io::Result<Self> {
        fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
            io::Error::new(io::ErrorKind::InvalidData, error)
        }
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(invalid)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(invalid)?;
        let config = ServerConfig::builder_with_provider(anyproxy_tls::provider())
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        Ok(Self::new(Arc::new(config.map_err(invalid)?)))
    }

    /// Puts `config` in place of the present one. Handshakes that begin from now on see it; connections that are
    /// up, and handshakes under way, keep theirs.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        self.0.store(config);
    }

    /// The present settings, for whoever does handshakes in another way.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.0.load_full()
    }

    /// Does the server's side of a handshake on `io`. There is no deadline here; a listener puts its own around it.
    ///
    /// # Errors
    ///
    /// What `io` or the handshake fails with.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub async fn accept<Io>(&self, io: Io) -> io::Result<TlsStream<Io>>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        TlsAcceptor::from(self.config()).accept(io).await
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_and_its_key_make_a_listener_and_others_do_not() {
        let pair = || rcgen::generate_simple_self_signed(["gateway.test".to_owned()]).unwrap();
        let (one, other) = (pair(), pair());
        let pem =
            |pair: &rcgen::CertifiedKey<rcgen::KeyPair>| (pair.cert.pem(), pair.signing_key.serialize_pem());
        let ((chain, key), (_, strange)) = (pem(&one), pem(&other));
        assert!(Tls::from_pem(chain.as_bytes(), key.as_bytes()).is_ok());
        for (chain, key) in [(&chain, &strange), (&key, &key), (&chain, &chain), (&String::new(), &key)] {
            let error = Tls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
