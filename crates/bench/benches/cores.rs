//! The cores in nanoseconds: `cargo bench -p anyproxy-bench --bench cores`. Each is one repetition of what
//! `budget.toml` counts in instructions.

use std::time::Instant;

use anyproxy_bench::cores;
use criterion::{Criterion, criterion_group, criterion_main};

fn all(c: &mut Criterion) {
    let mut group = c.benchmark_group("cores");
    for name in cores::names() {
        let mut core = cores::named(name).expect("one of its own names");
        group.bench_function(name, |bench| {
            bench.iter_custom(|times| {
                let started = Instant::now();
                core.repeat(times);
                started.elapsed()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, all);
criterion_main!(benches);
