//! Targets: what users reach through the tunnel.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::Result;

/// A TCP service that does one thing with each connection. Gone when dropped.
pub struct Target {
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Target {
    /// Serves each connection with `serve`, on a free loopback port.
    pub async fn start<F, Fut>(serve: F) -> Result<Self>
    where
        F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                let _ = connection.set_nodelay(true);
                connections.spawn(serve(connection));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, accepting: accepting.abort_handle() })
    }

    /// Sends back what it gets.
    pub async fn echo() -> Result<Self> {
        Self::start(|mut connection| async move {
            let (mut read, mut write) = connection.split();
            tokio::io::copy(&mut read, &mut write).await.map(drop)
        })
        .await
    }

    /// Where it is.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// An HTTP service.
///
/// - `GET /hello`: a short text.
/// - `GET /bytes/N`: `N` bytes, always the same ones.
/// - `POST /hash`: the SHA-256 of the body and its length.
/// - `ANY /headers`: the request's head as it arrived, a line each.
pub struct HttpTarget(Target);

impl HttpTarget {
    /// Starts one on a free loopback port.
    pub async fn start() -> Result<Self> {
        let target = Target::start(|connection| async {
            let served = http1::Builder::new()
                .half_close(true)
                .serve_connection(TokioIo::new(connection), service_fn(answer))
                .with_upgrades();
            served.await.map_err(std::io::Error::other)
        });
        Ok(Self(target.await?))
    }

    /// Where it is.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// `http://address/path`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr())
    }

    /// What `/bytes/length` answers.
    #[must_use]
    pub fn bytes(length: usize) -> Bytes {
        (0..length).map(|index| (index.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
    }

    /// The SHA-256 of `bytes`, hexadecimal.
    #[must_use]
    pub fn hash(bytes: &[u8]) -> String {
        format!("{:x}", Sha256::digest(bytes))
    }
}

async fn answer(request: Request<Incoming>) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let (status, body) = match path.as_str() {
        "/hello" => (StatusCode::OK, Bytes::from_static(b"hello from inside\n")),
        "/headers" => {
            let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
            for (name, value) in request.headers() {
                text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
            }
            (StatusCode::OK, text.into())
        }
        "/hash" => {
            let mut body = request.into_body();
            let (mut hash, mut length) = (Sha256::new(), 0);
            loop {
                match body.frame().await {
                    None => break (StatusCode::OK, format!("{:x} {length}\n", hash.finalize()).into()),
                    Some(Err(_)) => break (StatusCode::BAD_REQUEST, Bytes::new()),
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            hash.update(data);
                            length += data.len();
                        }
                    }
                }
            }
        }
        path => match path.strip_prefix("/bytes/").and_then(|length| length.parse().ok()) {
            Some(length) => (StatusCode::OK, HttpTarget::bytes(length)),
            None => (StatusCode::NOT_FOUND, Bytes::from_static(b"not here\n")),
        },
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    Ok(response)
}
