//! What a million strangers cost. Alone in its process, so that the process's memory is the measure.

#![cfg(target_os = "linux")]

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyproxy_core::{BoxError, Dial, Front, Target};
use anyproxy_rate_limit::{Key, Quota, RateLimitLayer};
use tower::{Layer as _, Service as _, service_fn};

#[tokio::test(start_paused = true)]
async fn l2_a_million_sources_take_under_200_mib_and_go_away() {
    let (layer, handle) = RateLimitLayer::pair(Quota::new(Key::Source, 10, 10).unwrap());
    let mut limit = layer.layer(service_fn(async |_: Dial| Ok::<_, BoxError>(())));
    let mut dial = Dial::tcp(Target::parse("a:1").unwrap(), SocketAddr::from(([0; 4], 1)), Front::HTTP);
    let before = resident_kib();
    for n in 0..1_000_000_u128 {
        dial.source = SocketAddr::new(Ipv6Addr::from_bits(n << 64).into(), 4000);
        limit.call(dial.clone()).await.unwrap();
    }
    let grown = resident_kib() - before;
    assert!(handle.keys() > 990_000, "{}", handle.keys());
    assert!(grown < 200 * 1024, "{grown} KiB");

    for _ in 0..1000 {
        tokio::time::advance(Duration::from_millis(10)).await;
        limit.call(dial.clone()).await.ok();
    }
    assert!(handle.keys() < 10, "{}", handle.keys());
    let left = resident_kib() - before;
    assert!(left < 20 * 1024, "{left} KiB of {grown} KiB stay");
}

fn resident_kib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it names the resident memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("in KiB")
}
