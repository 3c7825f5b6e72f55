use std::io;
#[cfg(unix)]
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Socket, Type};

use crate::race::is_out_of_descriptors;

/// Descriptors that are not for targets: tunnels, gateways' names and the health check find one, whatever users do.
///
/// Nobody counts them. The system gives the lowest number that is free (POSIX), so a new one tells how many are taken.
/// Elsewhere than on Unix there is no such limit, and nothing is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reserve {
    /// How many descriptors of the process may be open when one is taken for a target.
    most: usize,
}

impl Reserve {
    pub(crate) const NONE: Self = Self { most: usize::MAX };

    pub(crate) const fn beyond(most: usize) -> Self {
        Self { most }
    }

    /// Whether a target may have this `socket`, which is new.
    ///
    /// # Errors
    ///
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if it is of the reserve.
    #[cfg(unix)]
    pub(crate) fn check(self, socket: &impl AsRawFd) -> io::Result<()> {
        self.allow(socket.as_raw_fd())
    }

    #[cfg(not(unix))]
    pub(crate) fn check<S>(self, _socket: &S) -> io::Result<()> {
        Ok(())
    }

    /// Whether a target may have a socket, for what takes some of its own.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check), and the system's if there is none at all.
    pub(crate) fn probe(self) -> io::Result<()> {
        self.judge(Socket::new(Domain::IPV4, Type::DGRAM, None))
    }

    /// A socket that is refused for another reason, as where a process may have none of its family, says nothing about others.
    pub(crate) fn judge(self, probed: io::Result<Socket>) -> io::Result<()> {
        match probed {
            Ok(socket) => self.check(&socket),
            Err(error) if is_out_of_descriptors(&error) => Err(error),
            Err(_) => Ok(()),
        }
    }

    #[cfg(unix)]
    fn allow(self, number: RawFd) -> io::Result<()> {
        if usize::try_from(number).is_ok_and(|taken| taken < self.most) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "as many descriptors are open as targets may have"))
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_the_reserve_is_one_that_is_given_when_as_many_as_targets_may_have_are_taken() {
        let reserve = Reserve::beyond(832);
        reserve.allow(831).unwrap();
        assert_eq!(reserve.allow(832).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        Reserve::NONE.allow(RawFd::MAX).unwrap();
    }

    #[test]
    fn a_probe_that_may_have_no_socket_of_its_family_is_not_short_of_descriptors() {
        let judge = |code| Reserve::NONE.judge(Err(io::Error::from_raw_os_error(code)));
        judge(libc::EAFNOSUPPORT).unwrap();
        assert_eq!(judge(libc::EMFILE).unwrap_err().raw_os_error(), Some(libc::EMFILE));
    }
}
