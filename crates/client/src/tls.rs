use std::error::Error;
use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

/// How a client recognises its gateways, and what it shows of itself: TLS 1.3 or 1.2, X25519MLKEM768 offered.
///
/// The check of the gateway's certificate cannot be turned off. Trusted are the system's roots and the
/// certificates given; a given certificate that *equals* the one presented is accepted as pinned, whoever issued
/// it and even if it is a CA's (`openssl req -x509` makes those, and they are refused as a server's otherwise),
/// as long as its name and dates are right.
///
/// Cheap to clone.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// Trusts the system's roots and `anchors`; shows `identity`, a certificate chain and its key, to gateways
    /// that ask for one.
    ///
    /// Reads the system's roots from disk.
    ///
    /// # Errors
    ///
    /// If there is nothing to trust at all, an anchor is not a certificate, or the identity's key does not fit.
    pub fn new(
        anchors: Vec<CertificateDer<'static>>,
        identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!(%error, "a part of the system's trusted certificates cannot be read");
        }
        roots.add_parsable_certificates(system.certs);
        for (index, anchor) in anchors.iter().enumerate() {
            roots.add(anchor.clone()).map_err(|source| TlsError::Anchor { index, source })?;
        }
        Self::with_roots(roots, anchors, identity)
    }

    fn with_roots(
        roots: RootCertStore,
        pinned: Vec<CertificateDer<'static>>,
        identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Result<Self, TlsError> {
        if roots.is_empty() {
            return Err(TlsError::NothingToTrust);
        }
        let provider = anyproxy_tls::provider();
        let by_chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|_| TlsError::NothingToTrust)?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Identity)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { by_chain, pinned }));
        let mut config = match identity {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(TlsError::Identity)?,
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config) })
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

/// Why a [`ClientTls`] cannot be made.
#[derive(Debug)]
#[non_exhaustive]
pub enum TlsError {
    /// The system has no trusted certificates, and none was given.
    NothingToTrust,
    /// One of the anchors is not a certificate that can be trusted.
    Anchor {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The client's own certificate or key cannot be used.
    Identity(rustls::Error),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingToTrust => f.write_str(
                "no gateway can be trusted: the system has no root certificates and none was given",
            ),
            Self::Anchor { index, .. } => write!(f, "trusted certificate {} cannot be used", index + 1),
            Self::Identity(_) => f.write_str("the client's own certificate or key cannot be used"),
        }
    }
}

impl Error for TlsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NothingToTrust => None,
            Self::Anchor { source, .. } | Self::Identity(source) => Some(source),
        }
    }
}

// === impl Verifier ===

/// webpki's check of a chain, and beside it equality with a pinned certificate.
#[derive(Debug)]
struct Verifier {
    by_chain: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.pinned.iter().any(|pinned| pinned == end_entity) {
            return self.by_chain.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            );
        }
        // Whoever gave us this very certificate vouches for its key. That the peer has the key is proved by the
        // signature checked below; left are what the certificate says about when and where it holds.
        verify_dates(end_entity, now)?;
        rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_chain.supported_verify_schemes()
    }
}

/// RFC 5280 section 4.1.2.5; webpki checks it only on the way to a verdict that a pinned certificate cannot have.
fn verify_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs())
        .ok()
        .and_then(|now| ASN1Time::from_timestamp(now).ok())
        .ok_or(CertificateError::BadEncoding)?;
    if now < parsed.validity().not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > parsed.validity().not_after {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    const NAME: &str = "gateway.test";

    /// What `openssl req -x509` makes: self-signed, and a CA.
    fn ca(names: &[&str]) -> CertificateParams {
        let mut params = leaf(names);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn leaf(names: &[&str]) -> CertificateParams {
        let mut params =
            CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, names.join(" "));
        params
    }

    fn expired(mut params: CertificateParams) -> CertificateParams {
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        params
    }

    struct Gateway {
        certificate: CertificateDer<'static>,
        key: KeyPair,
    }

    impl Gateway {
        fn self_signed(params: &CertificateParams) -> Self {
            let key = KeyPair::generate().unwrap();
            Self { certificate: params.self_signed(&key).unwrap().into(), key }
        }

        fn signed_by(
            params: &CertificateParams,
            authority: &CertificateParams,
        ) -> (Self, CertificateDer<'static>) {
            let (key, authority_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
            let anchor = authority.self_signed(&authority_key).unwrap().into();
            let issuer = Issuer::from_params(authority, &authority_key);
            (Self { certificate: params.signed_by(&key, &issuer).unwrap().into(), key }, anchor)
        }

        /// Whether a client with this anchor, who wants to talk to `name`, talks to this gateway. Whatever the
        /// client says, the gateway has received nothing of it otherwise.
        async fn meets(&self, anchor: &CertificateDer<'static>, name: &str) -> Result<(), CertificateError> {
            let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
            let server = rustls::ServerConfig::builder_with_provider(
                rustls::crypto::aws_lc_rs::default_provider().into(),
            )
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)
            .unwrap();
            let client = ClientTls::new(vec![anchor.clone()], None).unwrap();
            let (near, far) = tokio::io::duplex(64 * 1024);
            let gateway = tokio::spawn(async move {
                let mut tls = TlsAcceptor::from(Arc::new(server)).accept(far).await?;
                let mut said = String::new();
                tls.read_to_string(&mut said).await?;
                Ok::<_, io::Error>(said)
            });
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let result = match anyproxy_tls::Stream::connect(near, client.config(), name).await {
                Ok(mut tls) => {
                    tls.write_all(b"secret").await.unwrap();
                    tls.shutdown().await.unwrap();
                    // Until the gateway has heard it all.
                    let _ = tls.read(&mut [0]).await;
                    Ok(())
                }
                Err(error) => match error.into_inner().unwrap().downcast_ref().unwrap() {
                    rustls::Error::InvalidCertificate(why) => Err(why.clone()),
                    other => panic!("{other}"),
                },
            };
            let heard = gateway.await.unwrap();
            assert_eq!(heard.is_ok_and(|said| said == "secret"), result.is_ok());
            result
        }
    }

    #[tokio::test]
    async fn a_chain_to_an_anchor_is_accepted() {
        let (gateway, anchor) = Gateway::signed_by(&leaf(&[NAME]), &ca(&["ca.test"]));
        gateway.meets(&anchor, NAME).await.unwrap();
    }

    #[tokio::test]
    async fn a_pinned_certificate_is_accepted_though_it_is_a_ca_s() {
        let gateway = Gateway::self_signed(&ca(&[NAME, "127.0.0.1"]));
        gateway.meets(&gateway.certificate, NAME).await.unwrap();
        gateway.meets(&gateway.certificate, "127.0.0.1").await.unwrap();
    }

    #[tokio::test]
    async fn a_pinned_certificate_is_accepted_whoever_issued_it() {
        let (gateway, _unknown) = Gateway::signed_by(&leaf(&[NAME]), &ca(&["ca.test"]));
        gateway.meets(&gateway.certificate, NAME).await.unwrap();
    }

    #[tokio::test]
    async fn w9_an_unknown_issuer_is_refused_before_a_credential_leaves() {
        let other = Gateway::self_signed(&ca(&["ca.test"]));
        for gateway in [Gateway::self_signed(&leaf(&[NAME])), Gateway::self_signed(&ca(&[NAME]))] {
            let refused = gateway.meets(&other.certificate, NAME).await;
            assert!(refused.is_err(), "{refused:?}");
        }
        let (gateway, _unknown) = Gateway::signed_by(&leaf(&[NAME]), &ca(&["wrong-ca.test"]));
        assert_eq!(gateway.meets(&other.certificate, NAME).await, Err(CertificateError::UnknownIssuer));
    }

    #[tokio::test]
    async fn w9_a_twin_of_the_pinned_certificate_with_another_key_is_refused() {
        let (pinned, twin) = (Gateway::self_signed(&ca(&[NAME])), Gateway::self_signed(&ca(&[NAME])));
        assert!(twin.meets(&pinned.certificate, NAME).await.is_err());
    }

    #[tokio::test]
    async fn w9_dates_are_checked_pinned_or_not() {
        let pinned = Gateway::self_signed(&expired(ca(&[NAME])));
        assert_eq!(pinned.meets(&pinned.certificate, NAME).await, Err(CertificateError::Expired));
        let mut early = ca(&[NAME]);
        early.not_before = date_time_ymd(4000, 1, 1);
        let pinned = Gateway::self_signed(&early);
        assert_eq!(pinned.meets(&pinned.certificate, NAME).await, Err(CertificateError::NotValidYet));
        let (chained, anchor) = Gateway::signed_by(&expired(leaf(&[NAME])), &ca(&["ca.test"]));
        let refused = chained.meets(&anchor, NAME).await;
        assert!(matches!(refused, Err(CertificateError::ExpiredContext { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn w9_the_name_is_checked_pinned_or_not() {
        let pinned = Gateway::self_signed(&ca(&["127.0.0.1", "other.test"]));
        let (chained, anchor) = Gateway::signed_by(&leaf(&["other.test"]), &ca(&["ca.test"]));
        for refused in [
            pinned.meets(&pinned.certificate, NAME).await,
            pinned.meets(&pinned.certificate, "127.0.0.2").await,
            chained.meets(&anchor, NAME).await,
        ] {
            assert!(matches!(refused, Err(CertificateError::NotValidForNameContext { .. })), "{refused:?}");
        }
    }

    #[test]
    fn x25519mlkem768_is_offered_first() {
        let tls = ClientTls::new(vec![Gateway::self_signed(&ca(&[NAME])).certificate], None).unwrap();
        let first = tls.config.crypto_provider().kx_groups[0].name();
        assert_eq!(first, rustls::NamedGroup::X25519MLKEM768);
    }
}
