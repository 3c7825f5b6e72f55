//! HTTP and SOCKS5 on one port: the first byte tells them apart.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_core::GatewayStack;
use anyproxy_front::{Connection, Listener, Rewind};
use anyproxy_http::HttpProxy;
use anyproxy_socks5::{Socks5, UdpDrops};
use tokio::time::{Instant, timeout};
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
    /// Users who have not sent their first byte after `handshake_timeout` are let go; those of SOCKS5 have what is left of
    /// it for the rest of their handshake.
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

    async fn serve_connection<U: Connection>(&self, user: U, source: SocketAddr, stop: CancellationToken) {
        let since = Instant::now();
        let first = stop.run_until_cancelled(timeout(self.handshake_timeout, Rewind::peek(user))).await;
        let Some(Ok(Ok((first, user)))) = first else { return };
        if first == SOCKS5 {
            let left = self.handshake_timeout.saturating_sub(since.elapsed());
            // Ends with its line: a relay that lasts for hours does not keep another front.
            let served =
                self.socks5.clone().with_handshake_timeout(left).serve_connection(user, source, &stop);
            served.await;
        } else {
            self.http.serve_connection(user, source, &stop).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use anyproxy_core::{BoxError, BoxStream, Dial, Login};
    use tokio::io::{AsyncWriteExt as _, duplex};
    use tokio::time::sleep;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn s9_what_the_first_byte_took_is_not_given_to_the_handshake_again() {
        let stack = tower::service_fn(|_: Login| async {
            let dials = |_: Dial| async { Err::<BoxStream, BoxError>("nobody dials".into()) };
            Ok::<_, BoxError>(tower::service_fn(dials))
        });
        let socks5 = Socks5::new(stack).with_handshake_timeout(LIMIT);
        let mixed = Mixed::new(HttpProxy::new(stack), socks5, LIMIT);
        let (mut user, here) = duplex(64);
        let since = Instant::now();
        let says = async {
            sleep(LIMIT * 9 / 10).await;
            user.write_all(&[SOCKS5]).await.unwrap();
        };
        let source = "192.0.2.1:4000".parse().unwrap();
        tokio::join!(mixed.serve_connection(here, source, CancellationToken::new()), says);
        assert_eq!(since.elapsed().as_secs(), LIMIT.as_secs());
    }
}
