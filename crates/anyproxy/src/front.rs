//! The fronts of a file, each with its settings, on its listener.

use std::sync::Arc;

use anyproxy_front::{Listener, RelayConfig};
use anyproxy_http::HttpProxy;
use anyproxy_sni::Sni;
use anyproxy_socks5::{Socks5, UdpConfig, UdpDrops};
use tokio_util::sync::CancellationToken;

use crate::mixed::Mixed;
use crate::settings::{Front, Protocol};
use crate::stack::Gateway;

/// A front between its settings and its listener.
pub(crate) enum Served {
    Http(HttpProxy<Gateway>),
    Socks5(Socks5<Gateway>),
    Mixed(Mixed<Gateway>),
    Sni(Sni<Gateway>),
}

impl Served {
    /// The front as its settings want it, with no more UDP associations than there may be.
    pub(crate) fn new(front: &Front, relay: RelayConfig, associations: usize, stack: Gateway) -> Self {
        let socks5 = |stack| socks5(front, relay, associations, stack);
        match front.protocol {
            Protocol::Http => Self::Http(http(front, relay, stack)),
            Protocol::Socks5 => Self::Socks5(socks5(stack)),
            Protocol::Mixed => {
                let (http, socks5) = (http(front, relay, stack.clone()), socks5(stack));
                Self::Mixed(Mixed::new(http, socks5, front.handshake_timeout))
            }
            Protocol::Sni => Self::Sni(sni(front, relay, stack)),
        }
    }

    /// The datagrams it drops, by reason, where it carries any.
    pub(crate) fn udp_drops(&self) -> Option<Arc<UdpDrops>> {
        match self {
            Self::Http(_) | Self::Sni(_) => None,
            Self::Socks5(socks5) => Some(socks5.udp_drops()),
            Self::Mixed(mixed) => Some(mixed.udp_drops()),
        }
    }

    /// Serves until `stop`, and the living users until they end.
    pub(crate) async fn serve(self, listener: Listener, stop: CancellationToken) {
        match self {
            Self::Http(http) => http.serve(listener, stop).await,
            Self::Socks5(socks5) => socks5.serve(listener, stop).await,
            Self::Mixed(mixed) => mixed.serve(listener, stop).await,
            Self::Sni(sni) => sni.serve(listener, stop).await,
        }
    }
}

fn http(front: &Front, relay: RelayConfig, stack: Gateway) -> HttpProxy<Gateway> {
    let mut config = anyproxy_http::Config::default();
    config.head_timeout = front.handshake_timeout;
    config.keep_alive_timeout = front.keep_alive_timeout;
    config.idle_timeout = relay.idle_timeout;
    config.relay = relay;
    HttpProxy::new(stack).with_config(config)
}

fn socks5(front: &Front, relay: RelayConfig, associations: usize, stack: Gateway) -> Socks5<Gateway> {
    let usual = UdpConfig::default();
    Socks5::new(stack).with_handshake_timeout(front.handshake_timeout).with_relay(relay).with_udp(UdpConfig {
        enabled: front.udp.enabled,
        advertise_addr: front.udp.advertise_addr,
        idle_timeout: front.udp.idle_timeout,
        max_associations: usual.max_associations.min(associations),
        ..usual
    })
}

fn sni(front: &Front, relay: RelayConfig, stack: Gateway) -> Sni<Gateway> {
    let passthrough = front.passthrough.clone();
    Sni::new(stack, move |target| passthrough.serves(target))
        .with_port(front.passthrough.port)
        .with_handshake_timeout(front.handshake_timeout)
        .with_relay(relay)
}
