use std::fmt::Debug;

use anyproxy_frame::{ClientHello, Frame, GatewayHello, ToClient, ToGateway};

use crate::{client::Client, gateway::Gateway};

/// An end of a tunnel: [`Gateway`] or [`Client`].
pub trait Side: Debug + Default + Send + sealed::Protocol + 'static {
    /// What this end receives.
    type In: Frame + Send;
    /// What this end sends.
    type Out: Frame + Send;
    /// The hello of the other end.
    type PeerHello: Clone + Debug + PartialEq + Eq + Send;
}

impl Side for Gateway {
    type In = ToGateway;
    type Out = ToClient;
    type PeerHello = ClientHello;
}

impl Side for Client {
    type In = ToClient;
    type Out = ToGateway;
    type PeerHello = GatewayHello;
}

pub(crate) mod sealed {
    use std::time::Instant;

    use anyproxy_frame::StreamId;

    use crate::{Mux, PeerError, Side};

    /// What an end does that the other does not.
    pub trait Protocol: Sized {
        /// Whether this end is the one that opens.
        const OPENS: bool;

        /// Acts on a frame of the peer.
        fn handle(mux: &mut Mux<Self>, now: Instant, frame: Self::In) -> Result<(), PeerError>
        where
            Self: Side;

        /// Whether a number belongs to a stream that lives or lived.
        fn was_opened(&self, id: StreamId) -> bool;

        /// The last open that this end honours.
        fn last_open(&mut self) -> u32;

        /// The peer reset a stream whose open has no answer.
        fn reset_unanswered(mux: &mut Mux<Self>, now: Instant, id: StreamId) -> Result<(), PeerError>
        where
            Self: Side;

        /// The next open to send.
        fn poll_open(mux: &mut Mux<Self>) -> Option<Self::Out>
        where
            Self: Side;

        /// The next part of rules to send.
        fn poll_rules(&mut self) -> Option<Self::Out>
        where
            Self: Side;

        /// Forgets what waits to be sent.
        fn clear(&mut self);

        /// Whether nothing waits to be sent, or to come.
        fn is_idle(&self) -> bool;
    }
}
