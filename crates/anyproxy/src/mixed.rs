//! HTTP and SOCKS5 on one port: the first byte tells them apart.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_core::GatewayStack;
use anyproxy_front::{Listener, Rewind, UserStream};
use anyproxy_http::HttpProxy;
use anyproxy_socks5::{Socks5, UdpDrops};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// What every SOCKS5 greeting begins with (RFC 1928 section 3), and no HTTP request.
const SOCKS5: u8 = 5;

/// Two fronts behind one listener.
pub(crate) struct Mixed<M> {
    http: HttpProxy<M>,
    socks5: Socks5<M>,
    handshake_timeout: Duration,
}

impl<M: GatewayStack> Mixed<M> {
    /// Users who have not sent their first byte after `handshake_timeout` are let go.
    pub(crate) const fn new(http: HttpProxy<M>, socks5: Socks5<M>, handshake_timeout: Duration) -> Self {
        Self { http, socks5, handshake_timeout }
    }

    /// The datagrams it drops, by reason.
    pub(crate) fn udp_drops(&self) -> Arc<UdpDrops> {
        self.socks5.udp_drops()
    }

    /// Serves until `stop`, and the living until they end.
    pub(crate) async fn serve(self, listener: Listener, stop: CancellationToken) {
        let front = Arc::new(self);
        let serving = stop.clone();
        listener
            .serve(stop, move |user, source| {
                let (front, stop) = (front.clone(), serving.clone());
                async move { front.serve_connection(user, source, stop).await }
            })
            .await;
    }

    async fn serve_connection(&self, user: UserStream, source: SocketAddr, stop: CancellationToken) {
        let first = stop.run_until_cancelled(timeout(self.handshake_timeout, Rewind::peek(user))).await;
        let Some(Ok(Ok((first, user)))) = first else { return };
        if first == SOCKS5 {
            self.socks5.serve_connection(user, source).await;
        } else {
            self.http.serve_connection(user, source, &stop).await;
        }
    }
}
