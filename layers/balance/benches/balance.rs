//! The cost of one dial through [`Balance`] over four members, by strategy.

use std::future::{Ready, ready};
use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyproxy_balance::{Balance, StickyBy, Strategy};
use anyproxy_core::{Dial, DialService as _, Endpoint, Endpoints, Front, Load, Target};
use criterion::{Criterion, criterion_group, criterion_main};
use tokio::io::{Empty, Join, Sink, empty, join, sink};
use tower_service::Service;

type Nothing = Join<Empty, Sink>;

/// A member that answers at once.
#[derive(Clone)]
struct Member(&'static str);

impl Service<Dial> for Member {
    type Response = Nothing;
    type Error = std::io::Error;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Dial) -> Self::Future {
        ready(Ok(join(empty(), sink())))
    }
}

impl Endpoint for Member {
    fn name(&self) -> &str {
        self.0
    }

    fn load(&self) -> Load {
        Load::default()
    }
}

#[derive(Clone)]
struct Four(Arc<[Member]>);

impl Endpoints for Four {
    type Endpoint = Member;

    fn snapshot(&self, _: &Dial) -> Arc<[Member]> {
        self.0.clone()
    }

    fn served(&self, _: &Dial) -> impl Future<Output = ()> + Send + 'static {
        ready(())
    }
}

fn balance(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let target = Target::parse("printer.lan:631").expect("a target");
    let dial = Dial::tcp(target, ([192, 0, 2, 1], 4000).into(), Front::HTTP);
    let clients = Four(["a", "b", "c", "d"].map(Member).into());
    let mut group = c.benchmark_group("balance");
    for (name, strategy) in [
        ("round_robin", Strategy::RoundRobin),
        ("least_loaded", Strategy::LeastLoaded),
        ("p2c_ewma", Strategy::P2cEwma),
        ("random", Strategy::Random),
        ("sticky", Strategy::Sticky(StickyBy::User)),
    ] {
        let balance = Balance::new(strategy, clients.clone());
        group.bench_function(name, |bench| {
            bench.iter(|| runtime.block_on(balance.dial(black_box(dial.clone()))).is_ok());
        });
    }
    group.finish();
}

criterion_group!(benches, balance);
criterion_main!(benches);
