//! Binding what the file says to listen on.

use anyproxy_config::ListenAddr;
use anyproxy_front::Listener;

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
