//! The cost of one dial through the queue: a user who has no stream yet, and one who has.

use std::future::{Ready, ready};
use std::hint::black_box;
use std::task::{Context, Poll};

use anyproxy_core::{Account, Dial, DialService as _, Front, Target};
use anyproxy_queue::{QueueLayer, Settings};
use criterion::{Criterion, criterion_group, criterion_main};
use tokio::io::{Empty, Join, Sink, empty, join, sink};
use tower_layer::Layer as _;
use tower_service::Service;

/// Answers at once.
#[derive(Clone)]
struct Terminal;

impl Service<Dial> for Terminal {
    type Response = Join<Empty, Sink>;
    type Error = std::io::Error;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Dial) -> Self::Future {
        ready(Ok(join(empty(), sink())))
    }
}

fn queue(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let target = Target::parse("printer.lan:631").expect("a target");
    let mut dial = Dial::tcp(target, ([192, 0, 2, 1], 4000).into(), Front::HTTP);
    dial.identity = Account::new("alice", ["blue"]).into();
    let settings = Settings { max_connections: 10_000, per_user_connections: 200, ..Settings::default() };
    let queue = QueueLayer::new(settings).layer(Terminal);
    let mut group = c.benchmark_group("queue");
    group.bench_function("bare", |bench| {
        bench.iter(|| runtime.block_on(Terminal.dial(black_box(dial.clone()))).is_ok());
    });
    group.bench_function("first_stream", |bench| {
        bench.iter(|| runtime.block_on(queue.dial(black_box(dial.clone()))).is_ok());
    });
    let held = runtime.block_on(queue.dial(dial.clone()));
    group.bench_function("another_stream", |bench| {
        bench.iter(|| runtime.block_on(queue.dial(black_box(dial.clone()))).is_ok());
    });
    drop(held);
    group.finish();
}

criterion_group!(benches, queue);
criterion_main!(benches);
