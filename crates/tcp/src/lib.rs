//! How AnyProxy's TCP sockets are prepared, towards users, targets and the other end of a tunnel.
//!
//! - Small writes leave at once (`TCP_NODELAY`).
//! - Little that has not been sent waits in the kernel (`TCP_NOTSENT_LOWAT`, Linux): what is in there, nothing can overtake
//!   any more. What is under way is not counted, so a long line is filled all the same.
//! - What does not leave the machine is not paced. Where the system's congestion control is one that paces (BBR), the kernel
//!   sets a timer for every few packets; a connection to this very machine has no queue to spare and no bandwidth to find,
//!   and those timers were a fifth of all CPU at full speed. Such a connection uses Reno, which every Linux has.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let target = listener.local_addr()?;
//! let socket = anyproxy_tcp::connect(target).await?;
//! anyproxy_tcp::tune(&socket, anyproxy_tcp::NOT_SENT)?;
//! # Ok(())
//! # }
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

/// Bytes that may wait in the kernel for a user or a target without having been sent: 32 KiB.
///
/// The kernel would keep megabytes for one who reads slowly, and take the next ones in a burst where others' keystrokes wait.
/// For those who read fast it costs a tenth less CPU per byte than the kernel's way and than 64 KiB.
pub const NOT_SENT: u32 = 32 * 1024;

/// Connects to `address`. Has no deadline of its own.
///
/// # Errors
///
/// What the system says, and [`ConnectionRefused`](io::ErrorKind::ConnectionRefused) for a connection that met itself.
///
/// # Cancel safety
///
/// Dropping the future drops the attempt.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    connect_if(address, |_| Ok(())).await
}

/// [`connect`], if the socket `may` be used for it: with one that may not nothing leaves this machine.
///
/// # Errors
///
/// Those of [`connect`], and what `may` says.
///
/// # Cancel safety
///
/// As [`connect`].
pub async fn connect_if(
    address: SocketAddr,
    may: impl FnOnce(&TcpSocket) -> io::Result<()>,
) -> io::Result<TcpStream> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    may(&socket)?;
    // Pacing that has begun does not end.
    do_not_pace(&socket, address.ip());
    let socket = socket.connect(address).await?;
    // A connection to a closed port of this host may meet itself, if the system gives it that very port (RFC 9293
    // section 3.5, simultaneous open). Nobody listens there.
    if socket.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(socket)
}

/// Lets small writes leave at once, and at most `not_sent` bytes wait in the kernel. A listening socket hands it on
/// to those it accepts.
///
/// # Errors
///
/// If the kernel refuses an option.
pub fn tune<'s>(socket: impl Into<SockRef<'s>>, not_sent: u32) -> io::Result<()> {
    let socket = socket.into();
    socket.set_tcp_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_notsent_lowat(not_sent)?;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = not_sent;
    Ok(())
}

/// Keeps a connection to `peer` from being paced if that is this machine; before it is made, for all of its life. A
/// listening socket, `peer` being its own address, hands it on to those it accepts.
///
/// Where that cannot be, the system's congestion control stays.
pub fn do_not_pace<'s>(socket: impl Into<SockRef<'s>>, peer: IpAddr) {
    #[cfg(target_os = "linux")]
    if peer.to_canonical().is_loopback() {
        let _ = socket.into().set_tcp_congestion(b"reno");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, peer);
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_to_this_machine_is_not_paced_and_any_other_as_the_system_says() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let near = connect(listener.local_addr().unwrap()).await.unwrap();
        tune(&near, NOT_SENT).unwrap();
        assert!(near.nodelay().unwrap());
        #[cfg(target_os = "linux")]
        {
            let congestion = |socket: SockRef<'_>| {
                let name = socket.tcp_congestion().unwrap();
                String::from_utf8(name).unwrap().trim_end_matches('\0').to_owned()
            };
            assert_eq!(congestion(SockRef::from(&near)), "reno");
            assert_eq!(SockRef::from(&near).tcp_notsent_lowat().unwrap(), NOT_SENT);

            // What the system gives; where that is Reno, nothing can be told from nothing.
            let far = TcpSocket::new_v4().unwrap();
            let usual = congestion(SockRef::from(&far));
            for address in [IpAddr::from([192, 0, 2, 1]), IpAddr::from(Ipv6Addr::UNSPECIFIED)] {
                do_not_pace(&far, address);
                assert_eq!(congestion(SockRef::from(&far)), usual);
            }
            do_not_pace(&far, Ipv4Addr::LOCALHOST.to_ipv6_mapped().into());
            assert_eq!(congestion(SockRef::from(&far)), "reno");
        }
    }

    #[tokio::test]
    async fn a_closed_port_refuses() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = connect(address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
