use std::fmt;

use rustls::server::{Acceptor, ClientHello};

/// The longest hello read, records and all. Two kilobytes are usual today, with a post-quantum key share; a record has
/// 16 KiB, so this leaves room for one that fills two.
pub(crate) const MAX_HELLO: usize = 32 * 1024;

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
