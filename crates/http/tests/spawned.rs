//! A stack as a program of one's own has it, closures and boxed errors under a layer of tower, may serve a connection in a
//! task: that it compiles is the point.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::time::Duration;

use anyproxy_core::{BoxError, Dial};
use anyproxy_http::HttpProxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower::make::Shared;

#[tokio::test]
async fn a_connection_of_http_1_1_can_be_spawned() {
    let dials = ServiceBuilder::new().timeout(Duration::from_secs(60)).service_fn(|dial: Dial| async move {
        Ok::<_, BoxError>(BufReader::new(TcpStream::connect(dial.target.to_string()).await?))
    });
    let proxy = HttpProxy::new(Shared::new(dials));
    let (mut user, far) = tokio::io::duplex(1024);
    tokio::spawn(async move { proxy.serve_connection(far, source(), &CancellationToken::new()).await });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\nhello");
    user.write_all(request.as_bytes()).await.unwrap();
    let mut heard = [0; 5];
    listener.accept().await.unwrap().0.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

#[tokio::test]
async fn a_connection_of_http_2_can_be_spawned() {
    let dials = ServiceBuilder::new().timeout(Duration::from_secs(60)).service_fn(|dial: Dial| async move {
        Ok::<_, BoxError>(BufReader::new(TcpStream::connect(dial.target.to_string()).await?))
    });
    let proxy = HttpProxy::new(Shared::new(dials));
    let (user, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move { proxy.serve_http2(far, source(), &CancellationToken::new()).await });
    let (mut requests, connection) = h2::client::handshake(user).await.unwrap();
    tokio::spawn(connection);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let request = http::Request::connect(target).body(()).unwrap();
    let (response, _send) = requests.send_request(request, false).unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "hello");
}

fn source() -> SocketAddr {
    ([192, 0, 2, 1], 4000).into()
}
