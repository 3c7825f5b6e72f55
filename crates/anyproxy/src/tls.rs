//! Certificates and keys from PEM files, as rustls settings.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use crate::failure::Failure;

/// TLS 1.2 and 1.3 for a listener that speaks `alpn`; with `client_ca`, users must show a certificate of it. That its own
/// has expired is worth a warning and no more: it may be the clock that is wrong.
pub(crate) fn server(
    cert: &str,
    key: &str,
    client_ca: Option<&str>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Failure> {
    let builder = ServerConfig::builder_with_provider(anyproxy_tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::of("TLS", error))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(|error| Failure::of(path, error))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), anyproxy_tls::provider())
                    .build();
            builder.with_client_cert_verifier(verifier.map_err(|error| Failure::of(path, error))?)
        }
    };
    let chain = certificates(cert)?;
    if let Some(since) = chain.first().and_then(expired) {
        tracing::warn!("{cert}: this certificate expired on {since}: it will be refused");
    }
    let mut config = builder
        .with_single_cert(chain, private_key(key)?)
        .map_err(|error| Failure::of(format_args!("{cert} and {key}"), error))?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// When the certificate's time was over, if it is. What cannot be read is for others to complain about.
fn expired(certificate: &CertificateDer<'_>) -> Option<ASN1Time> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let until = certificate.validity().not_after;
    (until < ASN1Time::now()).then_some(until)
}

/// The certificates in a file, at least one.
pub(crate) fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| Failure::of(path, error));
    match found {
        Ok(none) if none.is_empty() => Err(Failure::of(path, "no certificate in it")),
        found => found,
    }
}

/// The private key in a file; that others can read it is worth a warning.
pub(crate) fn private_key(path: &str) -> Result<PrivateKeyDer<'static>, Failure> {
    let key = PrivateKeyDer::from_pem_file(path).map_err(|error| Failure::of(path, error))?;
    if let Ok(metadata) = fs::metadata(Path::new(path))
        && metadata.permissions().mode() & 0o004 != 0
    {
        tracing::warn!("{path}: this private key can be read by every user of the machine");
    }
    Ok(key)
}
