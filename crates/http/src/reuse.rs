//! Keep-alive to targets that skips no rule.
//!
//! Every request of a user is a [`Dial`] of its own and passes the whole stack: it is judged, counted and given a
//! seat. What an HTTP front saves is the last step only: around the terminal service, a [`ReuseLayer`] may
//! answer the dial with a stream that an earlier request of *the same user connection, identity and target*, and for the
//! same client if for one alone, has left behind in good order.
//!
//! What the layers wrap around the stream (permits, gauges, meters) belongs to one dial and is gone with its
//! exchange; only the raw stream below stays, in the keeping of the user's connection: a few of them, closed with
//! it or after some seconds without being used. To the layers, a stream that is given back ends whole, both ways.
//!
//! What is kept no longer, or cannot be kept behind a whole response, is seen off: the target is told the end and given
//! a moment to end its own side, so that nobody takes for a reset what was in order.

use std::any::Any;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use anyproxy_core::{ByteStream, Dial, Identity, Journal, OnlyClient, RulesMark, Target};
use pin_project_lite::pin_project;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tower::{Layer, Service};

/// The most exchanges on one stream: a user who never pauses still moves on to another client's tunnel one day.
const MAX_USES: u32 = 1_000;
/// How long a target may take to end its side in answer to our end; far beyond a round trip.
const FAREWELL: Duration = Duration::from_secs(2);
/// The most it may still say meanwhile, which nobody reads.
const FAREWELL_BYTES: usize = 64 * 1024;
/// The streams of one user connection that are seen off at once; one more is reset.
const MAX_LEAVING: usize = 16;

/// Lets HTTP fronts use a stream to a target for more than one request. Belongs directly around the terminal
/// service, below everything that decides or counts; only what bounds the time of a real dial may stand between them.
///
/// Without it everything works, with one stream per request. Dials of other fronts pass through untouched.
///
/// Of what a terminal could choose by, a kept stream and a dial must agree in target, identity, rules and [`OnlyClient`].
/// Other extensions are not compared: a terminal that chooses by those, or by anything else than the dial, is not one to
/// put this around unless [`forget`](Self::forget) is called whenever the choice for a dial changes: after
/// `Clients::set_routes` of the gateway, too.
///
/// ```
/// use anyproxy_core::Dial;
/// use anyproxy_http::ReuseLayer;
/// use tower::ServiceBuilder;
///
/// # let terminal = tower::service_fn(|_: Dial| async {
/// #     Ok::<_, std::io::Error>(tokio::io::BufReader::new(tokio::io::duplex(64).0))
/// # });
/// let reuse = ReuseLayer::new();
/// let dials = ServiceBuilder::new().layer(reuse.clone()).service(terminal);
/// // After the rules or routes have changed: what was opened under the old ones is used no more.
/// reuse.forget();
/// # let _ = dials;
/// ```
#[derive(Clone, Debug, Default)]
pub struct ReuseLayer {
    epoch: Arc<AtomicU64>,
}

impl ReuseLayer {
    /// A layer whose clones share what [`forget`](Self::forget) says.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on nothing that was opened before is used for another request. Exchanges under way go on.
    pub fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }
}

impl<S> Layer<S> for ReuseLayer {
    type Service = Reuse<S>;

    fn layer(&self, inner: S) -> Reuse<S> {
        Reuse { inner, epoch: self.epoch.clone() }
    }
}

/// The service of [`ReuseLayer`].
#[derive(Clone, Debug)]
pub struct Reuse<S> {
    inner: S,
    epoch: Arc<AtomicU64>,
}

impl<S> Service<Dial> for Reuse<S>
where
    S: Service<Dial, Response: ByteStream>,
{
    type Response = Kept<S::Response>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, S::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut dial: Dial) -> Self::Future {
        let Some(lease) = Lease::of(&mut dial).filter(|_| !dial.network.is_udp()) else {
            return ResponseFuture { state: State::Dialing { inner: self.inner.call(dial), tenancy: None } };
        };
        let epoch = self.epoch.load(Ordering::Relaxed);
        if let Some(kept) = lease.take(&dial, epoch) {
            return ResponseFuture { state: State::Kept { kept: Some(kept) } };
        }
        let tenancy = Box::new(Tenancy {
            target: dial.target.clone(),
            identity: dial.identity.clone(),
            only: dial.extensions.get().cloned(),
            rules: dial.rules,
            journal: dial.journal.clone(),
            epoch,
            uses: 1,
            lease: Some(lease),
            is_clean: false,
        });
        ResponseFuture { state: State::Dialing { inner: self.inner.call(dial), tenancy: Some(tenancy) } }
    }
}

pin_project! {
    /// Response future of [`Reuse`].
    pub struct ResponseFuture<F, S>
    where
        S: ByteStream,
    {
        #[pin]
        state: State<F, S>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, S>
    where
        S: ByteStream,
    {
        Dialing { #[pin] inner: F, tenancy: Option<Box<Tenancy>> },
        Kept { kept: Option<Kept<S>> },
    }
}

impl<F, S, E> Future for ResponseFuture<F, S>
where
    F: Future<Output = Result<S, E>>,
    S: ByteStream,
{
    type Output = Result<Kept<S>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Dialing { inner, tenancy } => {
                let raw = ready!(inner.poll(cx))?;
                if let Some(lease) = tenancy.as_ref().and_then(|tenancy| tenancy.lease.as_ref()) {
                    lease.0.served.store(true, Ordering::Relaxed);
                }
                Poll::Ready(Ok(Kept { raw: Some(raw), tenancy: tenancy.take() }))
            }
            StateProj::Kept { kept } => Poll::Ready(Ok(kept.take().expect("not polled again when ready"))),
        }
    }
}

// === Kept ===

/// A stream that may be kept for another request: the response of [`Reuse`].
pub struct Kept<S: ByteStream> {
    /// Always there until the drop.
    raw: Option<S>,
    tenancy: Option<Box<Tenancy>>,
}

/// What a stream must be asked for again to be given out.
#[derive(Debug)]
struct Tenancy {
    target: Target,
    identity: Identity,
    /// The one client that may serve it.
    only: Option<OnlyClient>,
    /// What the far end had still to apply: under other rules it might have opened nothing.
    rules: Option<RulesMark>,
    /// Of the dial that opened the stream: who serves it.
    journal: Journal,
    epoch: u64,
    uses: u32,
    /// Of the present exchange; `None` between two.
    lease: Option<Lease>,
    /// Whether nothing came behind the last response.
    is_clean: bool,
}

impl<S: ByteStream> std::fmt::Debug for Kept<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("tenancy", &self.tenancy).finish_non_exhaustive()
    }
}

impl<S: ByteStream> Kept<S> {
    fn raw(&mut self) -> &mut S {
        self.raw.as_mut().expect("there until the drop")
    }

    /// Whether the front has said that the exchange is over, all in order.
    fn is_returned(&self) -> bool {
        let lease = self.tenancy.as_ref().and_then(|tenancy| tenancy.lease.as_ref());
        lease.is_some_and(|lease| lease.0.returned.load(Ordering::Relaxed))
    }
}

impl<S: ByteStream> Drop for Kept<S> {
    fn drop(&mut self) {
        if !self.is_returned() {
            return;
        }
        // The park must not hold a lease, which holds the park.
        if let (Some(raw), Some(mut tenancy)) = (self.raw.take(), self.tenancy.take())
            && let Some(lease) = tenancy.lease.take()
        {
            if tenancy.is_clean && lease.0.keeps.load(Ordering::Relaxed) {
                lease.0.park.put(Parked { raw: Box::new(raw), tenancy, since: Instant::now() });
            } else {
                lease.0.park.see_off(raw);
            }
        }
    }
}

impl<S: ByteStream> AsyncBufRead for Kept<S> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if !this.is_returned() {
            return Pin::new(this.raw()).poll_fill_buf(cx);
        }
        // Whatever comes behind a complete response, an end included, rules the stream out. To those around it the
        // exchange has ended.
        let is_clean = Pin::new(this.raw()).poll_fill_buf(cx).is_pending();
        if let Some(tenancy) = &mut this.tenancy {
            tenancy.is_clean = is_clean;
        }
        Poll::Ready(Ok(&[]))
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        Pin::new(self.raw()).consume(amount);
    }
}

impl<S: ByteStream> AsyncRead for Kept<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_returned() { Poll::Ready(Ok(())) } else { Pin::new(self.raw()).poll_read(cx, buf) }
    }
}

impl<S: ByteStream> AsyncWrite for Kept<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.raw()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.raw()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.raw.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.raw()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_returned() { Poll::Ready(Ok(())) } else { Pin::new(self.raw()).poll_shutdown(cx) }
    }
}

// === Lease ===

/// A dial's note: the answer may be a kept stream, and may be kept afterwards.
#[derive(Clone, Debug)]
pub(crate) struct Lease(Arc<Terms>);

#[derive(Debug)]
struct Terms {
    park: Arc<Park>,
    /// Whether only a new stream will do.
    fresh: bool,
    /// Whether somebody in the stack knows of leases.
    served: AtomicBool,
    /// Whether the answer was a kept stream.
    reused: AtomicBool,
    /// Whether the exchange is over, all in order,
    returned: AtomicBool,
    /// and another may follow on the stream.
    keeps: AtomicBool,
}

impl Lease {
    pub(crate) fn new(park: Arc<Park>, fresh: bool) -> Self {
        let [served, reused, returned, keeps] = [const { AtomicBool::new(false) }; 4];
        Self(Arc::new(Terms { park, fresh, served, reused, returned, keeps }))
    }

    /// Puts it on a dial.
    pub(crate) fn attach(&self, dial: &mut Dial) {
        dial.note = Some(self.0.clone());
    }

    /// Takes it off a dial that has one.
    fn of(dial: &mut Dial) -> Option<Self> {
        let note = dial.note.take_if(|note| note.is::<Terms>())?;
        note.downcast().ok().map(Self)
    }

    /// Whether somebody in the stack knows of leases.
    pub(crate) fn is_served(&self) -> bool {
        self.0.served.load(Ordering::Relaxed)
    }

    /// Whether the stream had been used before.
    pub(crate) fn is_reused(&self) -> bool {
        self.0.reused.load(Ordering::Relaxed)
    }

    /// The exchange is over, all in order: reads and writes from now on see both ends of the stream, and its drop keeps
    /// it, or sees it off if it cannot serve another.
    pub(crate) fn give_back(&self, keeps: bool) {
        self.0.keeps.store(keeps, Ordering::Relaxed);
        self.0.returned.store(true, Ordering::Relaxed);
    }

    /// Sees off a stream whose exchange is over, where nobody in the stack knows of leases.
    pub(crate) fn see_off(&self, stream: impl ByteStream) {
        self.0.park.see_off(stream);
    }

    /// A kept stream for this dial. What does not live any more is dropped on the way.
    fn take<S: ByteStream>(&self, dial: &Dial, epoch: u64) -> Option<Kept<S>> {
        if self.0.fresh {
            return None;
        }
        loop {
            let Parked { raw, mut tenancy, .. } = self.0.park.take(dial)?;
            let Ok(mut raw) = raw.into_any().downcast::<S>() else { continue };
            let mut cx = Context::from_waker(Waker::noop());
            // Bytes, an end or an error: none of them belongs between two exchanges. And where no stream would be
            // opened, none is used again: a client that leaves must come to its end.
            if tenancy.epoch != epoch
                || tenancy.rules != dial.rules
                || !tenancy.journal.is_healthy()
                || Pin::new(&mut *raw).poll_fill_buf(&mut cx).is_ready()
            {
                self.0.park.see_off(*raw);
                continue;
            }
            if let (Some(stream), Some(client)) = (tenancy.journal.stream(), tenancy.journal.client()) {
                dial.journal.set_served(stream, client, tenancy.journal.address());
            }
            tenancy.uses += 1;
            tenancy.is_clean = false;
            tenancy.lease = Some(self.clone());
            self.0.served.store(true, Ordering::Relaxed);
            self.0.reused.store(true, Ordering::Relaxed);
            return Some(Kept { raw: Some(*raw), tenancy: Some(tenancy) });
        }
    }
}

// === Park ===

/// The streams that one user connection keeps.
#[derive(Debug)]
pub(crate) struct Park {
    room: usize,
    /// How long one is kept.
    patience: Duration,
    /// The longest unused first.
    kept: Mutex<Vec<Parked>>,
    /// Those that are seen off.
    leaving: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Parked {
    raw: Box<dyn Raw>,
    tenancy: Box<Tenancy>,
    since: Instant,
}

/// A stream whose type is found again by who knows it.
trait Raw: ByteStream {
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

impl<S: ByteStream> Raw for S {
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl std::fmt::Debug for dyn Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Raw")
    }
}

impl Park {
    pub(crate) fn new(room: usize, patience: Duration) -> Self {
        Self { room, patience, kept: Mutex::default(), leaving: Mutex::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept().is_empty()
    }

    /// Sees off those that have been kept for long enough.
    pub(crate) fn sweep(&self) {
        let mut kept = self.kept();
        let old = kept.iter().take_while(|parked| parked.since.elapsed() >= self.patience).count();
        let gone: Vec<Parked> = kept.drain(..old).collect();
        drop(kept);
        gone.into_iter().for_each(|parked| self.see_off(parked.raw));
    }

    /// Sees all of them off.
    pub(crate) fn clear(&self) {
        let gone = std::mem::take(&mut *self.kept());
        gone.into_iter().for_each(|parked| self.see_off(parked.raw));
    }

    /// Sees all of them off, and waits until the last is gone: some seconds at most.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future resets those that have not left.
    pub(crate) async fn close(&self) {
        self.clear();
        let mut leaving = std::mem::take(&mut *self.leaving());
        while leaving.join_next().await.is_some() {}
    }

    /// Says the end on a stream and waits, beside everything else, for the target's.
    fn see_off(&self, mut stream: impl ByteStream) {
        let mut cx = Context::from_waker(Waker::noop());
        let ended = Pin::new(&mut stream).poll_shutdown(&mut cx);
        // Whatever became of it: a stream that is over has nothing to wait for, one that failed has failed.
        match ended {
            Poll::Ready(Err(_)) => return,
            Poll::Ready(Ok(())) if is_at_end(&mut stream, &mut cx) => return,
            _ => {}
        }
        let mut leaving = self.leaving();
        while leaving.try_join_next().is_some() {}
        if leaving.len() < MAX_LEAVING
            && let Ok(runtime) = Handle::try_current()
        {
            leaving.spawn_on(farewell(stream), &runtime);
        }
    }

    fn leaving(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, parked: Parked) {
        if self.room == 0 || parked.tenancy.uses >= MAX_USES || !parked.tenancy.journal.is_healthy() {
            return self.see_off(parked.raw);
        }
        let mut kept = self.kept();
        let oldest = (kept.len() == self.room).then(|| kept.remove(0));
        kept.push(parked);
        drop(kept);
        if let Some(oldest) = oldest {
            self.see_off(oldest.raw);
        }
    }

    /// The one used last, since it is the most likely to live.
    fn take(&self, dial: &Dial) -> Option<Parked> {
        let mut kept = self.kept();
        let only = dial.extensions.get::<OnlyClient>();
        let fits = |parked: &Parked| {
            let tenancy = &parked.tenancy;
            tenancy.target == dial.target
                && tenancy.identity == dial.identity
                && tenancy.only.as_ref() == only
        };
        let index = kept.iter().rposition(fits)?;
        Some(kept.remove(index))
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Parked>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_at_end(stream: &mut impl ByteStream, cx: &mut Context<'_>) -> bool {
    matches!(Pin::new(stream).poll_fill_buf(cx), Poll::Ready(Ok([])))
}

/// Ends a stream in order: our end, then the target's. One that takes too long, or says too much, is reset.
async fn farewell(mut stream: impl ByteStream) {
    let ended = async {
        stream.shutdown().await?;
        let mut left = FAREWELL_BYTES;
        loop {
            let heard = stream.fill_buf().await?.len();
            stream.consume(heard);
            left = left.saturating_sub(heard);
            if heard == 0 || left == 0 {
                return io::Result::Ok(());
            }
        }
    };
    // Whatever became of it, it is dropped now.
    let _ = timeout(FAREWELL, ended).await;
}
