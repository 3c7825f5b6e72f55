use std::fmt;
use std::iter;

use rustls::server::{Acceptor, ClientHello};

/// The longest hello read, records and all. Two kilobytes are usual today, with a post-quantum key share; a record has
/// 16 KiB, so this leaves room for one that fills two.
pub(crate) const MAX_HELLO: usize = 32 * 1024;

/// What a TLS client makes anew for each hello (RFC 8446 section 4.1.2).
pub(crate) type Random = [u8; 32];

/// Reads a ClientHello, without IO: bytes come in, the name of a server comes out.
#[derive(Default)]
pub(crate) struct HelloReader {
    acceptor: Acceptor,
    taken: usize,
}

impl HelloReader {
    /// Takes the next bytes; once the hello is whole, the name in it. What follows the hello in `bytes` is not looked
    /// at. Not to be called again after an answer.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<Option<String>, HelloError> {
        let mut bytes = &bytes[..bytes.len().min(MAX_HELLO - self.taken)];
        self.taken += bytes.len();
        while !bytes.is_empty() {
            // Rustls takes a few kilobytes at a time; that it takes none is its own limit, beyond ours.
            self.acceptor.read_tls(&mut bytes).map_err(|_| HelloError::TooLong)?;
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => return server_name(&accepted.client_hello()).map(Some),
                Err((error, mut alert)) => {
                    let mut record = Vec::new();
                    // Writing to memory does not fail.
                    let _ = alert.write_all(&mut record);
                    return Err(HelloError::Wrong { error, record });
                }
            }
        }
        if self.taken == MAX_HELLO { Err(HelloError::TooLong) } else { Ok(None) }
    }
}

fn server_name(hello: &ClientHello<'_>) -> Result<String, HelloError> {
    hello.server_name().map(str::to_owned).ok_or(HelloError::NoName)
}

/// The random bytes of a hello that was read whole, in `records` that begin with it, however it is cut.
pub(crate) fn random(mut records: &[u8]) -> Random {
    /// The message's type and length, and the version: what comes before.
    const BEFORE: usize = 1 + 3 + 2;
    // The content of each record, behind its type, version and length (RFC 8446 section 5.1).
    let contents = iter::from_fn(|| {
        let ([.., high, low], rest) = records.split_first_chunk::<5>()?;
        let (content, next) = rest.split_at_checked(u16::from_be_bytes([*high, *low]).into())?;
        records = next;
        Some(content)
    });
    let mut random = Random::default();
    random.iter_mut().zip(contents.flatten().skip(BEFORE)).for_each(|(to, from)| *to = *from);
    random
}

/// What is wrong with a hello.
#[derive(Debug)]
pub(crate) enum HelloError {
    /// It names no server, or an address, which is no name (RFC 6066 section 3).
    NoName,
    TooLong,
    /// It is none, or not one rustls understands; `record` is what it has to say about it, if anything.
    Wrong {
        error: rustls::Error,
        record: Vec<u8>,
    },
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoName => f.write_str("the hello names no server"),
            Self::TooLong => f.write_str("the hello is too long"),
            Self::Wrong { error, .. } => write!(f, "not a hello: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_random_bytes_are_found_however_a_hello_is_cut_into_records() {
        let random: Random = std::array::from_fn(|at| at as u8);
        let message = [&[1, 0, 0, 40, 3, 3][..], &random, &[0; 6]].concat();
        for size in 1..=message.len() {
            let mut records = Vec::new();
            for content in message.chunks(size) {
                records.extend([22, 3, 1, 0, content.len() as u8]);
                records.extend(content);
            }
            // What a user with 0-RTT has sent behind it, in part.
            records.extend([23, 3, 3, 1, 0, 0]);
            assert_eq!(super::random(&records), random, "{size}");
        }
    }
}
