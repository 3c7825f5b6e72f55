//! A user who writes the bytes by hand.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{PASSWORD, Result, Stage, USER};

/// The ways in that carry any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// HTTP's CONNECT.
    Connect,
    /// SOCKS5's.
    Socks5,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Connect, Self::Socks5];
}

/// A connection to `target`, through the tunnel.
pub async fn tunnel(stage: &Stage, way: Way, target: SocketAddr) -> Result<TcpStream> {
    match way {
        Way::Connect => {
            let mut stream = TcpStream::connect(stage.http_addr()).await?;
            stream.set_nodelay(true)?;
            let login = STANDARD.encode(format!("{USER}:{PASSWORD}"));
            let request = format!(
                "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic {login}\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await?;
            let head = head(&mut stream).await?;
            if head.starts_with("HTTP/1.1 200 ") { Ok(stream) } else { Err(head.into()) }
        }
        Way::Socks5 => {
            let mut request = vec![1, 0];
            match target {
                SocketAddr::V4(target) => {
                    request.push(1);
                    request.extend(target.ip().octets());
                }
                SocketAddr::V6(target) => {
                    request.push(4);
                    request.extend(target.ip().octets());
                }
            }
            request.extend(target.port().to_be_bytes());
            match socks5_reply(stage, &request).await? {
                (0, stream) => Ok(stream),
                (code, _) => Err(format!("SOCKS5 reply {code}").into()),
            }
        }
    }
}

/// Logs in at the SOCKS5 front, sends `request` without its version, and returns the code of the reply, which must
/// tell no address.
pub async fn socks5_reply(stage: &Stage, request: &[u8]) -> Result<(u8, TcpStream)> {
    let mut stream = socks5_request(stage, request).await?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await?;
    if reply[0] == 5 && reply[2..] == [0, 1, 0, 0, 0, 0, 0, 0] {
        Ok((reply[1], stream))
    } else {
        Err(format!("not a reply without an address: {reply:?}").into())
    }
}

/// Logs in at the SOCKS5 front, and sends `request` without its version; the reply is next.
pub async fn socks5_request(stage: &Stage, request: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(stage.socks5_addr()).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[5, 1, 2]).await?;
    expect(&mut stream, &[5, 2]).await?;
    let mut login = vec![1, USER.len() as u8];
    login.extend(USER.bytes());
    login.push(PASSWORD.len() as u8);
    login.extend(PASSWORD.bytes());
    stream.write_all(&login).await?;
    expect(&mut stream, &[1, 0]).await?;
    stream.write_all(&[&[5], request].concat()).await?;
    Ok(stream)
}

/// A head as it arrives, up to the empty line and not a byte further.
pub async fn head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) => return Err(format!("{error} after {}", String::from_utf8_lossy(&head)).into()),
        }
    }
    Ok(String::from_utf8(head)?)
}

async fn expect(stream: &mut TcpStream, expected: &[u8]) -> Result {
    let mut found = vec![0; expected.len()];
    stream.read_exact(&mut found).await?;
    if found == expected { Ok(()) } else { Err(format!("{found:?}, not {expected:?}").into()) }
}
