//! A client that a gateway is to be tried with.

use std::net::SocketAddr;

use anyproxy_frame::{ClientHello, GatewayHello, ToClient, ToGateway};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::{Peer, Result, tls};

/// What a client logs in with.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    /// Its name.
    pub user: &'a str,
    /// Its password.
    pub password: &'a str,
    /// The group the client serves.
    pub group: &'a str,
}

impl Account<'_> {
    /// The request for an upgrade, up to the empty line, which the test adds behind headers of its own.
    #[must_use]
    pub fn request(&self) -> String {
        let login = STANDARD.encode(format!("{}:{}", self.user, self.password));
        format!(
            "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: anyproxy.v1\r\nAuthorization: Basic {login}\r\nAnyproxy-Group: {}\r\n",
            self.group
        )
    }
}

/// A TLS connection to a gateway.
pub async fn connect(gateway: SocketAddr) -> Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(gateway).await?;
    tcp.set_nodelay(true)?;
    Ok(tls::connector()?.connect(ServerName::try_from("localhost")?, tcp).await?)
}

/// The head of the gateway's answer to `request`, and the connection behind it.
pub async fn ask(gateway: SocketAddr, request: &str) -> Result<(String, TlsStream<TcpStream>)> {
    let mut io = connect(gateway).await?;
    // A refusal may come before all of it was sent.
    let _ = io.write_all(request.as_bytes()).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await?);
    }
    Ok((String::from_utf8(head)?, io))
}

/// A WebSocket that has logged in and said nothing yet.
pub async fn upgrade(gateway: SocketAddr, account: &Account<'_>) -> Result<Peer> {
    let (head, io) = ask(gateway, &format!("{}\r\n", account.request())).await?;
    if head.starts_with("HTTP/1.1 101 ") { Ok(Peer::new(io, true)) } else { Err(head.into()) }
}

/// A tunnel that stands.
pub async fn join(gateway: SocketAddr, account: &Account<'_>, client_id: &str) -> Result<Peer> {
    join_with(gateway, account, ClientHello::new(client_id, 1)).await.map(|(peer, _)| peer)
}

/// A tunnel that stands, by a hello of the test's own.
pub async fn join_with(
    gateway: SocketAddr,
    account: &Account<'_>,
    hello: ClientHello,
) -> Result<(Peer, GatewayHello)> {
    let mut peer = upgrade(gateway, account).await?;
    peer.send(&ToGateway::Hello(Box::new(hello))).await?;
    match peer.next().await? {
        ToClient::Hello(hello) => Ok((peer, *hello)),
        other => Err(format!("no hello but {other:?}").into()),
    }
}
