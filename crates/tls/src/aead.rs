//! The cipher of one direction, sealing and opening without a copy where its library can.

use aws_lc_rs::aead as aws;
use rustls::crypto::cipher::{Iv, Nonce};
use rustls::{ConnectionTrafficSecrets, Error};

/// What the three ciphers of TLS 1.3 put behind the content.
pub(crate) const TAG: usize = 16;

/// A key, and what makes a nonce of a record's number (RFC 8446 section 5.3).
pub(crate) struct Key {
    cipher: Cipher,
    iv: Iv,
}

enum Cipher {
    AwsLc(aws::LessSafeKey),
    #[cfg(target_arch = "x86_64")]
    Ring(Box<ring::aead::LessSafeKey>),
}

impl Key {
    pub(crate) fn new(secrets: ConnectionTrafficSecrets) -> Result<Self, Error> {
        let (cipher, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
                (Cipher::gcm(&aws::AES_128_GCM, key.as_ref()), iv)
            }
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
                (Cipher::gcm(&aws::AES_256_GCM, key.as_ref()), iv)
            }
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (Cipher::aws_lc(&aws::CHACHA20_POLY1305, key.as_ref()), iv)
            }
            _ => return Err(Error::General("a cipher that is not known".into())),
        };
        Ok(Self { cipher, iv })
    }

    /// Unique for the key: each of its records has a number of its own.
    fn nonce(&self, number: u64) -> [u8; 12] {
        Nonce::new(&self.iv, number).0
    }

    /// Seals `content` and then `kind` into `out`, which has room for both and a tag.
    pub(crate) fn seal(
        &self,
        number: u64,
        head: &[u8],
        content: &[u8],
        kind: u8,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let (sealed, rest) = out.split_at_mut(content.len());
        match &self.cipher {
            Cipher::AwsLc(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(self.nonce(number));
                key.seal_out_of_place_scatter(nonce, aws::Aad::from(head), content, sealed, &[kind], rest)
                    .map_err(|_| Error::EncryptError)
            }
            #[cfg(target_arch = "x86_64")]
            Cipher::Ring(_) => {
                sealed.copy_from_slice(content);
                self.seal_in_place(number, head, kind, out)
            }
        }
    }

    /// Seals the content that `out` begins with, and `kind` behind it; the rest is room for the tag.
    pub(crate) fn seal_in_place(
        &self,
        number: u64,
        head: &[u8],
        kind: u8,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let (content, tag) = out.split_at_mut(out.len() - TAG);
        *content.last_mut().ok_or(Error::EncryptError)? = kind;
        match &self.cipher {
            Cipher::AwsLc(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(self.nonce(number));
                let made = key.seal_in_place_separate_tag(nonce, aws::Aad::from(head), content);
                tag.copy_from_slice(made.map_err(|_| Error::EncryptError)?.as_ref());
            }
            #[cfg(target_arch = "x86_64")]
            Cipher::Ring(key) => {
                let nonce = ring::aead::Nonce::assume_unique_for_key(self.nonce(number));
                let made = key.seal_in_place_separate_tag(nonce, ring::aead::Aad::from(head), content);
                tag.copy_from_slice(made.map_err(|_| Error::EncryptError)?.as_ref());
            }
        }
        Ok(())
    }

    /// Opens `sealed`, which ends with its tag, into `out`, shorter by that tag. What `out` holds after an error is
    /// nothing that may be used.
    pub(crate) fn open(
        &self,
        number: u64,
        head: &[u8],
        sealed: &mut [u8],
        out: &mut [u8],
    ) -> Result<(), Error> {
        match &self.cipher {
            Cipher::AwsLc(key) => {
                let (content, tag) = sealed.split_at(out.len());
                let nonce = aws::Nonce::assume_unique_for_key(self.nonce(number));
                key.open_separate_gather(nonce, aws::Aad::from(head), content, tag, out)
                    .map_err(|_| Error::DecryptError)
            }
            #[cfg(target_arch = "x86_64")]
            Cipher::Ring(_) => {
                self.open_in_place(number, head, sealed)?;
                out.copy_from_slice(&sealed[..out.len()]);
                Ok(())
            }
        }
    }

    /// Opens `sealed`, which ends with its tag, where it lies.
    pub(crate) fn open_in_place(&self, number: u64, head: &[u8], sealed: &mut [u8]) -> Result<(), Error> {
        match &self.cipher {
            Cipher::AwsLc(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(self.nonce(number));
                key.open_in_place(nonce, aws::Aad::from(head), sealed)
                    .map(drop)
                    .map_err(|_| Error::DecryptError)
            }
            #[cfg(target_arch = "x86_64")]
            Cipher::Ring(key) => {
                let nonce = ring::aead::Nonce::assume_unique_for_key(self.nonce(number));
                key.open_in_place(nonce, ring::aead::Aad::from(head), sealed)
                    .map(drop)
                    .map_err(|_| Error::DecryptError)
            }
        }
    }
}

impl Cipher {
    /// AES-GCM of the library that is faster at it here.
    fn gcm(algorithm: &'static aws::Algorithm, key: &[u8]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if crate::gcm::is_faster() {
            let algorithm = if algorithm.key_len() == ring::aead::AES_256_GCM.key_len() {
                &ring::aead::AES_256_GCM
            } else {
                &ring::aead::AES_128_GCM
            };
            return Self::ring(algorithm, key);
        }
        Self::aws_lc(algorithm, key)
    }

    fn aws_lc(algorithm: &'static aws::Algorithm, key: &[u8]) -> Self {
        let key = aws::UnboundKey::new(algorithm, key).expect("a key as long as its cipher's");
        Self::AwsLc(aws::LessSafeKey::new(key))
    }

    #[cfg(target_arch = "x86_64")]
    fn ring(algorithm: &'static ring::aead::Algorithm, key: &[u8]) -> Self {
        let key = ring::aead::UnboundKey::new(algorithm, key).expect("a key as long as its cipher's");
        Self::Ring(Box::new(ring::aead::LessSafeKey::new(key)))
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn both_libraries_seal_alike_and_open_what_the_other_sealed() {
        let pairs =
            [(&aws::AES_128_GCM, &ring::aead::AES_128_GCM), (&aws::AES_256_GCM, &ring::aead::AES_256_GCM)];
        for (aws_lc, ring) in pairs {
            let bytes: Vec<u8> = (0..aws_lc.key_len() as u8).collect();
            let ciphers = [Cipher::aws_lc(aws_lc, &bytes), Cipher::ring(ring, &bytes)];
            let [one, other] = ciphers.map(|cipher| Key { cipher, iv: Iv::from([7; 12]) });
            for (number, length) in [(0, 0), (1, 1), (2, 15), (3, 16), (4, 1_000), (u64::MAX, 16_384)] {
                let (head, content) = ([23, 3, 3, 0, 9], vec![5; length]);
                let room = length + 1 + TAG;
                let sealed = [&one, &other].map(|key| {
                    let (mut apart, mut in_place) = (vec![0; room], vec![5; room]);
                    key.seal(number, &head, &content, 23, &mut apart).unwrap();
                    key.seal_in_place(number, &head, 23, &mut in_place).unwrap();
                    assert!(apart == in_place);
                    apart
                });
                assert!(sealed[0] == sealed[1]);
                for key in [&one, &other] {
                    let (mut apart, mut out) = (sealed[0].clone(), vec![0; length + 1]);
                    key.open(number, &head, &mut apart, &mut out).unwrap();
                    let mut in_place = sealed[0].clone();
                    key.open_in_place(number, &head, &mut in_place).unwrap();
                    assert!(out == in_place[..=length] && out[..length] == content && out[length] == 23);
                    let mut changed = sealed[0].clone();
                    changed[length / 2] ^= 1;
                    assert_eq!(
                        key.open(number, &head, &mut changed.clone(), &mut out),
                        Err(Error::DecryptError)
                    );
                    assert_eq!(key.open_in_place(number, &head, &mut changed), Err(Error::DecryptError));
                    let other_number = key.open_in_place(number ^ 1, &head, &mut sealed[0].clone());
                    assert_eq!(other_number, Err(Error::DecryptError));
                    let other_head = key.open_in_place(number, b"other", &mut sealed[0].clone());
                    assert_eq!(other_head, Err(Error::DecryptError));
                }
            }
        }
    }
}
