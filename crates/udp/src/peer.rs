use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The way to a destination, which knows whether rows of datagrams pass there as one.
#[derive(Debug)]
pub struct Way {
    to: SocketAddr,
    rows: AtomicBool,
}

impl Way {
    /// The way to this address. Rows are tried until they are refused.
    #[must_use]
    pub const fn to(to: SocketAddr) -> Self {
        Self { to, rows: AtomicBool::new(cfg!(target_os = "linux")) }
    }

    /// Where it leads.
    #[must_use]
    pub const fn destination(&self) -> SocketAddr {
        self.to
    }

    /// Whether more than one datagram may be sent at once.
    pub(crate) fn takes_rows(&self) -> bool {
        self.rows.load(Ordering::Relaxed)
    }

    /// Sends datagrams of `size` bytes, the last of which may be shorter. If it fails, none has left; a row that is
    /// refused is the last one that was tried.
    pub(crate) fn send(&self, socket: &UdpSocket, datagrams: &[u8], size: usize) -> io::Result<()> {
        if datagrams.len() <= size {
            return socket.try_send_to(datagrams, self.to).map(drop);
        }
        let sent = socket.try_io(Interest::WRITABLE, || send_row(socket, datagrams, size, self.to));
        if matches!(&sent, Err(error) if error.kind() != io::ErrorKind::WouldBlock) {
            // Too long for a link on the way, or a device or a kernel that cannot; or an error that has nothing to do with
            // rows, which the first datagram alone will show.
            self.rows.store(false, Ordering::Relaxed);
        }
        sent
    }
}

#[cfg(target_os = "linux")]
fn send_row(socket: &UdpSocket, datagrams: &[u8], size: usize, to: SocketAddr) -> io::Result<()> {
    use std::io::IoSlice;
    use std::os::fd::AsRawFd as _;
    use std::sync::OnceLock;

    use nix::sys::socket::sockopt::UdpGsoSegment;
    use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, getsockopt, sendmsg};

    // A kernel that never heard of it overlooks the control message, and would send the row as one datagram.
    static KNOWN: OnceLock<bool> = OnceLock::new();
    if !KNOWN.get_or_init(|| getsockopt(socket, UdpGsoSegment).is_ok()) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let size = u16::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (to, cut) = (SockaddrStorage::from(to), [ControlMessage::UdpGsoSegments(&size)]);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(datagrams)], &cut, MsgFlags::empty(), Some(&to))?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn send_row(_: &UdpSocket, _: &[u8], _: usize, _: SocketAddr) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
