use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyproxy_tunnel::frame::OpenErrClass;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;

use crate::reserve::Reserve;

/// How long an attempt may be silent before the next address is tried beside it (RFC 8305 section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connects to one of `addresses`, the first that answers, by Happy Eyeballs (RFC 8305): the families take turns,
/// and a silent address delays the next by 250 ms only. Descriptors of `reserve` are left alone. Has no deadline of its own.
///
/// # Errors
///
/// When no address answers, the failure that tells most.
///
/// # Cancel safety
///
/// Dropping the future drops every attempt.
pub(crate) async fn connect(
    addresses: Vec<SocketAddr>,
    reserve: Reserve,
) -> io::Result<(TcpStream, SocketAddr)> {
    race(interleave(addresses), |address| async move {
        let connected = anyproxy_tcp::connect_if(address, |socket| reserve.check(socket)).await;
        Ok((connected.map_err(|error| no_port_is_free(error, address))?, address))
    })
    .await
}

/// That all local ports towards a target are in use, said as what it is: the system says that the address is not
/// available, as it does for IPv6 where there is none.
fn no_port_is_free(error: io::Error, address: SocketAddr) -> io::Error {
    if error.kind() == io::ErrorKind::AddrNotAvailable && address.is_ipv4() {
        return io::Error::new(io::ErrorKind::ResourceBusy, "no local port is free");
    }
    error
}

/// The addresses of both families in turns, each family in its given order, the first one's family first
/// (RFC 8305 section 4).
fn interleave(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let v6_first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|a| a.is_ipv6() == v6_first);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    std::iter::from_fn(|| Some([first.next(), second.next()]))
        .take_while(|pair| pair.iter().any(Option::is_some))
        .flatten()
        .flatten()
        .collect()
}

async fn race<T, F>(mut waiting: VecDeque<SocketAddr>, connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut running = FuturesUnordered::new();
    let mut failure: Option<io::Error> = None;
    loop {
        if let Some(address) = waiting.pop_front() {
            running.push(connect(address));
        }
        tokio::select! {
            Some(result) = running.next() => match result {
                Ok(connected) => return Ok(connected),
                Err(error) if failure.as_ref().is_none_or(|known| tells(&error) > tells(known)) => {
                    if is_out_of_descriptors(&error) {
                        // Another address would not change that; one that is being tried may still answer.
                        waiting.clear();
                    }
                    failure = Some(error);
                }
                Err(_) => {}
            },
            () = tokio::time::sleep(ATTEMPT_DELAY), if !waiting.is_empty() => {}
            else => return Err(failure.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())),
        }
    }
}

/// How much a failure says: that this client has no room, so that another may be asked; then what it says about the
/// target, and a host that refused was there.
pub(crate) fn tells(error: &io::Error) -> u8 {
    match class_of(error) {
        OpenErrClass::Overloaded => 5,
        OpenErrClass::Refused => 4,
        OpenErrClass::TimedOut => 3,
        OpenErrClass::HostUnreachable => 2,
        OpenErrClass::NetworkUnreachable => 1,
        _ => 0,
    }
}

/// Whether there is no descriptor left, in this process or the system, or no buffers. These have no kind.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS))
}

/// The class of a failed lookup, for the gateway: it takes descriptors, too.
pub(crate) fn class_of_lookup(error: &io::Error) -> OpenErrClass {
    match class_of(error) {
        OpenErrClass::Overloaded => OpenErrClass::Overloaded,
        _ => OpenErrClass::Unresolved,
    }
}

/// The class of a failed connection, for the gateway.
pub(crate) fn class_of(error: &io::Error) -> OpenErrClass {
    use io::ErrorKind;
    if is_out_of_descriptors(error) {
        return OpenErrClass::Overloaded;
    }
    // These have no kind either.
    match error.raw_os_error() {
        // A kernel without IPv6, or without TCP over it.
        Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => return OpenErrClass::NetworkUnreachable,
        // Which libc knows of Unix alone.
        #[cfg(unix)]
        Some(libc::EHOSTDOWN) => return OpenErrClass::HostUnreachable,
        _ => {}
    }
    match error.kind() {
        ErrorKind::ConnectionRefused => OpenErrClass::Refused,
        ErrorKind::TimedOut => OpenErrClass::TimedOut,
        ErrorKind::HostUnreachable => OpenErrClass::HostUnreachable,
        // Without an address to leave from, or without that family, there is no way either.
        ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown
        | ErrorKind::AddrNotAvailable
        | ErrorKind::Unsupported => OpenErrClass::NetworkUnreachable,
        // A packet filter of this host says no.
        ErrorKind::PermissionDenied => OpenErrClass::Denied,
        ErrorKind::OutOfMemory | ErrorKind::ResourceBusy => OpenErrClass::Overloaded,
        // A reset instead of an answer.
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => OpenErrClass::Refused,
        _ => OpenErrClass::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Mutex;

    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_the_preferred_one_begins() {
        let order = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "192.0.2.1:1", "192.0.2.2:1"]);
        let turns = addresses(&["[::1]:1", "192.0.2.1:1", "[::2]:1", "192.0.2.2:1", "[::3]:1"]);
        assert_eq!(interleave(order), turns);
        assert!(interleave(Vec::new()).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_delays_the_next_by_a_quarter_of_a_second() {
        let begun = Instant::now();
        let (silent, quick) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:1".parse().unwrap());
        let connected = race([silent, quick].into(), |address| async move {
            if address == silent { pending().await } else { Ok(address) }
        });
        assert_eq!(connected.await.unwrap(), quick);
        assert_eq!(begun.elapsed(), ATTEMPT_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_starts_the_next_at_once_and_the_most_telling_one_is_kept() {
        let begun = Instant::now();
        let tried = Mutex::new(Vec::new());
        let result: io::Result<()> = race(addresses(&["192.0.2.1:1", "192.0.2.2:1"]).into(), |address| {
            let mut tried = tried.lock().unwrap();
            tried.push(address);
            let kind = if tried.len() == 1 {
                io::ErrorKind::ConnectionRefused
            } else {
                io::ErrorKind::NetworkUnreachable
            };
            async move { Err(kind.into()) }
        })
        .await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(tried.into_inner().unwrap().len(), 2);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn f6_a_client_without_descriptors_is_overloaded_and_tries_no_further() {
        let tried = Mutex::new(0);
        let result: io::Result<()> = race(addresses(&["192.0.2.1:1", "192.0.2.2:1"]).into(), |_| {
            *tried.lock().unwrap() += 1;
            async { Err(io::Error::from_raw_os_error(libc::EMFILE)) }
        })
        .await;
        assert_eq!(class_of(&result.unwrap_err()), OpenErrClass::Overloaded);
        assert_eq!(tried.into_inner().unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn f6_an_attempt_under_way_may_still_answer_when_there_is_no_descriptor_for_another() {
        let [first, second, third]: [SocketAddr; 3] =
            addresses(&["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"]).try_into().unwrap();
        let connected = race([first, second, third].into(), |address| async move {
            assert_ne!(address, third);
            if address == second {
                return Err(io::Error::from_raw_os_error(libc::EMFILE));
            }
            tokio::time::sleep(4 * ATTEMPT_DELAY).await;
            Ok(address)
        });
        assert_eq!(connected.await.unwrap(), first);
    }

    #[test]
    fn a_client_without_ports_or_descriptors_is_overloaded_and_the_target_is_not_blamed() {
        let in_use = || io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        let class = |address: &str| class_of(&no_port_is_free(in_use(), address.parse().unwrap()));
        assert_eq!(class("192.0.2.1:80"), OpenErrClass::Overloaded);
        assert_eq!(class("[2001:db8::1]:80"), OpenErrClass::NetworkUnreachable, "there may be no IPv6");
        let lookup = |code| class_of_lookup(&io::Error::from_raw_os_error(code));
        assert_eq!(lookup(libc::EMFILE), OpenErrClass::Overloaded);
        assert_eq!(lookup(libc::ENOENT), OpenErrClass::Unresolved);
    }

    #[test]
    fn a_family_that_the_kernel_lacks_is_no_way_and_a_host_that_is_down_cannot_be_reached() {
        let class = |code| class_of(&io::Error::from_raw_os_error(code));
        for code in [libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT, libc::ENETUNREACH, libc::ENETDOWN] {
            assert_eq!(class(code), OpenErrClass::NetworkUnreachable, "{code}");
        }
        assert_eq!(class(libc::EHOSTUNREACH), OpenErrClass::HostUnreachable);
        #[cfg(unix)]
        assert_eq!(class(libc::EHOSTDOWN), OpenErrClass::HostUnreachable);
    }

    #[tokio::test]
    async fn a_closed_port_of_this_host_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = connect(vec![address], Reserve::NONE).await.unwrap_err();
        assert_eq!(class_of(&error), OpenErrClass::Refused);
    }

    #[tokio::test]
    async fn no_address_is_a_failure_not_a_wait() {
        assert!(connect(Vec::new(), Reserve::NONE).await.is_err());
    }
}
