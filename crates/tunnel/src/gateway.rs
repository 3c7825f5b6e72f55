use std::future::Future;
use std::time::Duration;

use anyproxy_mux::frame::{ClientHello, FieldTooLong, GatewayHello, GoAwayCode, Open, OpenOk};
use bytes::Bytes;

use crate::{Carrier, CloseReason, Config, Driver, OpenError, Stream, TunnelError};

/// Waits for the hello of a client that has just connected. (skeleton)
///
/// # Errors
///
/// If the carrier fails, or the peer says something else or nothing in time.
pub async fn accept<C: Carrier>(_carrier: C, _config: Config) -> Result<Accepting<C>, TunnelError> {
    unimplemented!()
}

/// A client that has said hello and waits for the verdict. Dropping it cuts the connection.
#[derive(Debug)]
pub struct Accepting<C> {
    _carrier: C,
}

impl<C: Carrier> Accepting<C> {
    /// What the client said.
    pub fn hello(&self) -> &ClientHello {
        unimplemented!()
    }

    /// Turns the client away, and ends the carrier with the close code that goes with `code`.
    pub async fn refuse(self, _code: GoAwayCode, _reason: &str) {
        unimplemented!()
    }

    /// Takes the client in. Nothing moves before the driver is spawned.
    ///
    /// # Errors
    ///
    /// If the hello does not fit the wire.
    pub fn finish(self, _hello: GatewayHello) -> Result<(Tunnel, Driver), FieldTooLong> {
        unimplemented!()
    }
}

/// A handle to one tunnel at the gateway. When the last clone is dropped the tunnel drains.
#[derive(Clone, Debug)]
pub struct Tunnel {}

impl Tunnel {
    /// Asks the client for a stream.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes the open back: the client sees a reset, and cancels its dial.
    pub fn open(
        &self,
        _open: Open,
    ) -> impl Future<Output = Result<(Stream, OpenOk), OpenError>> + Send + 'static + use<> {
        async { unimplemented!() }
    }

    /// The number the gateway gave the tunnel in its hello.
    pub fn session(&self) -> u64 {
        unimplemented!()
    }

    /// Streams now, unanswered opens among them.
    pub fn streams(&self) -> usize {
        unimplemented!()
    }

    /// Bytes that were taken from writers and have not left.
    pub fn unsent(&self) -> usize {
        unimplemented!()
    }

    /// The time of the latest ping and its answer.
    pub fn rtt(&self) -> Option<Duration> {
        unimplemented!()
    }

    /// Whether something waits to be sent, and nothing has left for some seconds.
    pub fn is_stalled(&self) -> bool {
        unimplemented!()
    }

    /// Whether an open would be sent: the tunnel lives, and no side is going away.
    pub fn accepts_opens(&self) -> bool {
        unimplemented!()
    }

    /// Sends the client a version of the gateway's rules; opens made later may refer to it.
    pub fn send_rules(&self, _version: u32, _rules: Bytes) {
        unimplemented!()
    }

    /// Opens no more, and tells the client; living streams go on, and with the last of them the tunnel ends.
    pub fn drain(&self) {
        unimplemented!()
    }

    /// Ends the tunnel and all its streams now.
    pub fn close(&self) {
        unimplemented!()
    }

    /// Waits for the end of the tunnel.
    pub fn closed(&self) -> impl Future<Output = CloseReason> + Send + 'static + use<> {
        async { unimplemented!() }
    }
}
