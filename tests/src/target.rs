//! Targets: what users reach through the tunnel.

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpSocket, TcpStream, ToSocketAddrs};
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
        Self::start_on("127.0.0.1:0", serve).await
    }

    /// The same at an address of your choice.
    pub async fn start_on<F, Fut>(address: impl ToSocketAddrs, serve: F) -> Result<Self>
    where
        F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await?;
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

/// A target that refuses: its port is taken, and nobody listens there.
pub struct RefusingTarget {
    address: SocketAddr,
    _socket: TcpSocket,
}

impl RefusingTarget {
    /// Takes a free loopback port.
    pub fn start() -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        Ok(Self { address: socket.local_addr()?, _socket: socket })
    }

    /// Where it is.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.address
    }
}

/// A target that neither accepts nor refuses: its queue is full, and the system drops what asks for more.
pub struct SilentTarget {
    address: SocketAddr,
    _listener: TcpListener,
    _waiting: [TcpStream; 2],
}

impl SilentTarget {
    /// Starts one on a free loopback port.
    pub async fn start() -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let listener = socket.listen(1)?;
        let address = listener.local_addr()?;
        // Linux lets one more wait than the backlog says.
        let waiting = [TcpStream::connect(address).await?, TcpStream::connect(address).await?];
        Ok(Self { address, _listener: listener, _waiting: waiting })
    }

    /// Where it is.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.address
    }
}

/// An HTTP service.
///
/// - `GET /hello`: a short text.
/// - `GET /page`: a page whose script, `/script.js`, writes the short text into it.
/// - `GET /bytes/N`: `N` bytes, always the same ones.
/// - `POST /hash`: the SHA-256 of the body and its length. `PUT` does as well.
/// - `ANY /headers`: the request's head as it arrived, a line each.
pub struct HttpTarget(Target);

impl HttpTarget {
    /// Starts one on a free loopback port.
    pub async fn start() -> Result<Self> {
        Self::start_on("127.0.0.1:0").await
    }

    /// Starts one at an address of your choice.
    pub async fn start_on(address: impl ToSocketAddrs) -> Result<Self> {
        let target = Target::start_on(address, |connection| async {
            let served = http1::Builder::new()
                .half_close(true)
                .serve_connection(TokioIo::new(connection), service_fn(answer));
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
    pub fn bytes(length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        for chunk in Pattern::new(length) {
            bytes.extend_from_slice(&chunk);
        }
        bytes
    }

    /// The SHA-256 of what `/bytes/length` answers, hexadecimal.
    #[must_use]
    pub fn hash(length: usize) -> String {
        let mut hash = Sha256::new();
        Pattern::new(length).for_each(|chunk| hash.update(&chunk));
        format!("{:x}", hash.finalize())
    }

    /// The SHA-256 of `bytes`, hexadecimal.
    #[must_use]
    pub fn hash_of(bytes: &[u8]) -> String {
        format!("{:x}", Sha256::digest(bytes))
    }
}

/// Bytes in chunks of 64 KiB that differ from each other: what is lost, doubled or swapped does not go unnoticed.
struct Pattern {
    position: usize,
    length: usize,
}

impl Pattern {
    const CHUNK: usize = 64 << 10;

    const fn new(length: usize) -> Self {
        Self { position: 0, length }
    }
}

impl Iterator for Pattern {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        /// Noise, of which each chunk is another window.
        static NOISE: LazyLock<Bytes> = LazyLock::new(|| {
            let mut state = 0x9e37_79b9_u32;
            let bytes = std::iter::repeat_with(|| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state as u8
            });
            bytes.take(1 << 20).collect()
        });
        let length = (self.length - self.position).min(Self::CHUNK);
        let offset = self.position / Self::CHUNK * 8_191 % (NOISE.len() - Self::CHUNK);
        self.position += length;
        (length > 0).then(|| NOISE.slice(offset..offset + length))
    }
}

/// A response's body.
enum Answer {
    Text(Option<Bytes>),
    Pattern(Pattern),
}

impl Answer {
    fn text(text: impl Into<Bytes>) -> Self {
        Self::Text(Some(text.into()))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        let chunk = match &mut *self {
            Self::Text(text) => text.take(),
            Self::Pattern(pattern) => pattern.next(),
        };
        Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Text(text) => text.as_ref().map_or(0, |text| text.len() as u64),
            Self::Pattern(pattern) => (pattern.length - pattern.position) as u64,
        })
    }
}

async fn answer(request: Request<Incoming>) -> std::result::Result<Response<Answer>, Infallible> {
    let path = request.uri().path().to_owned();
    let mut kind = "text/plain";
    let (status, body) = match path.as_str() {
        "/hello" => (StatusCode::OK, Answer::text("hello from inside\n")),
        "/page" => {
            kind = "text/html";
            (StatusCode::OK, Answer::text("<!doctype html><body><script src=script.js></script></body>"))
        }
        "/script.js" => {
            kind = "text/javascript";
            (StatusCode::OK, Answer::text("document.body.append('hello from', ' inside')"))
        }
        "/headers" => {
            let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
            for (name, value) in request.headers() {
                text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
            }
            (StatusCode::OK, Answer::text(text))
        }
        "/hash" => match hash(request.into_body()).await {
            Ok(text) => (StatusCode::OK, Answer::text(text)),
            Err(_) => (StatusCode::BAD_REQUEST, Answer::text("")),
        },
        path => match path.strip_prefix("/bytes/").and_then(|length| length.parse().ok()) {
            Some(length) => (StatusCode::OK, Answer::Pattern(Pattern::new(length))),
            None => (StatusCode::NOT_FOUND, Answer::text("not here\n")),
        },
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Reads a body to its end.
async fn hash(mut body: Incoming) -> hyper::Result<String> {
    let (mut hash, mut length) = (Sha256::new(), 0);
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            hash.update(&data);
            length += data.len();
        }
    }
    Ok(format!("{:x} {length}\n", hash.finalize()))
}
