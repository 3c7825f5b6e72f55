//! What the limits add to a dial, and what the number of keys adds to that.

use std::hint::black_box;
use std::net::{Ipv6Addr, SocketAddr};

use anyproxy_core::{BoxError, Dial, Front, Target};
use anyproxy_rate_limit::{Bandwidth, BandwidthLayer, Key, Quota, RateLimitLayer};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tower::{Layer as _, ServiceExt as _, service_fn};

fn dial(n: u64) -> Dial {
    let source = Ipv6Addr::from_bits(u128::from(n) << 64);
    Dial::tcp(Target::parse("a:1").expect("a target"), SocketAddr::new(source.into(), 4000), Front::HTTP)
}

fn limits(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let bare = service_fn(async |dial: Dial| Ok::<_, BoxError>(black_box(dial)));

    let one = dial(0);
    c.bench_function("bare", |b| b.iter(|| runtime.block_on(bare.oneshot(one.clone()))));

    let mut group = c.benchmark_group("rate_limit");
    for keys in [1_u64, 1_000, 1_000_000] {
        let quota = Quota::new(Key::Source, 1_000_000, 1_000_000).expect("not zero");
        let limit = RateLimitLayer::new(quota).layer(bare);
        let dials: Vec<_> = (0..keys.min(100_000)).map(|n| dial(n * (keys / keys.min(100_000)))).collect();
        for n in 0..keys {
            let _ = runtime.block_on(limit.clone().oneshot(dial(n)));
        }
        let mut next = dials.iter().cycle();
        group.bench_function(BenchmarkId::new("keys", keys), |b| {
            b.iter(|| runtime.block_on(limit.clone().oneshot(next.next().expect("endless").clone())));
        });
    }
    let unlimited = RateLimitLayer::unlimited().layer(bare);
    group
        .bench_function("unlimited", |b| b.iter(|| runtime.block_on(unlimited.clone().oneshot(one.clone()))));
    group.finish();

    let mut group = c.benchmark_group("bandwidth");
    for (name, layer) in [
        ("limited", BandwidthLayer::new(Bandwidth::new(Key::User).up(1 << 30).down(1 << 30))),
        ("unlimited", BandwidthLayer::unlimited()),
    ] {
        let limit = layer.layer(bare);
        group.bench_function(name, |b| b.iter(|| runtime.block_on(limit.clone().oneshot(one.clone()))));
    }
    group.finish();
}

criterion_group!(benches, limits);
criterion_main!(benches);
