//! A protocol of your own: users say one line, `CONNECT host port`, and hear one, `OK` or `NO` with the reason.
//!
//! ```sh
//! cargo run -p anyproxy-examples --example custom_front
//! (echo CONNECT example.com 80; sleep 1; printf 'GET / HTTP/1.0\r\nHost: example.com\r\n\r\n'; sleep 1) | nc 127.0.0.1 7000
//! ```
//!
//! A front turns bytes into a `Login` and a `Dial`, asks the stack once, and turns the answer into bytes. Policy is
//! none of its business: it works with any stack. This one is open and dials by itself.

use std::env;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyproxy_core::{BoxError, Dial, DialService as _, Front, GatewayStack, Host, Login, Outcome, Target};
use anyproxy_front::{Connection, Listener, RelayConfig, farewell, relay};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::make::Shared;
use tower::service_fn;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let stack = Shared::new(service_fn(|dial: Dial| async move {
        TcpStream::connect(dial.target.to_string()).await.map(BufReader::new)
    }));
    let port = env::args().nth(1).map_or(Ok(7000), |port| port.parse())?;
    let listener = Listener::bind(&[(Ipv4Addr::LOCALHOST, port).into()])?;
    println!("line: {}", listener.local_addr()?);
    tokio::select! {
        () = LineFront { stack }.serve(listener, CancellationToken::new()) => Ok(()),
        end = tokio::signal::ctrl_c() => Ok(end?),
    }
}

/// The name of this front, in rules, logs and metrics.
const LINE: Front = Front::new("line");

/// How long a user may take for the line, and how long it may be. Whoever reads from strangers needs both.
const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST: u64 = 300;

#[derive(Clone)]
struct LineFront<M> {
    stack: M,
}

impl<M: GatewayStack> LineFront<M> {
    /// The accept loop, TLS if it is wanted, and the end of it all belong to the listener.
    async fn serve(self, listener: Listener, stop: CancellationToken) {
        listener
            .serve(stop, move |user, source| {
                let front = self.clone();
                async move { front.serve_connection(user, source).await }
            })
            .await;
    }

    async fn serve_connection<U: Connection>(&self, mut user: U, source: SocketAddr) {
        let answer = match timeout(PATIENCE, read_target(&mut user)).await {
            Ok(Ok(target)) => self.dial(target, source).await,
            Ok(Err(error)) => Err(error),
            Err(_) => return,
        };
        match answer {
            Ok(stream) => {
                if user.write_all(b"OK\n").await.is_ok() {
                    // Both ways until both have ended; a reset stays a reset, and an end an end.
                    relay(user, stream, RelayConfig::default()).await;
                }
            }
            // Closing with something unread could take the answer back: `farewell` sees to it that it arrives.
            Err(error) => {
                if user.write_all(refusal(Outcome::of(&*error)).as_bytes()).await.is_ok() {
                    let _ = farewell(user).await;
                }
            }
        }
    }

    /// Login first, then dial: the types leave no other way.
    async fn dial(
        &self,
        target: Target,
        source: SocketAddr,
    ) -> Result<impl anyproxy_core::ByteStream + use<M>, BoxError> {
        let dials = self.stack.login(Login::new(None, source, LINE)).await?;
        dials.dial(Dial::tcp(target, source, LINE)).await
    }
}

/// Reads `CONNECT host port\n`, and not a byte more: what follows belongs to the target.
async fn read_target(user: &mut (impl Connection + ?Sized)) -> Result<Target, BoxError> {
    let mut line = String::new();
    loop {
        match user.read_u8().await? {
            b'\n' => break,
            byte if line.len() as u64 == LONGEST || !byte.is_ascii() => {
                return Err(Outcome::InvalidTarget.into());
            }
            byte => line.push(byte.into()),
        }
    }
    let mut words = line.split_ascii_whitespace();
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some("CONNECT"), Some(host), Some(port), None) => {
            let port = port.parse().map_err(|_| Outcome::InvalidTarget)?;
            Ok(Target::new(Host::parse(host)?, port)?)
        }
        _ => Err(io::Error::other(Outcome::UnsupportedCommand).into()),
    }
}

/// The one place where outcomes become words of this protocol.
fn refusal(outcome: Outcome) -> String {
    match outcome.retry_after() {
        Some(wait) => format!("NO {outcome}, try again in {} s\n", wait.as_secs().max(1)),
        None => format!("NO {outcome}\n"),
    }
}
