use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Bytes that may wait in the kernel without having been sent. What is in there, a keystroke can no longer overtake;
/// too little, and the tunnel's task must be woken for every few packets. On a line of 20 Mbit/s it is 50 ms.
const NOT_SENT: u32 = 128 * 1024;

/// When the kernel asks whether the peer is there, should the tunnel's own pings ever be off.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Prepares a socket for a tunnel: small frames leave at once (`TCP_NODELAY`), little unsent data waits in the kernel
/// (`TCP_NOTSENT_LOWAT`, 128 KiB, where there is such a thing), and dead peers are asked for (keep-alive, 60 s).
///
/// # Errors
///
/// If the kernel refuses an option.
pub fn tune(socket: &TcpStream) -> io::Result<()> {
    anyproxy_tcp::tune(socket, NOT_SENT)?;
    SockRef::from(socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE))
}
