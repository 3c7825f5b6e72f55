use std::future::Future;
use std::time::Duration;

use anyproxy_core::StreamRef;
use anyproxy_mux::frame::{ClientHello, GatewayHello, GoAway, Open, OpenErr, OpenOk};
use bytes::Bytes;

use crate::{Carrier, CloseReason, Config, Driver, Stream, TunnelError};

/// Introduces a client to the gateway at the other end of `carrier`, and waits for its hello. (skeleton)
///
/// # Errors
///
/// If the carrier fails, the gateway refuses, or says something else or nothing in time.
pub async fn connect<C: Carrier>(
    _carrier: C,
    _hello: ClientHello,
    _config: Config,
) -> Result<(ClientTunnel, Requests, GatewayHello, Driver), TunnelError> {
    unimplemented!()
}

/// A handle to one tunnel at the client.
#[derive(Clone, Debug)]
pub struct ClientTunnel {}

impl ClientTunnel {
    /// Takes no more opens, and tells the gateway; living streams go on, and with the last of them the tunnel ends.
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

    /// The number the gateway gave the tunnel in its hello.
    pub fn session(&self) -> u64 {
        unimplemented!()
    }

    /// The time of the latest ping and its answer.
    pub fn rtt(&self) -> Option<Duration> {
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

    /// Whether something waits to be sent, and nothing has left for some seconds.
    pub fn is_stalled(&self) -> bool {
        unimplemented!()
    }
}

/// What the gateway wants, in the order it came. When it is dropped the tunnel drains.
#[derive(Debug)]
pub struct Requests {}

impl Requests {
    /// The next wish; `None` when the tunnel has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Request> {
        unimplemented!()
    }
}

/// Something the gateway wants of the client.
#[derive(Debug)]
#[non_exhaustive]
pub enum Request {
    /// A stream to a target.
    Open(OpenRequest),
    /// That these rules hold from now on.
    Rules {
        /// Their version, which opens refer to.
        version: u32,
        /// The rules, encoded as gateway and client agree.
        rules: Bytes,
    },
    /// That a tunnel be opened elsewhere: no more opens will come on this one. The living may finish.
    GoAway(GoAway),
}

/// An open that waits for its answer. Dropped without one it is refused as an internal failure.
#[derive(Debug)]
pub struct OpenRequest {}

impl OpenRequest {
    /// What the gateway wants.
    pub fn open(&self) -> &Open {
        unimplemented!()
    }

    /// The stream's name in the logs of both ends.
    pub fn stream_ref(&self) -> StreamRef {
        unimplemented!()
    }

    /// Says that the target was reached. Both ways are open from here.
    pub fn accept(self, _ok: OpenOk) -> Stream {
        unimplemented!()
    }

    /// Says that the target was not reached.
    pub fn refuse(self, _why: OpenErr) {
        unimplemented!()
    }

    /// Waits until nobody wants the stream any more: the gateway took the open back, or the tunnel is lost. A dial
    /// under way should be given up then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn cancelled(&mut self) {
        unimplemented!()
    }
}
