//! Certificates and keys from PEM files, as rustls settings.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use crate::failure::Failure;

/// TLS 1.2 and 1.3 for a listener that speaks `alpn`; with `client_ca`, users must show a certificate of it. That its own
/// has expired, or is not valid yet, is worth a warning and no more: it may be the clock that is wrong.
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
    if let Some(why) = chain.first().and_then(untimely) {
        tracing::warn!("{cert}: this certificate {why}: it will be refused");
    }
    let mut config = builder
        .with_single_cert(chain, private_key(key)?)
        .map_err(|error| Failure::of(format_args!("{cert} and {key}"), error))?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Why this is not the certificate's time, if it is not. What cannot be read is for others to complain about.
fn untimely(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let (from, until, now) =
        (certificate.validity().not_before, certificate.validity().not_after, ASN1Time::now());
    if until < now {
        Some(format!("expired on {until}"))
    } else if now < from {
        Some(format!("is not valid before {from}"))
    } else {
        None
    }
}

/// The certificates in a file, at least one.
pub(crate) fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| unread(path, error));
    match found {
        Ok(none) if none.is_empty() => Err(Failure::of(path, "no certificate in it")),
        found => found,
    }
}

/// The private key in a file; that others can read it is worth a warning.
pub(crate) fn private_key(path: &str) -> Result<PrivateKeyDer<'static>, Failure> {
    let key = PrivateKeyDer::from_pem_file(path).map_err(|error| unread(path, error))?;
    if let Ok(metadata) = fs::metadata(Path::new(path))
        && metadata.permissions().mode() & 0o004 != 0
    {
        tracing::warn!("{path}: this private key can be read by every user of the machine");
    }
    Ok(key)
}

/// Why nothing was read from a PEM file, without its bytes, which the error would print as numbers.
fn unread(path: &str, error: pem::Error) -> Failure {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            Failure::of(path, "a section of it has no end, as where a file was cut")
        }
        pem::Error::IllegalSectionStart { .. } => Failure::of(path, "a line that begins a section is cut"),
        other => Failure::of(path, other),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_certificate_before_and_after_its_time_is_told_so() {
        let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
        for (from, until, said) in [
            (now - day, now + day, None),
            (now - 2 * day, now - day, Some("expired on ")),
            (now + day, now + 2 * day, Some("is not valid before ")),
        ] {
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            (params.not_before, params.not_after) = (from.into(), until.into());
            let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            let told = untimely(made.der());
            assert_eq!(told.is_some(), said.is_some(), "{told:?}");
            assert!(told.is_none_or(|told| told.starts_with(said.unwrap())));
        }
    }

    #[test]
    fn a_file_that_was_cut_is_told_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.pem").display().to_string();
        for (text, said) in [
            ("-----BEGIN CERTIFICATE-----\nMIIB\n", "a section of it has no end, as where a file was cut"),
            ("-----BEGIN CERTIFI\nMIIB\n", "a line that begins a section is cut"),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(certificates(&path).unwrap_err().to_string(), format!("{path}: {said}"));
        }
        fs::write(&path, "-----BEGIN PRIVATE KEY-----\nMIIB\n").unwrap();
        assert!(!private_key(&path).unwrap_err().to_string().contains('['));
    }
}
