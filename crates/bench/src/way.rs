//! How a user reaches the target: directly, by a fixed forward, or by asking a proxy.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::Result;

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Without anything between.
    Direct,
    /// A port that leads to the target and nowhere else: `tcp://addr`.
    Forward(SocketAddr),
    /// `socks5://[user:password@]addr`
    Socks5(SocketAddr, Option<(String, String)>),
    /// `http://[user:password@]addr`
    Http(SocketAddr, Option<(String, String)>),
}

impl Way {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text == "direct" {
            return Ok(Self::Direct);
        }
        let (scheme, rest) = text.split_once("://").ok_or("a way in is scheme://address")?;
        let (account, addr) = match rest.split_once('@') {
            Some((account, addr)) => {
                let (user, password) = account.split_once(':').ok_or("user:password")?;
                (Some((user.to_owned(), password.to_owned())), addr)
            }
            None => (None, rest),
        };
        let addr: SocketAddr = addr.parse()?;
        if !addr.ip().is_loopback() {
            return Err(format!("{addr} is not of this machine").into());
        }
        match scheme {
            "tcp" => Ok(Self::Forward(addr)),
            "socks5" => Ok(Self::Socks5(addr, account)),
            "http" => Ok(Self::Http(addr, account)),
            other => Err(format!("{other}: a way in is tcp, socks5 or http").into()),
        }
    }

    /// A stream to `target`.
    pub(crate) async fn connect(&self, target: SocketAddr) -> io::Result<TcpStream> {
        timeout(PATIENCE, self.ask(target)).await?
    }

    async fn ask(&self, target: SocketAddr) -> io::Result<TcpStream> {
        match self {
            Self::Direct => tcp(target).await,
            Self::Forward(addr) => tcp(*addr).await,
            Self::Socks5(addr, account) => {
                let mut stream = tcp(*addr).await?;
                greet(&mut stream, account.as_ref()).await?;
                request(&mut stream, 1, target).await?;
                Ok(stream)
            }
            Self::Http(addr, account) => {
                let mut stream = tcp(*addr).await?;
                let head = format!(
                    "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{}\r\n",
                    authorization(account.as_ref())
                );
                stream.write_all(head.as_bytes()).await?;
                let mut answer = Vec::with_capacity(512);
                while !answer.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut answer).await? == 0 || answer.len() > 8_192 {
                        return Err(io::Error::other("CONNECT: no answer"));
                    }
                }
                if !answer.starts_with(b"HTTP/1.1 200") {
                    return Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned()));
                }
                Ok(stream)
            }
        }
    }

    /// A connection for keep-alive requests and the head of one for so many bytes.
    pub(crate) async fn http(&self, target: SocketAddr, bytes: usize) -> io::Result<(TcpStream, String)> {
        let (addr, account, before) = match self {
            Self::Direct => (target, None, String::new()),
            Self::Forward(addr) => (*addr, None, String::new()),
            Self::Http(addr, account) => (*addr, account.as_ref(), format!("http://{target}")),
            Self::Socks5(..) => return Err(io::Error::other("SOCKS5 is no HTTP proxy")),
        };
        let authorization = authorization(account);
        let head = format!("GET {before}/bytes/{bytes} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
        Ok((tcp(addr).await?, head))
    }

    /// A socket whose datagrams reach the target behind the given header, and what keeps it alive.
    pub(crate) async fn udp(
        &self,
        target: SocketAddr,
    ) -> io::Result<(UdpSocket, Vec<u8>, Option<TcpStream>)> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        match self {
            Self::Direct => socket.connect(target).await.map(|()| (socket, Vec::new(), None)),
            Self::Forward(addr) => socket.connect(addr).await.map(|()| (socket, Vec::new(), None)),
            Self::Socks5(addr, account) => {
                let mut control = tcp(*addr).await?;
                greet(&mut control, account.as_ref()).await?;
                let mut relay = request(&mut control, 3, socket.local_addr()?).await?;
                if relay.ip().is_unspecified() {
                    relay.set_ip(addr.ip());
                }
                socket.connect(relay).await?;
                let mut header = vec![0, 0, 0];
                put_address(&mut header, target);
                Ok((socket, header, Some(control)))
            }
            Self::Http(..) => Err(io::Error::other("HTTP carries no datagrams here")),
        }
    }
}

async fn tcp(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn authorization(account: Option<&(String, String)>) -> String {
    account.map_or_else(String::new, |(user, password)| {
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        format!("Proxy-Authorization: Basic {pair}\r\n")
    })
}

async fn greet(stream: &mut TcpStream, account: Option<&(String, String)>) -> io::Result<()> {
    let mut answer = [0; 2];
    let method = if account.is_some() { 2 } else { 0 };
    stream.write_all(&[5, 1, method]).await?;
    stream.read_exact(&mut answer).await?;
    if answer != [5, method] {
        return Err(io::Error::other(format!("SOCKS5: method {:#04x}", answer[1])));
    }
    let Some((user, password)) = account else { return Ok(()) };
    let mut login = vec![1];
    for text in [user, password] {
        login.push(u8::try_from(text.len()).map_err(io::Error::other)?);
        login.extend_from_slice(text.as_bytes());
    }
    stream.write_all(&login).await?;
    stream.read_exact(&mut answer).await?;
    if answer[1] == 0 { Ok(()) } else { Err(io::Error::other("SOCKS5: login refused")) }
}

/// Asks, and returns the address of the reply.
async fn request(stream: &mut TcpStream, command: u8, target: SocketAddr) -> io::Result<SocketAddr> {
    let mut message = vec![5, command, 0];
    put_address(&mut message, target);
    stream.write_all(&message).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    if head[1] != 0 {
        return Err(io::Error::other(format!("SOCKS5: reply {:#04x}", head[1])));
    }
    let ip: IpAddr = match head[3] {
        1 => stream.read_u32().await?.to_be_bytes().into(),
        4 => stream.read_u128().await?.to_be_bytes().into(),
        other => return Err(io::Error::other(format!("SOCKS5: address type {other}"))),
    };
    Ok((ip, stream.read_u16().await?).into())
}

fn put_address(message: &mut Vec<u8>, addr: SocketAddr) {
    match addr.ip() {
        IpAddr::V4(ip) => {
            message.push(1);
            message.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            message.push(4);
            message.extend_from_slice(&ip.octets());
        }
    }
    message.extend_from_slice(&addr.port().to_be_bytes());
}
