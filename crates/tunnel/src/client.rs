use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anyproxy_core::StreamRef;
use anyproxy_mux::frame::{
    ClientHello, GatewayHello, GoAway, GoAwayCode, Network, Open, OpenErr, OpenErrClass, OpenOk, StreamFrame,
    StreamId, ToClient, ToGateway,
};
use anyproxy_mux::{Client, Event, Mux};
use bytes::Bytes;

use crate::cell::Cell;
use crate::driver::{Core, End};
use crate::link::{Link, now};
use crate::shared::{Desk, Shared};
use crate::{Carrier, CloseReason, Config, Driver, Stream, TunnelError};

/// The versions of a gateway's rules that a client keeps, and as many wait for one that does not ask for them. Older ones
/// are dropped, and opens that refer to them will be refused.
pub const KEPT_RULES: usize = 4;

/// Introduces a client to the gateway at the other end of `carrier`, and waits for its hello.
///
/// # Errors
///
/// If the carrier fails, the gateway refuses, or says something else or nothing within
/// [`hello_timeout`](anyproxy_mux::Config::hello_timeout).
///
/// # Cancel safety
///
/// Dropping the future cuts the connection.
pub async fn connect<C: Carrier>(
    carrier: C,
    hello: ClientHello,
    config: Config,
) -> Result<(ClientTunnel, Requests, GatewayHello, Driver), TunnelError> {
    let config = config.in_range();
    let mut link = Link::<Client, C>::new(carrier, &config);
    link.mux.hello(hello)?;
    let hello = match link.greet().await {
        Ok(hello) => *hello,
        Err(error) => return Err(link.give_up(error, config.close_timeout).await),
    };
    let desk = Desk::new(Shared::new(hello.session, &config, now()));
    let queue = Arc::new(Queue::new(config.mux.max_unanswered as usize));
    let driver = Driver::new(link, desk.clone(), queue.clone(), &config);
    Ok((ClientTunnel(desk.clone()), Requests { queue, desk }, hello, driver))
}

// === ClientTunnel ===

/// A handle to one tunnel at the client.
#[derive(Clone, Debug)]
pub struct ClientTunnel(Arc<Desk<Command>>);

impl ClientTunnel {
    /// Takes no more opens, and tells the gateway; living streams go on, and with the last of them the tunnel ends.
    pub fn drain(&self) {
        self.0.drain(GoAwayCode::Shutdown, "draining");
    }

    /// Ends the tunnel and all its streams now.
    pub fn close(&self) {
        self.0.close();
    }

    /// Waits for the end of the tunnel.
    pub fn closed(&self) -> impl Future<Output = CloseReason> + Send + 'static + use<> {
        self.0.shared.closed()
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.0.shared.is_closed()
    }

    /// The number the gateway gave the tunnel in its hello.
    pub fn session(&self) -> u64 {
        self.0.shared.session
    }

    /// Streams now, unanswered opens among them, as the driver last saw them.
    pub fn streams(&self) -> usize {
        self.0.shared.gauges.streams.load(Ordering::Relaxed)
    }

    /// Bytes that were taken from writers and have not left, as the driver last saw them.
    pub fn unsent(&self) -> usize {
        self.0.shared.gauges.unsent.load(Ordering::Relaxed)
    }

    /// Bytes that were received and not yet read, as the driver last saw them.
    pub fn held(&self) -> usize {
        self.0.shared.gauges.held.load(Ordering::Relaxed)
    }

    /// The time between the latest ping and its answer.
    pub fn rtt(&self) -> Option<Duration> {
        self.0.shared.gauges.rtt()
    }

    /// Whether more is to be sent than the carrier takes at the moment, as the driver last saw it.
    pub fn is_full(&self) -> bool {
        self.0.shared.gauges.is_blocked() && !self.is_stalled()
    }

    /// Whether more waits to be sent than the carrier takes, and for three seconds it has taken nothing and the peer said
    /// nothing.
    pub fn is_stalled(&self) -> bool {
        self.0.shared.gauges.is_stalled(now())
    }

    /// Datagrams dropped in either direction, because they found no room. Those that a stream did not take are its
    /// writer's to count.
    pub fn dropped_datagrams(&self) -> u64 {
        self.0.shared.gauges.dropped_datagrams.load(Ordering::Relaxed)
    }

    /// Opens refused for want of memory, or for a limit on streams. They are no [`Request`]s.
    pub fn refused_opens(&self) -> u64 {
        self.0.shared.gauges.refused_opens.load(Ordering::Relaxed)
    }
}

// === Requests ===

/// What the gateway wants, in the order it came. When it is dropped the tunnel drains.
///
/// At most as many opens wait here as may be without an answer
/// ([`max_unanswered`](anyproxy_mux::Config::max_unanswered)); more are refused.
#[derive(Debug)]
pub struct Requests {
    queue: Arc<Queue>,
    desk: Arc<Desk<Command>>,
}

impl Requests {
    /// The next wish; `None` when the tunnel has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Request> {
        poll_fn(|cx| self.queue.poll_pop(cx)).await
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.desk.drain(GoAwayCode::Shutdown, "draining");
        self.queue.close();
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

/// What waits for [`Requests::next`].
#[derive(Debug)]
pub(crate) struct Queue {
    items: Mutex<Items>,
    max_opens: usize,
}

#[derive(Debug, Default)]
struct Items {
    requests: VecDeque<Request>,
    opens: usize,
    reader: Option<Waker>,
    /// One of the sides is gone.
    closed: bool,
}

impl Queue {
    fn new(max_opens: usize) -> Self {
        Self { items: Mutex::new(Items::default()), max_opens }
    }

    fn lock(&self) -> MutexGuard<'_, Items> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a request, and returns the waker of one who waits; or gives it back, if there is no room or nobody who
    /// would ever ask.
    fn push(&self, request: Request) -> Result<Option<Waker>, Request> {
        let mut items = self.lock();
        let is_open = matches!(request, Request::Open(_));
        if items.closed || (is_open && items.opens >= self.max_opens) {
            return Err(request);
        }
        let is_rules = |request: &Request| matches!(request, Request::Rules { .. });
        if is_rules(&request)
            && items.requests.iter().filter(|request| is_rules(request)).count() >= KEPT_RULES
        {
            let oldest = items.requests.iter().position(is_rules);
            oldest.and_then(|oldest| items.requests.remove(oldest));
        }
        items.opens += usize::from(is_open);
        items.requests.push_back(request);
        Ok(items.reader.take())
    }

    fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<Option<Request>> {
        let mut items = self.lock();
        let Some(request) = items.requests.pop_front() else {
            if items.closed {
                return Poll::Ready(None);
            }
            items.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        items.opens -= usize::from(matches!(request, Request::Open(_)));
        if items.requests.is_empty() {
            items.requests = VecDeque::new();
        }
        Poll::Ready(Some(request))
    }

    /// Takes no more, and forgets what waits.
    fn close(&self) {
        self.end(|_| false);
    }

    /// Takes no more, and keeps of what waits only what the gateway said about the tunnel itself: a tunnel without streams
    /// ends with the go-away, before anybody has looked at it.
    fn end_with_go_away(&self) {
        self.end(|request| matches!(request, Request::GoAway(_)));
    }

    fn end(&self, keeps: impl Fn(&Request) -> bool) {
        let mut items = self.lock();
        items.closed = true;
        items.opens = 0;
        let (kept, requests) = mem::take(&mut items.requests).into_iter().partition::<VecDeque<_>, _>(keeps);
        items.requests = kept;
        let reader = items.reader.take();
        // Requests say that they were dropped, and to whoever they say it, it is not to be under this lock.
        drop(items);
        drop(requests);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

// === OpenRequest ===

/// An open that waits for its answer. Dropped without one it is refused as an internal failure.
#[derive(Debug)]
pub struct OpenRequest {
    open: Box<Open>,
    // Before the stream: dropped in this order, they refuse the open, and then there is nothing to reset.
    answer: Answer,
    stream: Stream,
}

/// The answer that is owed.
#[derive(Debug)]
struct Answer {
    cell: Arc<Cell>,
    desk: Arc<Desk<Command>>,
    given: bool,
}

/// What a client's handles ask of the driver. There is one for each open at most, so the multiplexer's limit of
/// unanswered opens bounds them.
#[derive(Debug)]
pub(crate) enum Command {
    Accept { cell: Arc<Cell>, ok: OpenOk },
    Refuse { cell: Arc<Cell>, why: OpenErr },
}

impl OpenRequest {
    fn new(open: Box<Open>, cell: Arc<Cell>, desk: Arc<Desk<Command>>) -> Self {
        let stream = Stream::new(cell.clone(), desk.shared.clone(), is_datagrams(&open));
        Self { open, answer: Answer { cell, desk, given: false }, stream }
    }

    /// What the gateway wants.
    pub fn open(&self) -> &Open {
        &self.open
    }

    /// The stream's name in the logs of both ends.
    pub fn stream_ref(&self) -> StreamRef {
        self.stream.stream_ref()
    }

    /// Says that the target was reached. Both ways are open from here.
    pub fn accept(mut self, ok: OpenOk) -> Stream {
        self.answer.yes(ok);
        self.stream
    }

    /// Says that the target was not reached.
    pub fn refuse(mut self, why: OpenErr) {
        self.answer.no(why);
    }

    /// Waits until nobody wants the stream any more: the gateway took the open back, or the tunnel is lost. A dial
    /// under way should be given up then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn cancelled(&mut self) {
        poll_fn(|cx| self.answer.cell.lock().poll_reset(cx)).await;
    }
}

impl Answer {
    fn yes(&mut self, ok: OpenOk) {
        self.given = true;
        let _ = self.desk.push(Command::Accept { cell: self.cell.clone(), ok }, usize::MAX);
    }

    fn no(&mut self, why: OpenErr) {
        self.given = true;
        let _ = self.desk.push(Command::Refuse { cell: self.cell.clone(), why }, usize::MAX);
        self.cell.close();
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.given {
            self.no(OpenErr::new(OpenErrClass::Internal, "the client gave no answer"));
        }
    }
}

fn is_datagrams(open: &Open) -> bool {
    matches!(open.network, Network::Udp { .. })
}

// === impl End ===

impl End for Client {
    type Command = Command;
    type Local = Arc<Queue>;

    fn serve(_core: &mut Core<Self>, mux: &mut Mux<Self>, command: Command) {
        match command {
            Command::Accept { cell, ok } => {
                if let Some(id) = cell.id() {
                    mux.accept(id, ok);
                }
            }
            Command::Refuse { cell, why } => {
                if let Some(id) = cell.id() {
                    mux.refuse(id, why);
                }
            }
        }
    }

    fn act(core: &mut Core<Self>, _mux: &mut Mux<Self>, event: Event<GatewayHello>) {
        let request = match event {
            Event::Opened { id, open } => {
                let cell = Cell::new(is_datagrams(&open), &core.shared.memory);
                cell.set_id(id);
                core.cells.insert(id, cell.clone());
                Request::Open(OpenRequest::new(open, cell, core.desk.clone()))
            }
            Event::Rules { version, rules } => Request::Rules { version, rules },
            Event::GoAway(go_away) => Request::GoAway(*go_away),
            _ => return,
        };
        match core.local.push(request) {
            Ok(reader) => core.wakers.extend(reader),
            // Comes back as a command, in the next turn.
            Err(Request::Open(request)) => request
                .refuse(OpenErr::new(OpenErrClass::Overloaded, "the client has too many opens to look at")),
            Err(_) => {}
        }
    }

    fn received(frame: &ToClient) -> Option<(StreamId, &StreamFrame)> {
        match frame {
            ToClient::Stream(id, frame) => Some((*id, frame)),
            _ => None,
        }
    }

    fn sent(frame: &ToGateway) -> Option<(StreamId, &StreamFrame)> {
        match frame {
            ToGateway::Stream(id, frame) => Some((*id, frame)),
            _ => None,
        }
    }

    fn lost(core: &mut Core<Self>, _commands: Vec<Command>) {
        core.local.end_with_go_away();
    }
}
