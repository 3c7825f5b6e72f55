//! The tunnel's WebSocket endpoint as an echo, for the Autobahn test suite (`.ci/autobahn` runs it):
//!
//! ```text
//! autobahn serve 127.0.0.1:9001                                 the suite is the client
//! autobahn drive 127.0.0.1:9002                                 the suite is the server
//! autobahn forward 127.0.0.1:9003 http://u:p@host:port 127.0.0.1:9001    a port that leads through an HTTP proxy
//! ```

use std::io;

use anyproxy_mock_peer::Result;
use anyproxy_tunnel::WebSocket;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy, sink};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

#[tokio::main]
async fn main() -> Result {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &*arguments.iter().map(String::as_str).collect::<Vec<_>>() {
        ["serve", address] => serve(address).await,
        ["drive", suite] => drive(suite).await,
        ["forward", address, proxy, target] => forward(address, proxy, target).await,
        _ => Err("serve ADDRESS | drive SUITE | forward ADDRESS PROXY TARGET".into()),
    }
}

async fn serve(address: &str) -> Result {
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (connection, _) = listener.accept().await?;
        tokio::spawn(async move {
            if let Ok(connection) = upgraded(connection).await {
                WebSocket::server(connection).echo().await;
            }
        });
    }
}

/// Agrees to any upgrade; a gateway's own answer has tests of its own.
async fn upgraded(mut connection: TcpStream) -> io::Result<TcpStream> {
    connection.set_nodelay(true)?;
    let head = head(&mut connection).await?;
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    });
    let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    connection.write_all(answer.as_bytes()).await?;
    Ok(connection)
}

async fn drive(suite: &str) -> Result {
    let cases: u32 = match message(suite, "/getCaseCount").await? {
        Some(count) => count.parse()?,
        None => return Err("the suite does not say how many cases it has".into()),
    };
    for case in 1..=cases {
        connect(suite, &format!("/runCase?case={case}&agent=anyproxy")).await?.echo().await;
    }
    message(suite, "/updateReports?agent=anyproxy").await?;
    println!("{cases} cases");
    Ok(())
}

async fn connect(suite: &str, path: &str) -> Result<WebSocket<TcpStream>> {
    let connection = TcpStream::connect(suite).await?;
    connection.set_nodelay(true)?;
    Ok(WebSocket::connect(connection, http::Request::get(format!("ws://{suite}{path}")).body(())?).await?)
}

/// The one message of a resource, which is text: the carrier refuses it, so it is read as what it is refused as.
async fn message(suite: &str, path: &str) -> Result<Option<String>> {
    let mut connection = TcpStream::connect(suite).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {suite}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await?;
    head(&mut connection).await?;
    let [first, length] = [connection.read_u8().await?, connection.read_u8().await?];
    let mut text = vec![0; usize::from(length & 127)];
    connection.read_exact(&mut text).await?;
    Ok((first & 15 == 1).then(|| String::from_utf8(text)).transpose()?)
}

async fn forward(address: &str, proxy: &str, target: &str) -> Result {
    let (login, proxy) =
        proxy.trim_start_matches("http://").rsplit_once('@').ok_or("http://user:password@host:port")?;
    let request = format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic {}\r\n\r\n",
        STANDARD.encode(login)
    );
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (mut near, _) = listener.accept().await?;
        let (proxy, request) = (proxy.to_owned(), request.clone());
        tokio::spawn(async move {
            near.set_nodelay(true)?;
            let mut far = TcpStream::connect(proxy).await?;
            far.set_nodelay(true)?;
            far.write_all(request.as_bytes()).await?;
            let head = head(&mut far).await?;
            if !head.starts_with("HTTP/1.1 200 ") {
                return Err(io::Error::other(head));
            }
            let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
                (near.split(), far.split());
            // Each way on its own, and whoever still talks to somebody gone is heard out: the last word of the other
            // must arrive.
            let up = async {
                let _ = copy(&mut near_read, &mut far_write).await;
                let _ = far_write.shutdown().await;
                let _ = copy(&mut near_read, &mut sink()).await;
            };
            let down = async {
                let _ = copy(&mut far_read, &mut near_write).await;
                near_write.shutdown().await
            };
            tokio::join!(up, down).1
        });
    }
}

/// A head up to the empty line, and not a byte further.
async fn head(connection: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await?);
    }
    String::from_utf8(head).map_err(io::Error::other)
}
