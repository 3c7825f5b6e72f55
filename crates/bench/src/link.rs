//! A link with a delay: every byte leaves so long after it came, either way.
//!
//! What a tunnel sees of a far-away gateway, without a network to build: round trips take long, nothing is lost, and
//! as much may be under way as the tunnel sends.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::Result;

/// Bytes read at a time, and pieces under way at most: 256 MiB, beyond any bandwidth times delay met here.
const CHUNK: usize = 64 * 1024;
const UNDER_WAY: usize = 4_096;

/// Serves until the process ends.
pub(crate) async fn serve(listen: SocketAddr, to: SocketAddr, delay: Duration) -> Result {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (near, _) = listener.accept().await?;
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(to).await else { return };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::join!(carry(near_in, far_out, delay), carry(far_in, near_out, delay));
        });
    }
}

/// One way, until its end or its failure, either of which the other side learns after the delay.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (send, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let reading = async move {
        loop {
            let mut piece = Vec::with_capacity(CHUNK);
            match from.read_buf(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if send.send((Instant::now() + delay, piece)).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = under_way.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
