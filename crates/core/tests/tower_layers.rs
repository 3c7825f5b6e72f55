//! tower's own layers around a dial service: what fits as it is, what needs care, and the outcome that each error
//! means. The table is in the crate's documentation.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt;
use std::future::{Ready, pending, ready};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyproxy_core::{BoxError, Dial, DialService, Front, Outcome, Target};
use tokio::io::{AsyncReadExt as _, BufReader, DuplexStream, duplex};
use tokio::time::{Instant, advance, sleep};
use tokio_test::task;
use tower::buffer::{BufferLayer, error::ServiceError};
use tower::filter::FilterLayer;
use tower::limit::{ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer};
use tower::load_shed::LoadShedLayer;
use tower::retry::{Policy, RetryLayer};
use tower::timeout::TimeoutLayer;
use tower::{Layer, Service, ServiceBuilder, ServiceExt as _, service_fn};

// === timeout: as it is ===

#[tokio::test(start_paused = true)]
async fn a_timeout_bounds_the_dial_and_means_timed_out() {
    let dials = TimeoutLayer::new(Duration::from_secs(5)).layer(silent());
    let begun = Instant::now();
    assert_eq!(refusal(&dials, dial()).await, Outcome::TimedOut);
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_ends_with_the_dial_and_leaves_the_stream_alone() {
    let (near, mut far) = duplex(64);
    let near = Arc::new(std::sync::Mutex::new(Some(near)));
    let dials = service_fn(move |_: Dial| {
        ready(Ok::<_, io::Error>(BufReader::new(near.lock().unwrap().take().unwrap())))
    });
    let dials = TimeoutLayer::new(Duration::from_secs(5)).layer(dials);
    let mut stream = dials.dial(dial()).await.unwrap();
    advance(Duration::from_secs(60)).await;
    tokio::io::AsyncWriteExt::write_u8(&mut far, 7).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_around_everything_hides_what_a_longer_wait_would_have_said() {
    let waits_for_a_client = service_fn(|_: Dial| async {
        sleep(Duration::from_secs(2)).await;
        Err::<Stream, _>(io::Error::other(Outcome::NoClient))
    });
    let short = TimeoutLayer::new(Duration::from_secs(1)).layer(waits_for_a_client);
    let long = TimeoutLayer::new(Duration::from_secs(3)).layer(waits_for_a_client);
    assert_eq!(refusal(&short, dial()).await, Outcome::TimedOut);
    assert_eq!(refusal(&long, dial()).await, Outcome::NoClient);
}

// === filter: as it is ===

#[tokio::test]
async fn a_filter_refuses_before_the_dial_and_its_own_error_is_found_again() {
    let (dials, asked) = counting();
    let dials = FilterLayer::new(printers).layer(dials);
    assert!(dials.dial(dial()).await.is_ok());
    let error = dials.dial(dial_to("printer.lan:22")).await.unwrap_err();
    assert!(error.is::<NoPrinter>());
    assert_eq!(Outcome::of(&*error), Outcome::Denied);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

// === concurrency_limit: of dials, not of streams ===

#[tokio::test]
async fn a_concurrency_limit_counts_dials_under_way_and_not_streams() {
    let dials = ConcurrencyLimitLayer::new(1).layer(counting().0);
    let _first = dials.dial(dial()).await.unwrap();
    // The first stream lives, and the second dial goes through all the same: a permit ends with the answer.
    let _second = dials.dial(dial()).await.unwrap();
}

#[tokio::test]
async fn clones_share_a_concurrency_limit_and_a_dial_given_up_gives_back() {
    let dials = ConcurrencyLimitLayer::new(1).layer(silent());
    let mut first = task::spawn(dials.dial(dial()));
    assert!(first.poll().is_pending());
    let mut clone = dials.clone();
    assert!(task::spawn(clone.ready()).poll().is_pending());
    drop(first);
    assert!(task::spawn(clone.ready()).poll().is_ready());
}

#[tokio::test]
async fn two_stacks_share_a_concurrency_limit_only_if_its_layer_is_the_global_one() {
    let (each, global) = (ConcurrencyLimitLayer::new(1), GlobalConcurrencyLimitLayer::new(1));

    let mut first = task::spawn(each.layer(silent()).oneshot(dial()));
    assert!(first.poll().is_pending());
    let mut second = each.layer(silent());
    assert!(task::spawn(second.ready()).poll().is_ready());

    let mut first = task::spawn(global.layer(silent()).oneshot(dial()));
    assert!(first.poll().is_pending());
    let mut second = global.layer(silent());
    assert!(task::spawn(second.ready()).poll().is_pending());
}

// === load_shed: directly around what says "not ready" ===

#[tokio::test]
async fn load_shed_refuses_at_once_what_a_concurrency_limit_would_let_wait() {
    let dials = ServiceBuilder::new().load_shed().concurrency_limit(1).service(silent());
    let mut first = task::spawn(dials.dial(dial()));
    assert!(first.poll().is_pending());
    assert!(matches!(refusal(&dials, dial()).await, Outcome::Overloaded { .. }));
}

#[tokio::test]
async fn load_shed_sheds_nothing_above_a_layer_that_is_always_ready() {
    // Like a queue, a balancer and a retry, it waits in its answer and never in its readiness.
    let dials = LoadShedLayer::new().layer(silent());
    let mut dialling: Vec<_> = (0..100).map(|_| task::spawn(dials.dial(dial()))).collect();
    assert!(dialling.iter_mut().all(|dial| dial.poll().is_pending()));
}

// === retry: as it is ===

#[tokio::test]
async fn a_retry_dials_again_since_a_dial_can_be_cloned() {
    let (dials, asked) = failing(2, Outcome::NoClient);
    let dials = RetryLayer::new(Again(2)).layer(dials);
    assert!(dials.dial(dial()).await.is_ok());
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_retry_ends_with_the_last_refusal_and_each_dial_has_tries_of_its_own() {
    let (dials, asked) = failing(usize::MAX, Outcome::NoClient);
    let dials = RetryLayer::new(Again(2)).layer(dials);
    for _ in 0..2 {
        assert_eq!(refusal(&dials, dial()).await, Outcome::NoClient);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn a_counter_within_a_retry_counts_attempts_and_one_outside_counts_dials() {
    let (outside, within) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let count = |counter: &Arc<AtomicUsize>| {
        let counter = counter.clone();
        move |dial: Dial| {
            counter.fetch_add(1, Ordering::Relaxed);
            dial
        }
    };
    let dials = ServiceBuilder::new()
        .map_request(count(&outside))
        .retry(Again(2))
        .map_request(count(&within))
        .service(failing(2, Outcome::NoClient).0);
    assert!(dials.dial(dial()).await.is_ok());
    assert_eq!((outside.load(Ordering::Relaxed), within.load(Ordering::Relaxed)), (1, 3));
}

// === buffer: for a service that cannot be cloned ===

#[tokio::test]
async fn a_buffer_makes_a_dial_service_of_one_that_cannot_be_cloned() {
    let dials = BufferLayer::new(8).layer(Modem { credit: 2 });
    assert!(dials.dial(dial()).await.is_ok());
    assert_eq!(refusal(&dials, dial_to("printer.lan:22")).await, Outcome::Refused);
}

#[tokio::test]
async fn a_buffer_is_over_once_its_service_fails_to_be_ready() {
    let dials = BufferLayer::new(8).layer(Modem { credit: 0 });
    for _ in 0..2 {
        let error = dials.dial(dial()).await.unwrap_err();
        assert!(error.is::<ServiceError>(), "{error:?}");
        assert_eq!(Outcome::of(&*error), Outcome::NoClient, "what the service said is still told");
    }
}

#[tokio::test]
async fn load_shed_around_a_full_buffer_refuses_at_once() {
    // Never ready, so that its worker keeps the first dial in hand and the next in the buffer.
    let (dials, mut handle) = tower_test::mock::pair::<Dial, Stream>();
    handle.allow(0);
    let dials = ServiceBuilder::new().load_shed().buffer(1).service(dials);
    let mut waiting = Vec::new();
    let refused = loop {
        let mut dialling = task::spawn(dials.dial(dial()));
        match dialling.poll() {
            Poll::Ready(answer) => break answer.unwrap_err(),
            Poll::Pending => waiting.push(dialling),
        }
        assert!(waiting.len() <= 2, "the buffer has a bound");
        tokio::task::yield_now().await;
    };
    assert!(matches!(Outcome::of(&*refused), Outcome::Overloaded { .. }), "{refused}");
}

// === together ===

#[tokio::test]
async fn a_stack_of_them_is_still_a_dial_service() {
    let stack = ServiceBuilder::new()
        .filter(printers)
        .load_shed()
        .concurrency_limit(8)
        .retry(Again(1))
        .timeout(Duration::from_secs(5))
        .buffer(8)
        .service(failing(1, Outcome::NoClient).0);
    // Spawned, since what a front does with a dial has to be `Send` and to borrow nothing.
    let dialling = tokio::spawn(stack.dial(dial()));
    assert!(dialling.await.unwrap().is_ok());
    assert_eq!(refusal(&stack, dial_to("printer.lan:22")).await, Outcome::Denied);
}

// === what is dialled ===

type Stream = BufReader<DuplexStream>;

fn dial() -> Dial {
    dial_to("printer.lan:631")
}

fn dial_to(target: &str) -> Dial {
    Dial::tcp(Target::parse(target).unwrap(), ([192, 0, 2, 1], 4000).into(), Front::HTTP)
}

fn stream() -> Stream {
    BufReader::new(duplex(64).0)
}

/// What a front would tell the user.
async fn refusal(dials: &impl DialService, dial: Dial) -> Outcome {
    match dials.dial(dial).await {
        Ok(_) => panic!("not refused"),
        Err(error) => Outcome::of(&*error),
    }
}

/// Never answers.
fn silent() -> impl DialService<Response = Stream> {
    service_fn(|_: Dial| pending::<io::Result<Stream>>())
}

/// Answers at once, and counts.
fn counting() -> (impl DialService<Response = Stream>, Arc<AtomicUsize>) {
    failing(0, Outcome::Internal)
}

/// Refuses so often, then answers; and counts.
fn failing(
    times: usize,
    outcome: Outcome,
) -> (impl DialService<Response = Stream, Error = BoxError, Future: Send>, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let dials = service_fn(move |_: Dial| {
        let before = count.fetch_add(1, Ordering::Relaxed);
        ready(if before < times { Err(BoxError::from(outcome)) } else { Ok(stream()) })
    });
    (dials, asked)
}

/// A dial service that owns the one thing it dials with.
struct Modem {
    credit: usize,
}

impl Service<Dial> for Modem {
    type Response = Stream;
    type Error = BoxError;
    type Future = Ready<Result<Stream, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(if self.credit > 0 { Ok(()) } else { Err(Outcome::NoClient.into()) })
    }

    fn call(&mut self, dial: Dial) -> Self::Future {
        self.credit -= 1;
        ready(if dial.target.port() == 631 { Ok(stream()) } else { Err(Outcome::Refused.into()) })
    }
}

/// Tries so often again where nobody was there.
#[derive(Clone)]
struct Again(usize);

impl<R> Policy<Dial, R, BoxError> for Again {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Dial, answer: &mut Result<R, BoxError>) -> Option<Ready<()>> {
        let nobody = answer.as_ref().is_err_and(|error| Outcome::of(&**error) == Outcome::NoClient);
        self.0 = self.0.checked_sub(nobody.then_some(1)?)?;
        Some(ready(()))
    }

    fn clone_request(&mut self, dial: &Dial) -> Option<Dial> {
        Some(dial.clone())
    }
}

fn printers(dial: Dial) -> Result<Dial, NoPrinter> {
    if dial.target.port() == 631 { Ok(dial) } else { Err(NoPrinter) }
}

#[derive(Debug)]
struct NoPrinter;

impl fmt::Display for NoPrinter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a printer")
    }
}

impl std::error::Error for NoPrinter {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&Outcome::Denied)
    }
}
