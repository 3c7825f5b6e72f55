//! The far end: one TCP port that does what its first byte says, and a UDP echo of the same number.
//!
//! | first byte | then | does |
//! |---|---|---|
//! | `E` | bytes | echoes them |
//! | `D` | | sends without end |
//! | `U` | an id, u64 | swallows, and counts under that id |
//! | `Q` | an id and a number n, u64 each | gives the counts of n ids from there on |
//! | `L` | milliseconds, u64 | answers one byte after so long |
//! | `G` | the rest of an HTTP request | answers `GET /bytes/N` with N bytes, and keeps the connection |

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::Result;

/// Bytes at a time of those who send or swallow without end.
pub(crate) const BULK: usize = 256 * 1024;

/// Ids that are counted apart.
pub(crate) const IDS: u64 = 1 << 16;
static SWALLOWED: [AtomicU64; IDS as usize] = [const { AtomicU64::new(0) }; IDS as usize];

/// One thread for each core of a small machine, each with its own accept queue.
const THREADS: usize = 2;

/// Serves until the process ends.
pub(crate) fn serve(listen: SocketAddr) -> Result {
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            std::thread::spawn(move || -> Result {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let datagrams = async {
                        match thread {
                            0 => echo_datagrams(listen).await,
                            _ => std::future::pending().await,
                        }
                    };
                    tokio::try_join!(accept(listen), datagrams).map(drop)
                })
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a thread of the target panicked")??;
    }
    Ok(())
}

async fn accept(listen: SocketAddr) -> Result {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(listen)?;
    let listener = socket.listen(8_192)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                stream.set_nodelay(true)?;
                tokio::spawn(async move {
                    let _ = answer(stream).await;
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn echo_datagrams(listen: SocketAddr) -> Result {
    let socket = UdpSocket::bind(listen).await?;
    let mut datagram = vec![0; 1 << 16];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut datagram).await {
            let _ = socket.send_to(&datagram[..length], from).await;
        }
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    match stream.read_u8().await? {
        b'E' => {
            let mut bytes = vec![0; 16 * 1024];
            loop {
                match stream.read(&mut bytes).await? {
                    0 => return Ok(()),
                    length => stream.write_all(&bytes[..length]).await?,
                }
            }
        }
        b'D' => {
            let bytes = vec![0; BULK];
            loop {
                stream.write_all(&bytes).await?;
                tokio::task::yield_now().await;
            }
        }
        b'U' => {
            let id = stream.read_u64().await? % IDS;
            let swallowed = &SWALLOWED[usize::try_from(id).unwrap_or_default()];
            swallowed.store(0, Ordering::Relaxed);
            let mut bytes = vec![0; BULK];
            loop {
                match stream.read(&mut bytes).await? {
                    0 => return Ok(()),
                    length => swallowed.fetch_add(length as u64, Ordering::Relaxed),
                };
                tokio::task::yield_now().await;
            }
        }
        b'Q' => {
            let (first, count) = (stream.read_u64().await?, stream.read_u64().await?);
            let ids = (first..first + count.min(IDS)).map(|id| usize::try_from(id % IDS).unwrap_or_default());
            let counts: Vec<u8> =
                ids.flat_map(|id| SWALLOWED[id].load(Ordering::Relaxed).to_be_bytes()).collect();
            stream.write_all(&counts).await
        }
        b'L' => {
            let wait = stream.read_u64().await?;
            tokio::time::sleep(Duration::from_millis(wait)).await;
            stream.write_all(b"L").await
        }
        _ => answer_http(stream).await,
    }
}

async fn answer_http(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut heads, mut response) = (Vec::new(), Vec::new());
    loop {
        while let Some(end) = heads.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = heads.drain(..end + 4).collect();
            let head = String::from_utf8_lossy(&head);
            let path = head.split(' ').nth(1).unwrap_or_default();
            let length: usize =
                path.rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or(0).min(1 << 24);
            response.clear();
            response
                .extend_from_slice(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes());
            response.resize(response.len() + length, b'x');
            stream.write_all(&response).await?;
        }
        if stream.read_buf(&mut heads).await? == 0 {
            return Ok(());
        }
    }
}
