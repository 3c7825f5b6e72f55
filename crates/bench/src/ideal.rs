//! The ideal relay: the hops of a reverse tunnel with nothing but copying and TLS.
//!
//! ```text
//! user ──TCP──► gateway ◄──TLS 1.3, one connection a stream, open beforehand── client ──TCP──► target
//! ```
//!
//! No multiplexing, no frames, no proxy handshake, no flow control but TCP's; one thread a process.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::Result;

/// Bytes read at a time. More buys nothing: rustls takes in one record per read.
const CHUNK: usize = 64 * 1024;
/// Connections that stand ready.
const READY: usize = 256;
/// Chunks a direction moves before the other has its turn, so that neither starves.
const TURN: usize = 4;

/// Serves users by handing each a connection that a client has opened.
pub(crate) async fn gateway(
    users: SocketAddr,
    tunnels: SocketAddr,
    certificate: &Path,
    key: &Path,
) -> Result {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (ready, mut opened) = mpsc::channel(READY);
    let tunnels = TcpListener::bind(tunnels).await?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = tunnels.accept().await {
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = ready.send(stream).await;
                }
            });
        }
    });
    let users = TcpListener::bind(users).await?;
    loop {
        let (mut user, _) = users.accept().await?;
        user.set_nodelay(true)?;
        let Some(mut tunnel) = opened.recv().await else { return Ok(()) };
        tokio::spawn(async move {
            let _ = relay(&mut user, &mut tunnel).await;
        });
    }
}

/// Keeps connections open at the gateway, and dials the target when the first bytes come through one.
pub(crate) async fn client(tunnels: SocketAddr, target: SocketAddr, roots: &Path) -> Result {
    let mut trusted = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(roots)? {
        trusted.add(certificate?)?;
    }
    let config = ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let places = Arc::new(Semaphore::new(READY));
    loop {
        let place = places.clone().acquire_owned().await?;
        let connector = connector.clone();
        tokio::spawn(async move {
            let served = async {
                let stream = TcpStream::connect(tunnels).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
                let mut tunnel = connector.connect(name, stream).await?;
                let mut first = [0; 4096];
                let length = tunnel.read(&mut first).await?;
                drop(place);
                let mut far = TcpStream::connect(target).await?;
                far.set_nodelay(true)?;
                far.write_all(&first[..length]).await?;
                relay(&mut tunnel, &mut far).await
            };
            if served.await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        });
    }
}

async fn relay<A, B>(a: &mut A, b: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Direction::new(), Direction::new());
    poll_fn(|cx| {
        let there = there.poll(cx, a, b)?;
        let back = back.poll(cx, b, a)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One way of a relay.
struct Direction {
    chunk: Box<[u8]>,
    filled: std::ops::Range<usize>,
    unflushed: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Copying,
    Ending,
    Over,
}

impl Direction {
    fn new() -> Self {
        Self { chunk: vec![0; CHUNK].into(), filled: 0..0, unflushed: false, state: State::Copying }
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..TURN {
            while !self.filled.is_empty() {
                self.filled.start +=
                    ready!(Pin::new(&mut *to).poll_write(cx, &self.chunk[self.filled.clone()]))?;
                self.unflushed = true;
            }
            match self.state {
                State::Over => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Over;
                    continue;
                }
                State::Copying => {}
            }
            let mut chunk = ReadBuf::new(&mut self.chunk);
            match pin!(&mut *from).poll_read(cx, &mut chunk)? {
                Poll::Ready(()) if chunk.filled().is_empty() => self.state = State::Ending,
                Poll::Ready(()) => self.filled = 0..chunk.filled().len(),
                Poll::Pending if self.unflushed => {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.unflushed = false;
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
