//! The fronts of a file, each with its settings, on its listener.

use anyproxy_core::BoxGateway;
use anyproxy_front::{Listener, RelayConfig};
use anyproxy_http::HttpProxy;
use anyproxy_socks5::{Socks5, UdpConfig};
use tokio_util::sync::CancellationToken;

use crate::mixed::Mixed;
use crate::settings::{Front, Protocol};

/// Serves one front until `stop`, and its living users until they end.
pub(crate) async fn serve(
    front: Front,
    relay: RelayConfig,
    stack: BoxGateway,
    listener: Listener,
    stop: CancellationToken,
) {
    match front.protocol {
        Protocol::Http => http(&front, relay, stack).serve(listener, stop).await,
        Protocol::Socks5 => socks5(&front, relay, stack).serve(listener, stop).await,
        Protocol::Mixed => {
            let (http, socks5) = (http(&front, relay, stack.clone()), socks5(&front, relay, stack));
            Mixed::new(http, socks5, front.handshake_timeout).serve(listener, stop).await;
        }
    }
}

fn http(front: &Front, relay: RelayConfig, stack: BoxGateway) -> HttpProxy<BoxGateway> {
    HttpProxy::new(stack).with_config(anyproxy_http::Config {
        head_timeout: front.handshake_timeout,
        keep_alive_timeout: front.keep_alive_timeout,
        idle_timeout: relay.idle_timeout,
        relay,
        ..anyproxy_http::Config::default()
    })
}

fn socks5(front: &Front, relay: RelayConfig, stack: BoxGateway) -> Socks5<BoxGateway> {
    Socks5::new(stack).with_handshake_timeout(front.handshake_timeout).with_relay(relay).with_udp(UdpConfig {
        enabled: front.udp.enabled,
        advertise_addr: front.udp.advertise_addr,
        idle_timeout: front.udp.idle_timeout,
        ..UdpConfig::default()
    })
}
