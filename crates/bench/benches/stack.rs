//! What a dial pays for being decided about: the whole stock stack against the bare terminal.
//!
//! `cargo bench -p anyproxy-bench --bench stack`. The goal: less than 1.5 µs and at most 4 allocations more than the
//! bare terminal (`tests/allocations.rs` holds it to the second).

use std::hint::black_box;
use std::time::Instant;

use anyproxy_bench::stack;
use anyproxy_core::DialService;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::runtime::{Builder, Runtime};

fn whole(c: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut group = c.benchmark_group("dial");
    bench(&mut group, &runtime, "bare", &stack::Terminal);
    bench(&mut group, &runtime, "stock", &stack::stock());
    bench(&mut group, &runtime, "limited", &stack::limited());

    // With a recorder behind the metrics, as `admin.listen_addr` puts one there, and its upkeep done now and then.
    let recorder = PrometheusBuilder::new().build_recorder();
    let upkeep = recorder.handle();
    let measured = metrics::with_local_recorder(&recorder, stack::stock);
    bench(&mut group, &runtime, "stock_with_admin", &measured);
    upkeep.run_upkeep();

    // With the access line of level info, written to nowhere.
    let lines = tracing_subscriber::fmt().json().flatten_event(true).with_writer(std::io::sink).finish();
    tracing::subscriber::with_default(lines, || {
        bench(&mut group, &runtime, "stock_with_access_line", &stack::stock());
    });
    group.finish();
}

/// One dial and the end of its stream.
fn bench(group: &mut BenchmarkGroup<'_, WallTime>, runtime: &Runtime, name: &str, dials: &impl DialService) {
    let wish = stack::Wish::of_alice().logged_in();
    group.bench_function(name, |bench| {
        bench.iter_custom(|times| {
            runtime.block_on(async {
                let started = Instant::now();
                for _ in 0..times {
                    let stream = dials.dial(black_box(wish.dial())).await;
                    drop(black_box(stream));
                }
                started.elapsed()
            })
        });
    });
}

criterion_group!(benches, whole);
criterion_main!(benches);
