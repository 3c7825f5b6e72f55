use std::fmt::Debug;

use anyproxy_frame::{ClientHello, Frame, GatewayHello, ToClient, ToGateway};

/// An end of a tunnel: [`Gateway`] or [`Client`].
pub trait Side: Debug + Default + Send + sealed::Sealed + 'static {
    /// What this end receives.
    type In: Frame + Send;
    /// What this end sends.
    type Out: Frame + Send;
    /// The hello of the other end.
    type PeerHello: Clone + Debug + PartialEq + Eq + Send;
}

/// The end that opens streams.
#[derive(Debug, Default)]
pub struct Gateway;

/// The end that is asked to dial.
#[derive(Debug, Default)]
pub struct Client;

impl Side for Gateway { type In = ToGateway; type Out = ToClient; type PeerHello = ClientHello; }
impl Side for Client { type In = ToClient; type Out = ToGateway; type PeerHello = GatewayHello; }

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Gateway {}
    impl Sealed for super::Client {}
}
