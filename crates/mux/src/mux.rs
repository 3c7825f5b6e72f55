use std::time::{Duration, Instant};

use anyproxy_frame::*;
use bytes::Bytes;

use crate::{Client, Config, Event, Gateway, OpenError, PeerError, Side};

/// One end of a tunnel. (skeleton)
#[derive(Debug)]
pub struct Mux<S: Side> { side: S }

#[allow(unused_variables, missing_docs)]
impl<S: Side> Mux<S> {
    pub fn new(config: Config, now: Instant) -> Self { unimplemented!() }
    pub fn send(&mut self, id: StreamId, data: Bytes) {}
    pub fn send_datagram(&mut self, id: StreamId, data: Bytes) -> bool { false }
    pub fn finish(&mut self, id: StreamId) {}
    pub fn reset(&mut self, id: StreamId, code: ResetCode) {}
    pub fn consumed(&mut self, id: StreamId, bytes: u32) {}
    pub fn grow_window(&mut self, id: StreamId, to: u32) {}
    pub fn set_pressure(&mut self, on: bool) {}
    pub fn go_away(&mut self, code: GoAwayCode, reason: &str) {}
    pub fn handle_frame(&mut self, now: Instant, frame: S::In) -> Result<(), PeerError> { Ok(()) }
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), PeerError> { Ok(()) }
    pub fn fail(&mut self, error: &PeerError) {}
    pub fn poll_transmit(&mut self, now: Instant) -> Option<S::Out> { None }
    pub fn poll_event(&mut self) -> Option<Event<S::PeerHello>> { None }
    pub fn poll_timeout(&self) -> Option<Instant> { None }
    pub fn streams(&self) -> usize { 0 }
    pub fn unanswered(&self) -> usize { 0 }
    pub fn rtt(&self) -> Option<Duration> { None }
    pub fn unsent(&self) -> u64 { 0 }
    pub fn held(&self) -> u64 { 0 }
    pub fn dropped_datagrams(&self) -> u64 { 0 }
    pub fn is_ready(&self) -> bool { false }
    pub fn is_going_away(&self) -> bool { false }
    pub fn is_drained(&self) -> bool { false }
}
#[allow(unused_variables, missing_docs)]
impl Mux<Gateway> {
    pub fn hello(&mut self, hello: GatewayHello) -> Result<(), FieldTooLong> { Ok(()) }
    pub fn open(&mut self, now: Instant, open: Open) -> Result<StreamId, OpenError> { unimplemented!() }
    pub fn send_rules(&mut self, version: u32, rules: Bytes) {}
}
#[allow(unused_variables, missing_docs)]
impl Mux<Client> {
    pub fn hello(&mut self, hello: ClientHello) -> Result<(), FieldTooLong> { Ok(()) }
    pub fn accept(&mut self, id: StreamId, ok: OpenOk) {}
    pub fn refuse(&mut self, id: StreamId, err: OpenErr) {}
}
