//! A panic ends what it happened in, and nothing else (case R7).

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyproxy_core::{DialService as _, Endpoint as _};
use anyproxy_front::{Connection, RelayConfig, relay};
use anyproxy_gateway::{Client, ClientStream, Clients, Config, Gateway};
use anyproxy_tunnel::frame::{ClientHello, OpenOk};
use anyproxy_tunnel::{Config as TunnelConfig, Request, Stream, WebSocket};
use support::{House, Peer, accounts, dial, request, source};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex,
};
use tokio::time::timeout;

#[tokio::test]
async fn r7_a_panic_in_a_tunnel_s_task_ends_that_tunnel_alone() {
    let clients = Clients::default();
    let house = House::build(Config::default(), clients.clone(), None, 1);
    let _other = house.client("room-1", 1).await.echo();
    let mut kept = house.serving("blue")[0].dial(dial("blue")).await.unwrap();

    let (pipe, io, armed) = trapped();
    let gateway = Gateway::new(accounts(1), clients.clone(), Config::default());
    let task = tokio::spawn(async move { gateway.serve_connection(io, source()).await });
    let carrier = WebSocket::connect(pipe, request("north", "blue")).await.unwrap();
    let hello = ClientHello::new("room-2", 1);
    let (tunnel, requests, hello, driver) =
        anyproxy_tunnel::connect(carrier, hello, TunnelConfig::default()).await.unwrap();
    let peer = Peer { tunnel, requests, hello, driver: tokio::spawn(driver), task: None };
    let _echoing = peer.echo();
    house.until(|house| house.ids("blue") == ["room-1", "room-2"]).await;
    let mut lost = house.serving("blue")[1].dial(dial("blue")).await.unwrap();
    echoes(&mut lost).await;

    armed.store(true, Ordering::Relaxed);
    lost.write_all(b"into the trap").await.unwrap();
    assert!(task.await.unwrap_err().is_panic());
    is_reset(&mut lost).await;
    assert_eq!((clients.len(), house.ids("blue")), (1, vec!["room-1".to_owned()]));
    echoes(&mut kept).await;
    // Its client comes back as if the line had been cut.
    let _back = house.connect("north", "blue", ClientHello::new("room-2", 1)).await.unwrap().echo();
    house.until(|house| house.ids("blue") == ["room-1", "room-2"]).await;
    echoes(&mut house.serving("blue")[1].dial(dial("blue")).await.unwrap()).await;
    drop((lost, kept));
    assert_eq!(clients.streams(), 0);
}

#[tokio::test]
async fn r7_a_panic_in_a_stream_s_task_resets_that_stream_alone() {
    let house = House::new(Config::default());
    let mut peer = house.client("room-1", 1).await;
    let client = house.serving("blue").remove(0);
    let (mut kept, mut kept_far) = stream(&client, &mut peer).await;
    let (near, mut far) = stream(&client, &mut peer).await;

    let (mut user, io, armed) = trapped();
    let task = tokio::spawn(relay(io, near, RelayConfig::default()));
    user.write_all(b"before").await.unwrap();
    far.read_exact(&mut [0; 6]).await.unwrap();
    armed.store(true, Ordering::Relaxed);
    far.write_all(b"into the trap").await.unwrap();
    assert!(task.await.unwrap_err().is_panic());
    is_reset(&mut far).await;
    assert_eq!(client.load().streams, 1, "what it held is given back");
    kept.write_all(b"still here").await.unwrap();
    kept_far.read_exact(&mut [0; 10]).await.unwrap();
    stream(&client, &mut peer).await;
}

/// A stream by its two ends, the gateway's and the client's.
async fn stream(client: &Client, peer: &mut Peer) -> (ClientStream, Stream) {
    let dialing = tokio::spawn(client.dial(dial("blue")));
    loop {
        if let Request::Open(request) = peer.requests.next().await.unwrap() {
            let far = request.accept(OpenOk::default());
            return (dialing.await.unwrap().unwrap(), far);
        }
    }
}

async fn echoes(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    stream.write_all(b"there and back").await.unwrap();
    let mut back = [0; 14];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"there and back");
}

/// What comes next is an error, and nothing that reads as an end (invariant I5).
async fn is_reset(stream: &mut (impl AsyncRead + Unpin)) {
    let read = timeout(Duration::from_secs(30), stream.read(&mut [0; 8])).await;
    assert!(read.expect("in time").is_err());
}

/// Two ends of a pipe. Once armed, the second panics as soon as anything is read or written.
fn trapped() -> (DuplexStream, Trapped, Arc<AtomicBool>) {
    let (near, io) = duplex(64 * 1024);
    let armed = Arc::<AtomicBool>::default();
    (near, Trapped { io, armed: armed.clone() }, armed)
}

struct Trapped {
    io: DuplexStream,
    armed: Arc<AtomicBool>,
}

impl Trapped {
    fn io(&mut self) -> Pin<&mut DuplexStream> {
        assert!(!self.armed.load(Ordering::Relaxed), "injected");
        Pin::new(&mut self.io)
    }
}

impl AsyncRead for Trapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buf)
    }
}

impl AsyncWrite for Trapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}

impl Connection for Trapped {
    fn abort(&mut self) {}
}
