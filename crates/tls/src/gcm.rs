//! AES-GCM by ring, for TLS 1.3 records (RFC 8446 section 5.2).

use std::sync::LazyLock;

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, Nonce as RingNonce, UnboundKey};
use rustls::crypto::aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter, Nonce,
    OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload, Tls13AeadAlgorithm,
    UnsupportedOperationError, make_tls13_aad,
};
use rustls::{
    ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion, SupportedCipherSuite, Tls13CipherSuite,
};

/// Whether this CPU has what ring makes use of and aws-lc does not, and lacks what aws-lc does better.
pub(crate) fn is_faster() -> bool {
    let two_blocks = is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("avx2");
    let four_blocks = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    two_blocks && !four_blocks
}

/// Puts ring's cipher into the suites of TLS 1.3 that have it. All else of a suite stays.
pub(crate) fn replace(suites: &mut [SupportedCipherSuite]) {
    static AES_256: LazyLock<Tls13CipherSuite> =
        LazyLock::new(|| with_cipher(&TLS13_AES_256_GCM_SHA384, &GCM_256));
    static AES_128: LazyLock<Tls13CipherSuite> =
        LazyLock::new(|| with_cipher(&TLS13_AES_128_GCM_SHA256, &GCM_128));

    for suite in suites {
        if *suite == TLS13_AES_256_GCM_SHA384 {
            *suite = SupportedCipherSuite::Tls13(&AES_256);
        } else if *suite == TLS13_AES_128_GCM_SHA256 {
            *suite = SupportedCipherSuite::Tls13(&AES_128);
        }
    }
}

fn with_cipher(suite: &SupportedCipherSuite, aead_alg: &'static Gcm) -> Tls13CipherSuite {
    let suite = suite.tls13().expect("a suite of TLS 1.3");
    let common = rustls::crypto::CipherSuiteCommon {
        suite: suite.common.suite,
        hash_provider: suite.common.hash_provider,
        confidentiality_limit: suite.common.confidentiality_limit,
    };
    Tls13CipherSuite { common, hkdf_provider: suite.hkdf_provider, aead_alg, quic: None }
}

static GCM_256: Gcm = Gcm(&AES_256_GCM);
static GCM_128: Gcm = Gcm(&AES_128_GCM);

/// AES-GCM with keys of one length.
struct Gcm(&'static Algorithm);

impl Gcm {
    fn key(&self, key: AeadKey, iv: Iv) -> Box<Key> {
        let key = UnboundKey::new(self.0, key.as_ref()).expect("a key as long as `key_len` says");
        Box::new(Key { key: LessSafeKey::new(key), iv })
    }
}

impl Tls13AeadAlgorithm for Gcm {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        self.key(key, iv)
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        self.key(key, iv)
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Ok(if *self.0 == AES_256_GCM {
            ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        } else {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        })
    }
}

/// The key of one direction.
struct Key {
    key: LessSafeKey,
    iv: Iv,
}

impl Key {
    /// Unique, since rustls counts the records of a key and changes it in good time.
    fn nonce(&self, number: u64) -> RingNonce {
        RingNonce::assume_unique_for_key(Nonce::new(&self.iv, number).0)
    }
}

impl MessageEncrypter for Key {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        number: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let length = self.encrypted_payload_len(message.payload.len());
        let mut payload = PrefixedPayload::with_capacity(length);
        payload.extend_from_chunks(&message.payload);
        payload.extend_from_slice(&message.typ.to_array());
        let aad = Aad::from(make_tls13_aad(length));
        self.key
            .seal_in_place_append_tag(self.nonce(number), aad, &mut payload)
            .map_err(|_| Error::EncryptError)?;
        // Section 5.1: on the wire every record claims to be application data of TLS 1.2.
        let (kind, version) = (ContentType::ApplicationData, ProtocolVersion::TLSv1_2);
        Ok(OutboundOpaqueMessage::new(kind, version, payload))
    }

    fn encrypted_payload_len(&self, length: usize) -> usize {
        // Behind the content its type, then the tag.
        length + 1 + self.key.algorithm().tag_len()
    }
}

impl MessageDecrypter for Key {
    fn decrypt<'a>(
        &mut self,
        mut message: InboundOpaqueMessage<'a>,
        number: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let payload = &mut message.payload;
        let aad = Aad::from(make_tls13_aad(payload.len()));
        let opened = self.key.open_in_place(self.nonce(number), aad, payload);
        let length = opened.map_err(|_| Error::DecryptError)?.len();
        payload.truncate(length);
        message.into_tls13_unpadded_message()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use rustls::crypto::aws_lc_rs;
    use rustls::{CipherSuite, ClientConnection, ServerConnection};

    use super::*;
    use crate::model::name;
    use crate::tests::configs_of;

    /// A client with ring's cipher in `suite` alone, and a server of aws-lc's.
    fn pair(suite: CipherSuite) -> (ClientConnection, ServerConnection) {
        let server = aws_lc_rs::default_provider();
        let mut client = server.clone();
        replace(&mut client.cipher_suites);
        client.cipher_suites.retain(|offered| offered.suite() == suite);
        let (client, server) = configs_of(client, server);
        (ClientConnection::new(client, name()).unwrap(), ServerConnection::new(server).unwrap())
    }

    /// Hands over what both have to say until neither has more.
    fn exchange(client: &mut ClientConnection, server: &mut ServerConnection) {
        while client.wants_write() || server.wants_write() {
            let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
            while client.wants_write() {
                client.write_tls(&mut to_server).unwrap();
            }
            while server.wants_write() {
                server.write_tls(&mut to_client).unwrap();
            }
            let (mut to_server, mut to_client) = (&to_server[..], &to_client[..]);
            while !to_server.is_empty() {
                server.read_tls(&mut to_server).unwrap();
                server.process_new_packets().unwrap();
            }
            while !to_client.is_empty() {
                client.read_tls(&mut to_client).unwrap();
                client.process_new_packets().unwrap();
            }
        }
    }

    #[test]
    fn each_suite_says_the_same_as_that_of_aws_lc_whatever_the_length() {
        for suite in [CipherSuite::TLS13_AES_128_GCM_SHA256, CipherSuite::TLS13_AES_256_GCM_SHA384] {
            let (mut client, mut server) = pair(suite);
            exchange(&mut client, &mut server);
            assert_eq!(server.negotiated_cipher_suite().map(|chosen| chosen.suite()), Some(suite));
            for length in [0, 1, 15, 16, 17, 4_000, 16_000, 16_383] {
                let said: Vec<u8> = (0..length).map(|byte| (byte % 251) as u8).collect();
                let mut heard = vec![0; length];
                client.writer().write_all(&said).unwrap();
                exchange(&mut client, &mut server);
                server.reader().read_exact(&mut heard).unwrap();
                assert!(heard == said, "{length} bytes to the server");
                heard.fill(0);
                server.writer().write_all(&said).unwrap();
                exchange(&mut client, &mut server);
                client.reader().read_exact(&mut heard).unwrap();
                assert!(heard == said, "{length} bytes to the client");
            }
        }
    }

    #[test]
    fn a_changed_record_is_refused() {
        for byte in [0, 5, 20] {
            let (mut client, mut server) = pair(CipherSuite::TLS13_AES_256_GCM_SHA384);
            exchange(&mut client, &mut server);
            server.writer().write_all(b"word").unwrap();
            let mut record = Vec::new();
            server.write_tls(&mut record).unwrap();
            let at = record.len() - 1 - byte;
            record[at] ^= 1;
            client.read_tls(&mut &record[..]).unwrap();
            assert_eq!(client.process_new_packets().unwrap_err(), Error::DecryptError);
        }
    }

    #[test]
    fn what_is_shorter_than_a_tag_is_refused() {
        let (mut client, mut server) = pair(CipherSuite::TLS13_AES_128_GCM_SHA256);
        exchange(&mut client, &mut server);
        client.read_tls(&mut &[23, 3, 3, 0, 3, 1, 2, 3][..]).unwrap();
        assert_eq!(client.process_new_packets().unwrap_err(), Error::DecryptError);
    }

    #[test]
    fn only_the_cipher_of_a_suite_changes() {
        let before = aws_lc_rs::default_provider().cipher_suites;
        let mut after = before.clone();
        replace(&mut after);
        assert_eq!(after, before, "suites, and their order");
        let replaced = |suites: &[SupportedCipherSuite]| {
            let quic = |suite: &SupportedCipherSuite| suite.tls13().is_some_and(|suite| suite.quic.is_some());
            suites.iter().filter(|suite| quic(suite)).count()
        };
        assert_eq!((replaced(&before), replaced(&after)), (3, 1));
    }
}
