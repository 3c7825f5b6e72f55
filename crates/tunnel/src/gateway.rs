use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyproxy_core::{Pulse, StreamRef};
use anyproxy_mux::frame::{
    ClientHello, FieldTooLong, GatewayHello, GoAwayCode, Network, Open, OpenOk, StreamFrame, StreamId,
    ToClient, ToGateway,
};
use anyproxy_mux::{Event, Gateway, Mux};
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::cell::Cell;
use crate::driver::{Core, End};
use crate::link::{Link, now};
use crate::shared::{Desk, Shared};
use crate::{Carrier, CloseReason, Config, Driver, OpenError, Stream, TunnelError};

/// Waits for the hello of a client that has just connected.
///
/// # Errors
///
/// If the carrier fails, or the peer says something else or nothing within
/// [`hello_timeout`](anyproxy_mux::Config::hello_timeout). It has been told then, as far as it listens.
///
/// # Cancel safety
///
/// Dropping the future cuts the connection.
pub async fn accept<C: Carrier>(carrier: C, config: Config) -> Result<Accepting<C>, TunnelError> {
    let config = config.in_range();
    let mut link = Link::new(carrier, &config);
    match link.greet().await {
        Ok(hello) => Ok(Accepting { hello, link, config }),
        Err(error) => Err(link.give_up(error, config.close_timeout).await),
    }
}

/// A client that has said hello and waits for the verdict. Dropping it cuts the connection.
pub struct Accepting<C> {
    hello: Box<ClientHello>,
    link: Link<Gateway, C>,
    config: Config,
}

impl<C: Carrier> Accepting<C> {
    /// What the client said.
    pub fn hello(&self) -> &ClientHello {
        &self.hello
    }

    /// Turns the client away, and ends the carrier with the close code that goes with `code`. Takes no longer than
    /// the configuration's `close_timeout`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cuts the connection, with or without a word.
    pub async fn refuse(mut self, code: GoAwayCode, reason: &str) {
        self.link.mux.go_away(code, reason);
        self.link.say_goodbye(self.config.close_timeout, code.close_code(), reason).await;
    }

    /// Takes the client in. Nothing moves before the driver is spawned.
    ///
    /// # Errors
    ///
    /// If the hello does not fit the wire.
    pub fn finish(mut self, hello: GatewayHello) -> Result<(Tunnel, Driver), FieldTooLong> {
        let session = hello.session;
        self.link.mux.hello(hello)?;
        let shared = Shared::new(session, &self.config, now());
        let desk = Desk::new(shared);
        let driver = Driver::new(self.link, desk.clone(), Waiting::default(), &self.config);
        let max_unanswered = self.config.mux.max_unanswered;
        Ok((Tunnel(Arc::new(Handle { desk, max_unanswered })), driver))
    }
}

impl<C> fmt::Debug for Accepting<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepting").field("hello", &self.hello).finish_non_exhaustive()
    }
}

// === Tunnel ===

/// A handle to one tunnel at the gateway. When the last clone is dropped the tunnel drains.
#[derive(Clone, Debug)]
pub struct Tunnel(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    desk: Arc<Desk<Command>>,
    max_unanswered: u32,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.desk.drain(GoAwayCode::Shutdown, "draining");
    }
}

/// What a gateway's handles ask of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Open { open: Box<Open>, cell: Arc<Cell>, answer: Answer },
    Rules { version: u32, rules: Bytes },
}

type Answer = oneshot::Sender<Result<OpenOk, OpenError>>;

impl Tunnel {
    /// Asks the client for a stream. The future is its own: it borrows nothing, and the open is on its way before it
    /// is first polled.
    ///
    /// # Errors
    ///
    /// Why there is no stream; [`OpenError::is_retryable`] says whether another tunnel may be asked.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes the open back: the client sees a reset, and cancels its dial.
    pub fn open(&self, open: Open) -> Opening {
        let datagrams = matches!(open.network, Network::Udp { .. });
        let cell = Cell::new(datagrams, &self.shared().memory);
        let (answer, answered) = oneshot::channel();
        let command = Command::Open { open: Box::new(open), cell: cell.clone(), answer };
        if let Err(Command::Open { answer, .. }) = self.0.desk.push(command, self.0.max_unanswered as usize) {
            let full = (!self.shared().is_closed())
                .then_some(anyproxy_mux::OpenError::TooManyUnanswered(self.0.max_unanswered));
            let _ = answer.send(Err(OpenError::NotSent(full)));
        }
        // Dropped with the future it resets the stream, as it would later.
        let stream = Stream::new(cell, self.shared().clone(), datagrams);
        Opening { stream: Some(stream), answered }
    }

    /// The number the gateway gave the tunnel in its hello.
    pub fn session(&self) -> u64 {
        self.shared().session
    }

    /// Streams now, unanswered opens among them, as the driver last saw them.
    pub fn streams(&self) -> usize {
        self.shared().gauges.streams.load(Ordering::Relaxed)
    }

    /// Bytes that were taken from writers and have not left, as the driver last saw them.
    pub fn unsent(&self) -> usize {
        self.shared().gauges.unsent.load(Ordering::Relaxed)
    }

    /// Bytes that were received and not yet read, as the driver last saw them.
    pub fn held(&self) -> usize {
        self.shared().gauges.held.load(Ordering::Relaxed)
    }

    /// The time between the latest ping and its answer.
    pub fn rtt(&self) -> Option<Duration> {
        self.shared().gauges.rtt()
    }

    /// Whether more waits to be sent than the carrier takes, and for three seconds it has taken nothing and the peer said
    /// nothing.
    pub fn is_stalled(&self) -> bool {
        self.shared().gauges.is_stalled(now())
    }

    /// Whether an open would be sent: the tunnel lives, and no side is going away.
    pub fn accepts_opens(&self) -> bool {
        self.shared().accepts_opens()
    }

    /// Whether it accepts opens and is not stalled.
    pub fn is_healthy(&self) -> bool {
        self.shared().is_healthy()
    }

    /// The same, for those who must not keep the tunnel from draining.
    pub fn pulse(&self) -> Arc<dyn Pulse> {
        self.shared().clone()
    }

    /// Datagrams dropped in either direction, because they found no room. Those that a stream did not take are its
    /// writer's to count.
    pub fn dropped_datagrams(&self) -> u64 {
        self.shared().gauges.dropped_datagrams.load(Ordering::Relaxed)
    }

    /// Sends the client a version of the gateway's rules; opens made later may refer to it.
    pub fn send_rules(&self, version: u32, rules: Bytes) {
        // Not to be dropped for a queue full of opens: those may refer to them.
        let _ = self.0.desk.push(Command::Rules { version, rules }, usize::MAX);
    }

    /// Opens no more, and tells the client; living streams go on, and with the last of them the tunnel ends.
    pub fn drain(&self) {
        self.0.desk.drain(GoAwayCode::Shutdown, "draining");
    }

    /// The same because another tunnel serves in its place: the client is told not to come back in a hurry.
    pub fn replace(&self) {
        self.0.desk.drain(GoAwayCode::Replaced, "another process with this client id took over");
    }

    /// The same because the client may not have it after all.
    pub fn refuse(&self) {
        self.0.desk.drain(GoAwayCode::Refused, "this client may not have this tunnel");
    }

    /// Ends the tunnel and all its streams now.
    pub fn close(&self) {
        self.0.desk.close();
    }

    /// Waits for the end of the tunnel.
    pub fn closed(&self) -> impl Future<Output = CloseReason> + Send + 'static + use<> {
        self.shared().closed()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.desk.shared
    }
}

// === Opening ===

/// A stream asked for; see [`Tunnel::open`].
#[derive(Debug)]
pub struct Opening {
    /// Until it is handed out, or is known not to have been asked for.
    stream: Option<Stream>,
    answered: oneshot::Receiver<Result<OpenOk, OpenError>>,
}

impl Opening {
    /// The name the stream has in the logs of both ends, once it has one: while it is waited for, and after an answer
    /// that is no stream.
    pub fn stream_ref(&self) -> Option<StreamRef> {
        self.stream.as_ref().map(Stream::stream_ref).filter(|stream| stream.number > 0)
    }
}

impl Future for Opening {
    type Output = Result<(Stream, OpenOk), OpenError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answered).poll(cx)).unwrap_or(Err(OpenError::Lost));
        Poll::Ready(match answer {
            Ok(ok) => Ok((self.stream.take().expect("polled after its end"), ok)),
            Err(error) => {
                if matches!(error, OpenError::NotSent(_)) {
                    self.stream = None;
                }
                Err(error)
            }
        })
    }
}

// === impl End ===

/// The opens without an answer, and whether each has left.
pub(crate) type Waiting = HashMap<StreamId, (Answer, bool)>;

impl End for Gateway {
    type Command = Command;
    type Local = Waiting;

    fn serve(core: &mut Core<Self>, mux: &mut Mux<Self>, command: Command) {
        match command {
            // Taken back before anybody heard of it.
            Command::Open { answer, .. } if answer.is_closed() => {}
            Command::Open { open, cell, answer } => match mux.open(*open) {
                Ok(id) => {
                    cell.set_id(id);
                    core.cells.insert(id, cell);
                    core.local.insert(id, (answer, false));
                }
                Err(error) => {
                    cell.close();
                    let _ = answer.send(Err(OpenError::NotSent(Some(error))));
                }
            },
            Command::Rules { version, rules } => mux.send_rules(version, rules),
        }
    }

    fn act(core: &mut Core<Self>, _mux: &mut Mux<Self>, event: Event<ClientHello>) {
        if let Event::Answered { id, answer } = event
            && let Some((waiting, _)) = core.local.remove(&id)
        {
            // If nobody waits any more, the stream was dropped and rings for its reset.
            let _ = waiting.send(answer.map_err(OpenError::refused));
        }
    }

    fn leaves(local: &mut Waiting, frame: &ToClient) {
        if let ToClient::Open(id, _) = frame
            && let Some((_, left)) = local.get_mut(id)
        {
            *left = true;
        }
    }

    fn received(frame: &ToGateway) -> Option<(StreamId, &StreamFrame)> {
        match frame {
            ToGateway::Stream(id, frame) => Some((*id, frame)),
            _ => None,
        }
    }

    fn sent(frame: &ToClient) -> Option<(StreamId, &StreamFrame)> {
        match frame {
            ToClient::Stream(id, frame) => Some((*id, frame)),
            _ => None,
        }
    }

    fn over(local: &mut Waiting, id: StreamId) {
        local.remove(&id);
    }

    fn lost(core: &mut Core<Self>, commands: Vec<Command>) {
        for (_, (waiting, left)) in core.local.drain() {
            let _ = waiting.send(Err(if left { OpenError::Lost } else { OpenError::NotSent(None) }));
        }
        for command in commands {
            if let Command::Open { cell, answer, .. } = command {
                cell.close();
                let _ = answer.send(Err(OpenError::NotSent(None)));
            }
        }
    }
}
