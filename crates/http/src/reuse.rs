//! Keep-alive to targets that skips no rule.
//!
//! Every request of a user is a [`Dial`] of its own and passes the whole stack: it is judged, counted and given a
//! seat. What an HTTP front saves is the last step only: directly around the terminal service, a [`ReuseLayer`] may
//! answer the dial with a stream that an earlier request of *the same user connection, identity and target* has
//! left behind in good order.
//!
//! What the layers wrap around the stream (permits, gauges, meters) belongs to one dial and is gone with its
//! exchange; only the raw stream below stays, in the keeping of the user's connection: a few of them, closed with
//! it or after some seconds without a request. To the layers, a stream that is given back ends whole, both ways.

use std::any::Any;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use anyproxy_core::{ByteStream, Dial, Identity, Journal, Target};
use pin_project_lite::pin_project;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tower::{Layer, Service};

/// The most exchanges on one stream: a user who never pauses still moves on to another client's tunnel one day.
const MAX_USES: u32 = 1_000;

/// Lets HTTP fronts use a stream to a target for more than one request. Belongs directly around the terminal
/// service, below everything that decides or counts.
///
/// Without it everything works, with one stream per request. Dials of other fronts pass through untouched.
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
/// // After the rules have changed: what was opened under the old ones is used no more.
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
        S: Send,
        S: 'static,
    {
        #[pin]
        state: State<F, S>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, S>
    where
        S: Send,
        S: 'static,
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
pub struct Kept<S: Send + 'static> {
    /// Always there until the drop.
    raw: Option<S>,
    tenancy: Option<Box<Tenancy>>,
}

/// What a stream must be asked for again to be given out.
#[derive(Debug)]
struct Tenancy {
    target: Target,
    identity: Identity,
    /// Of the dial that opened the stream: who serves it.
    journal: Journal,
    epoch: u64,
    uses: u32,
    /// Of the present exchange; `None` between two.
    lease: Option<Lease>,
    /// Whether nothing came behind the last response.
    is_clean: bool,
}

impl<S: Send + 'static> std::fmt::Debug for Kept<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("tenancy", &self.tenancy).finish_non_exhaustive()
    }
}

impl<S: Send + 'static> Kept<S> {
    fn raw(&mut self) -> &mut S {
        self.raw.as_mut().expect("there until the drop")
    }

    /// Whether the front has said that the exchange is over, all in order.
    fn is_returned(&self) -> bool {
        let lease = self.tenancy.as_ref().and_then(|tenancy| tenancy.lease.as_ref());
        lease.is_some_and(|lease| lease.0.returned.load(Ordering::Relaxed))
    }
}

impl<S: Send + 'static> Drop for Kept<S> {
    fn drop(&mut self) {
        if !self.is_returned() {
            return;
        }
        let tenancy = self.tenancy.take().filter(|tenancy| tenancy.is_clean);
        // The park must not hold a lease, which holds the park.
        if let (Some(raw), Some(mut tenancy)) = (self.raw.take(), tenancy)
            && let Some(lease) = tenancy.lease.take()
        {
            lease.0.park.put(Parked { raw: Box::new(raw), tenancy });
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
    /// Whether the exchange is over and the stream may be kept.
    returned: AtomicBool,
}

impl Lease {
    pub(crate) fn new(park: Arc<Park>, fresh: bool) -> Self {
        let [served, reused, returned] = [const { AtomicBool::new(false) }; 3];
        Self(Arc::new(Terms { park, fresh, served, reused, returned }))
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

    /// Whether the stream can be kept at all.
    pub(crate) fn is_served(&self) -> bool {
        self.0.served.load(Ordering::Relaxed)
    }

    /// Whether the stream had been used before.
    pub(crate) fn is_reused(&self) -> bool {
        self.0.reused.load(Ordering::Relaxed)
    }

    /// The exchange is over: reads and writes from now on see both ends of the stream, and its drop keeps it.
    pub(crate) fn give_back(&self) {
        self.0.returned.store(true, Ordering::Relaxed);
    }

    /// A kept stream for this dial. What does not live any more is dropped on the way.
    fn take<S: ByteStream>(&self, dial: &Dial, epoch: u64) -> Option<Kept<S>> {
        if self.0.fresh {
            return None;
        }
        loop {
            let Parked { raw, mut tenancy } = self.0.park.take(dial)?;
            let Ok(mut raw) = raw.downcast::<S>() else { continue };
            let mut cx = Context::from_waker(Waker::noop());
            // Bytes, an end or an error: none of them belongs between two exchanges.
            if tenancy.epoch != epoch || Pin::new(&mut *raw).poll_fill_buf(&mut cx).is_ready() {
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
    /// The longest unused first.
    kept: Mutex<Vec<Parked>>,
}

#[derive(Debug)]
struct Parked {
    raw: Box<dyn Any + Send>,
    tenancy: Box<Tenancy>,
}

impl Park {
    pub(crate) const fn new(room: usize) -> Self {
        Self { room, kept: Mutex::new(Vec::new()) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept().is_empty()
    }

    /// Closes all of them.
    pub(crate) fn clear(&self) {
        let gone = std::mem::take(&mut *self.kept());
        drop(gone);
    }

    fn put(&self, parked: Parked) {
        if self.room == 0 || parked.tenancy.uses >= MAX_USES {
            return;
        }
        let mut kept = self.kept();
        let oldest = (kept.len() == self.room).then(|| kept.remove(0));
        kept.push(parked);
        drop(kept);
        drop(oldest);
    }

    /// The one used last, since it is the most likely to live.
    fn take(&self, dial: &Dial) -> Option<Parked> {
        let mut kept = self.kept();
        let fits = |parked: &Parked| {
            parked.tenancy.target == dial.target && parked.tenancy.identity == dial.identity
        };
        let index = kept.iter().rposition(fits)?;
        Some(kept.remove(index))
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Parked>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
