//! Certificates for people without an authority: self-signed, and pinned by the client.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::pki_types::ServerName;

/// A certificate and its key, PEM.
pub(crate) struct SelfSigned {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// A name or an address that clients can find in a certificate. A star may stand for the first label of a name.
pub(crate) fn name(text: &str) -> Result<String, &'static str> {
    let host = text.strip_prefix("*.").unwrap_or(text);
    let fits = match ServerName::try_from(host) {
        Ok(ServerName::DnsName(_)) => !host.ends_with('.'),
        Ok(_) => host == text,
        Err(_) => false,
    };
    if fits { Ok(text.to_owned()) } else { Err("neither a name that a certificate can hold nor an address") }
}

/// Makes a certificate for `names`, valid from an hour ago, since clocks differ, for `lifetime`.
pub(crate) fn self_signed(names: &[String], lifetime: Duration) -> Result<SelfSigned, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    // Where a name is an address, it stands as one: the constructor knows.
    debug_assert!(
        params
            .subject_alt_names
            .iter()
            .all(|name| matches!(name, SanType::DnsName(_) | SanType::IpAddress(_)))
    );
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("anyproxy", String::as_str));
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = (std::time::SystemTime::now() - Duration::from_secs(3_600)).into();
    params.not_after = (std::time::SystemTime::now() + lifetime).into();
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(SelfSigned { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Writes `server.crt` and `server.key`, the key readable by its owner alone: both or, where one is there already, neither.
pub(crate) fn write(dir: &Path, pair: &SelfSigned) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let (key, certificate) = (dir.join("server.key"), dir.join("server.crt"));
    create(&key, 0o600, &pair.key)?;
    create(&certificate, 0o644, &pair.certificate).inspect_err(|_| {
        // A key that fits no certificate would stand in the next one's way.
        let _ = fs::remove_file(&key);
    })
}

/// Writes a file that is not there yet.
fn create(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let describe = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(describe)?;
    file.write_all(text.as_bytes()).map_err(describe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_a_client_can_find_in_a_certificate() {
        for fits in ["localhost", "gw_1.example.com", "*.example.com", "192.0.2.1", "2001:db8::1"] {
            assert_eq!(name(fits).as_deref(), Ok(fits));
        }
        for wrong in ["", "a b", "a.example.", "*", "*.", "a.*.example", "*.192.0.2.1", "a:8443", "b\u{fc}ro"]
        {
            assert!(name(wrong).is_err(), "{wrong:?}");
        }
    }
}
