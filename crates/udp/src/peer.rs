use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Where datagrams go, and whether several of them get there in one call.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    segments: AtomicBool,
}

impl Peer {
    /// This address. Segmentation is tried until it is refused.
    #[must_use]
    pub const fn new(address: SocketAddr) -> Self {
        Self { address, segments: AtomicBool::new(cfg!(target_os = "linux")) }
    }

    /// The address.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether more than one datagram may be sent at once.
    pub(crate) fn takes_segments(&self) -> bool {
        self.segments.load(Ordering::Relaxed)
    }

    /// Sends datagrams of `size` bytes, the last of which may be shorter. If it fails, none has left. Where what failed is
    /// segmentation itself, it is not tried again.
    pub(crate) fn send(&self, socket: &UdpSocket, datagrams: &[u8], size: usize) -> io::Result<()> {
        if datagrams.len() <= size {
            return socket.try_send_to(datagrams, self.address).map(drop);
        }
        let sent = socket.try_io(Interest::WRITABLE, || send_segments(socket, datagrams, size, self.address));
        if sent.as_ref().is_err_and(is_of_segmentation) {
            self.segments.store(false, Ordering::Relaxed);
        }
        sent
    }
}

#[cfg(target_os = "linux")]
fn send_segments(socket: &UdpSocket, datagrams: &[u8], size: usize, to: SocketAddr) -> io::Result<()> {
    use std::io::IoSlice;
    use std::os::fd::AsRawFd as _;
    use std::sync::OnceLock;

    use nix::sys::socket::sockopt::UdpGsoSegment;
    use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, getsockopt, sendmsg};

    // A kernel that never heard of it overlooks the control message, and would send all as one datagram.
    static KNOWN: OnceLock<bool> = OnceLock::new();
    if !KNOWN.get_or_init(|| getsockopt(socket, UdpGsoSegment).is_ok()) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let size = u16::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (to, segments) = (SockaddrStorage::from(to), [ControlMessage::UdpGsoSegments(&size)]);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(datagrams)], &segments, MsgFlags::empty(), Some(&to))?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn send_segments(_: &UdpSocket, _: &[u8], _: usize, _: SocketAddr) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether this is how a kernel, a device or a link too short for the segments refuses. What else fails, a route that is
/// gone for a moment or a firewall, fails for each datagram alike and passes.
#[cfg(target_os = "linux")]
fn is_of_segmentation(error: &io::Error) -> bool {
    use nix::errno::Errno;

    match error.raw_os_error().map(Errno::from_raw) {
        None => error.kind() == io::ErrorKind::Unsupported,
        Some(errno) => {
            matches!(
                errno,
                Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE | Errno::EOPNOTSUPP | Errno::ENOPROTOOPT
            )
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn is_of_segmentation(_: &io::Error) -> bool {
    true
}
