use std::net::Ipv4Addr;
use std::path::Path;

use anyproxy_frame::{ClientHello, GatewayHello, ToClient, ToGateway};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::{Peer, Result, tls};

/// A gateway that a client is to be tried with.
pub struct MockGateway {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl MockGateway {
    /// Listens on a free loopback port with this certificate and key, both PEM files.
    pub async fn bind(cert: &Path, key: &Path) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        Ok(Self { listener, tls: tls::acceptor(cert, key)? })
    }

    /// The port.
    pub fn port(&self) -> Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// A client's request, and the connection behind it. Connections that come to nothing are passed over: a client
    /// that was not served in time has tried again.
    pub async fn asked(&self) -> Result<(String, TlsStream<TcpStream>)> {
        loop {
            let (tcp, _) = self.listener.accept().await?;
            tcp.set_nodelay(true)?;
            let Ok(mut io) = self.tls.accept(tcp).await else { continue };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match io.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            if head.ends_with(b"\r\n\r\n") {
                return Ok((String::from_utf8(head)?, io));
            }
        }
    }

    /// Answers a request as asked for, with `headers` besides, each ended by CR LF.
    pub async fn grant(mut io: TlsStream<TcpStream>, request: &str, headers: &str) -> Result<Peer> {
        let key = request.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
        });
        let accept = derive_accept_key(key.ok_or("a key")?.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: anyproxy.v1\r\n{headers}\r\n"
        );
        io.write_all(answer.as_bytes()).await?;
        io.flush().await?;
        Ok(Peer::new(io, false))
    }

    /// A client that was upgraded and to which nothing was said yet.
    pub async fn upgrade(&self) -> Result<Peer> {
        let (request, io) = self.asked().await?;
        Self::grant(io, &request, "").await
    }

    /// A tunnel that stands.
    pub async fn join(&self) -> Result<(Peer, ClientHello)> {
        let mut peer = self.upgrade().await?;
        let hello = match peer.next().await? {
            ToGateway::Hello(hello) => *hello,
            other => return Err(format!("no hello but {other:?}").into()),
        };
        peer.send(&ToClient::Hello(Box::new(GatewayHello::new(0xbad)))).await?;
        Ok((peer, hello))
    }
}

impl std::fmt::Debug for MockGateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MockGateway").field("listener", &self.listener).finish_non_exhaustive()
    }
}
