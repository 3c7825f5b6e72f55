//! Binding what the file says to listen on.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyproxy_config::ListenAddr;
use anyproxy_front::{Listener, Rebind};

use crate::failure::Failure;

/// Binds `address` for the front `name`, and says so.
pub(crate) fn bind(name: &'static str, address: &ListenAddr) -> Result<Listener, Failure> {
    let bound = match address {
        ListenAddr::All(port) => Listener::bind_any(*port),
        ListenAddr::Localhost(port) => Listener::bind_localhost(*port),
        ListenAddr::This(address) => Listener::bind(&[*address]),
    };
    bound.map_err(|error| Failure::of(format_args!("{name} cannot listen on {address}"), error))
}

/// Says where a front listens: the line that scripts wait for.
pub(crate) fn announce(name: &'static str, listener: &Listener) {
    for address in listener.local_addrs().into_iter().flatten() {
        tracing::info!(front = name, %address, "listening");
    }
}

/// Where a listener that runs listens by the file in force, and the way to move it.
pub(crate) struct Place {
    name: &'static str,
    address: Mutex<ListenAddr>,
    rebind: Rebind,
}

impl Place {
    pub(crate) fn new(name: &'static str, address: &ListenAddr, listener: &Listener) -> Self {
        Self { name, address: Mutex::new(address.clone()), rebind: listener.rebind() }
    }

    /// Binds `wanted`, where that is another address: all of a move that may fail. Until the move is made the listener
    /// stays where it is.
    pub(crate) fn bind(&self, wanted: &ListenAddr) -> Result<Option<Move<'_>>, Failure> {
        if *self.address() == *wanted {
            return Ok(None);
        }
        Ok(Some(Move { place: self, to: wanted.clone(), listener: bind(self.name, wanted)? }))
    }

    fn address(&self) -> MutexGuard<'_, ListenAddr> {
        self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listener's move to an address that is bound.
#[must_use = "the listener stays where it is"]
pub(crate) struct Move<'a> {
    place: &'a Place,
    to: ListenAddr,
    listener: Listener,
}

impl Move<'_> {
    pub(crate) fn make(self) {
        let Self { place, to, listener } = self;
        announce(place.name, &listener);
        place.rebind.to(listener);
        *place.address() = to;
    }
}
