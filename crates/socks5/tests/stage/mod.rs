//! What the cases are played on: stacks of a few lines, and users that speak bytes.

#![allow(dead_code, unreachable_pub, reason = "each file of cases uses its own part")]

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyproxy_core::{BoxError, BoxStream, Dial, DialService, GatewayStack, Login, Outcome};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, duplex};
use tokio::sync::mpsc;
use tower::make::Shared;

pub const OPEN: &[u8] = b"\x05\x01\x00";
pub const OFFER_BOTH: &[u8] = b"\x05\x02\x00\x02";
pub const ALICE: &[u8] = b"\x01\x05alice\x06secret";
pub const CONNECT: &[u8] = b"\x05\x01\x00\x03\x0bprinter.lan\x02\x77";
pub const SUCCESS: &[u8] = b"\x05\x00\x00\x01\0\0\0\0\0\0";

pub fn source() -> SocketAddr {
    "192.0.2.7:4000".parse().unwrap()
}

/// A dial that waits for its answer.
pub struct Asked {
    pub dial: Dial,
    pub answer: tokio::sync::oneshot::Sender<io::Result<BoxStream>>,
}

impl Asked {
    /// Answers with a pipe, whose far end it returns.
    pub fn connect(self) -> DuplexStream {
        let (near, far) = duplex(64 * 1024);
        assert!(self.answer.send(Ok(BoxStream::new(BufReader::new(near)))).is_ok(), "somebody waits");
        far
    }

    pub fn refuse(self, outcome: Outcome) {
        assert!(self.answer.send(Err(io::Error::other(outcome))).is_ok(), "somebody waits");
    }
}

/// A dial service whose dials are answered by hand.
pub fn by_hand() -> (impl DialService, mpsc::UnboundedReceiver<Asked>) {
    let (asks, asked) = mpsc::unbounded_channel();
    let dials = tower::service_fn(move |dial: Dial| {
        let (answer, answered) = tokio::sync::oneshot::channel();
        asks.send(Asked { dial, answer }).unwrap_or_else(|_| unreachable!("the stage stands"));
        async move { answered.await.unwrap_or_else(|_| Err(io::Error::other(Outcome::Internal))) }
    });
    (dials, asked)
}

/// Dials without accounts.
pub fn open(dials: impl DialService) -> impl GatewayStack {
    Shared::new(dials)
}

/// Dials for those whose login `check` lets in; every login is written down.
pub fn accounts<S: DialService>(
    dials: S,
    check: fn(&str, &str) -> Result<(), Outcome>,
) -> (impl GatewayStack, Arc<Mutex<Vec<Option<String>>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let book = seen.clone();
    let stack = tower::service_fn(move |login: Login| {
        let name = login.credentials.as_ref().map(|credentials| credentials.username.to_string());
        book.lock().unwrap().push(name);
        let verdict = login.credentials.map_or(Err(Outcome::LoginRequired), |credentials| {
            check(&credentials.username, credentials.password.expose_secret())
        });
        let dials = dials.clone();
        async move { verdict.map(|()| dials).map_err(BoxError::from) }
    });
    (stack, seen)
}

pub fn alice_alone(name: &str, password: &str) -> Result<(), Outcome> {
    if (name, password) == ("alice", "secret") { Ok(()) } else { Err(Outcome::LoginRequired) }
}

/// Reads exactly as many bytes as are expected, and expects them.
pub async fn expect(user: &mut (impl AsyncRead + Unpin), expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    user.read_exact(&mut got).await.unwrap();
    assert_eq!(got, expected);
}

/// Reads to the end.
pub async fn rest(user: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    user.read_to_end(&mut all).await.unwrap();
    all
}

/// Sends, and reads to the end what is answered.
pub async fn say(user: &mut DuplexStream, bytes: &[u8]) -> Vec<u8> {
    user.write_all(bytes).await.unwrap();
    rest(user).await
}
