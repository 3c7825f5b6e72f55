use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use anyproxy_core::{BoxError, Dial, Ending, Journal, Meter, Metered, Network, Outcome};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::Metrics;
use crate::figures::{FrontFigures, Verdict};
use crate::users::UserFigures;

impl<S> Service<Dial> for Metrics<S>
where
    S: Service<Dial>,
    S::Error: Into<BoxError>,
{
    type Response = Metered<S::Response, StreamMeter>;
    type Error = BoxError;
    type Future = DialFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, dial: Dial) -> Self::Future {
        let pending = Pending {
            figures: self.figures.of(dial.front),
            user: self.users.as_ref().map(|users| users.of(&dial.identity)),
            network: dial.network,
            journal: dial.journal.clone(),
            decided: false,
        };
        DialFuture { inner: self.inner.call(dial), pending }
    }
}

pin_project! {
    /// Response future of a dial through [`Metrics`]. Dropped before it is ready, the dial counts as cancelled.
    #[derive(Debug)]
    pub struct DialFuture<F> {
        #[pin]
        inner: F,
        pending: Pending,
    }
}

impl<F, R, E> Future for DialFuture<F>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Metered<R, StreamMeter>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.inner.poll(cx)).map_err(Into::into);
        Poll::Ready(match answer {
            Ok(stream) => {
                this.pending.decide(Verdict::Ok);
                Ok(Metered::new(stream, StreamMeter::new(this.pending)).of(this.pending.network))
            }
            Err(error) => {
                this.pending.decide(Verdict::Refused(Outcome::of(&*error)));
                this.pending.figures.refusals.count(&*error);
                Err(error)
            }
        })
    }
}

/// A dial that is not decided yet.
#[derive(Debug)]
struct Pending {
    figures: Arc<FrontFigures>,
    /// Where users are told apart.
    user: Option<Arc<UserFigures>>,
    network: Network,
    journal: Journal,
    decided: bool,
}

impl Pending {
    fn decide(&mut self, verdict: Verdict) {
        self.decided = true;
        self.figures.dials(self.network, verdict).increment(1);
        if let Some(user) = &self.user {
            user.dials(verdict).increment(1);
        }
        let phases = &self.figures.phases;
        phases.total.record(self.journal.started().elapsed());
        phases.queue.record(self.journal.queued());
        if matches!(verdict, Verdict::Ok) {
            // A dial that follows another on its stream opens and connects to nothing.
            for (phase, took) in
                [(&phases.open, self.journal.opening()), (&phases.connect, self.journal.connecting())]
            {
                if !took.is_zero() {
                    phase.record(took);
                }
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.decided {
            self.decide(Verdict::Cancelled);
        }
    }
}

/// Counts one stream's bytes, and the stream among those that live.
#[derive(Debug)]
pub struct StreamMeter {
    figures: Arc<FrontFigures>,
    user: Option<Arc<UserFigures>>,
    /// Until the first byte came.
    waiting: Option<Journal>,
}

impl StreamMeter {
    fn new(dial: &Pending) -> Self {
        dial.figures.open.increment(1);
        if let Some(user) = &dial.user {
            user.open.increment(1);
        }
        Self { figures: dial.figures.clone(), user: dial.user.clone(), waiting: Some(dial.journal.clone()) }
    }
}

impl Meter for StreamMeter {
    fn read(&mut self, bytes: usize) {
        self.figures.down.increment(bytes as u64);
        if let Some(user) = &self.user {
            user.down.increment(bytes as u64);
        }
        if bytes > 0
            && let Some(journal) = self.waiting.take()
        {
            self.figures.phases.first_byte.record(journal.started().elapsed());
        }
    }

    fn written(&mut self, bytes: usize) {
        self.figures.up.increment(bytes as u64);
        if let Some(user) = &self.user {
            user.up.increment(bytes as u64);
        }
    }

    fn ended(&mut self, ending: Ending) {
        self.figures.ended(ending).increment(1);
        self.figures.open.decrement(1);
        if let Some(user) = &self.user {
            user.open.decrement(1);
        }
    }
}
