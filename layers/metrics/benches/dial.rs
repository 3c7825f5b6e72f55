//! What this layer adds to a dial, its stream's end included.

use std::hint::black_box;
use std::io;

use anyproxy_core::{Dial, Front, Target};
use anyproxy_metrics::MetricsLayer;
use criterion::{Criterion, criterion_group, criterion_main};
use tokio::io::{Empty, Join, Sink, empty, join, sink};
use tower::{Layer as _, ServiceExt as _, service_fn};

fn dial() -> Dial {
    let target = Target::parse("printer.lan:631").expect("a target");
    Dial::tcp(target, "192.0.2.1:4000".parse().expect("an address"), Front::HTTP)
}

fn dials(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let bare = service_fn(async |dial: Dial| {
        black_box(dial);
        Ok::<Join<Empty, Sink>, io::Error>(join(empty(), sink()))
    });
    c.bench_function("bare", |b| b.iter(|| runtime.block_on(bare.oneshot(dial()))));
    let layered = MetricsLayer::new().layer(bare);
    c.bench_function("metrics", |b| b.iter(|| runtime.block_on(layered.clone().oneshot(dial()))));
}

criterion_group!(benches, dials);
criterion_main!(benches);
