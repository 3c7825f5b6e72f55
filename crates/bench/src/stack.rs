//! The stock gateway's dial stack, over members that answer at once.
//!
//! The layers, their order and the seam are those of the binary's `stack.rs`, whose fronts, files and clients are
//! left out: what is left is what a dial pays for being decided about.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyproxy_acl::{AclLayer, Action, Pattern, Policy, Rule, Rules};
use anyproxy_auth::{Accounts, StandingLayer, User, Verify};
use anyproxy_balance::{Balance, Strategy};
use anyproxy_core::{
    Account, BoxDial, BoxError, Dial, Endpoint, Endpoints, Front, Guarded, Identity, Load, Target,
};
use anyproxy_http::ReuseLayer;
use anyproxy_metrics::MetricsLayer;
use anyproxy_queue::{QueueLayer, Settings, WaitForClient};
use anyproxy_rate_limit::{Bandwidth, BandwidthLayer, Key, Quota, RateLimitLayer};
use anyproxy_trace::TraceLayer;
use tokio::io::{Empty, Join, Sink, empty, join, sink};
use tower::{Service, ServiceBuilder};

/// How many members a group has here.
const MEMBERS: usize = 4;
/// So many dials and bytes that no limit is ever met, and every limit is asked.
const PLENTY: u32 = 1_000_000_000;

/// A stream that ends at once and swallows what is written; making one allocates nothing.
pub type Still = Join<Empty, Sink>;

/// The bare terminal: answers every dial at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terminal;

impl Service<Dial> for Terminal {
    type Response = Still;
    type Error = BoxError;
    type Future = Ready<Result<Still, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Dial) -> Self::Future {
        ready(Ok(join(empty(), sink())))
    }
}

/// A terminal that counts its streams, as a gateway's client does.
#[derive(Clone, Debug)]
struct Member {
    name: Arc<str>,
    streams: Arc<AtomicUsize>,
}

/// One living stream of a member.
#[derive(Debug)]
struct Living(Arc<AtomicUsize>);

impl Drop for Living {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Service<Dial> for Member {
    type Response = Guarded<Still, Living>;
    type Error = BoxError;
    type Future = Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Dial) -> Self::Future {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let living = Living(self.streams.clone());
        ready(Ok(Guarded::new(join(empty(), sink()), living)))
    }
}

impl Endpoint for Member {
    fn name(&self) -> &str {
        &self.name
    }

    fn load(&self) -> Load {
        Load { streams: self.streams.load(Ordering::Relaxed), unsent: 0 }
    }
}

/// A group whose members are always there.
#[derive(Clone, Debug)]
struct Members(Arc<[Member]>);

impl Members {
    fn new() -> Self {
        let member = |number| Member { name: format!("client-{number}").into(), streams: Arc::default() };
        Self((0..MEMBERS).map(member).collect())
    }
}

impl Endpoints for Members {
    type Endpoint = Member;

    fn snapshot(&self, _: &Dial) -> Arc<[Member]> {
        self.0.clone()
    }

    fn served(&self, _: &Dial) -> impl Future<Output = ()> + Send + 'static {
        ready(())
    }
}

/// The stack as a file without limits makes it: no rules, no rate, no bandwidth, any number of streams.
#[must_use]
pub fn stock() -> BoxDial {
    let acl = AclLayer::new(Policy::new([]));
    assemble(acl, RateLimitLayer::unlimited(), BandwidthLayer::unlimited(), Settings::default())
}

/// The stack of a file that sets every limit, none of which is ever met.
#[must_use]
pub fn limited() -> BoxDial {
    let rules = ["10.0.0.0/8:22", "*.internal", "169.254.0.0/16", "printer.lan:25"]
        .map(|text| Rule::deny([Pattern::parse(text).expect("a pattern")]));
    let policy = Policy::new([Rules::new("gateway.access", Action::Allow, rules)]);
    let bandwidth = Bandwidth::new(Key::User).up(PLENTY.into()).down(PLENTY.into());
    assemble(
        AclLayer::new(policy),
        RateLimitLayer::new(Quota::new(Key::User, PLENTY, PLENTY).expect("plenty")),
        BandwidthLayer::new(bandwidth),
        Settings { max_connections: 10_000, per_user_connections: 200, ..Settings::default() },
    )
}

/// The order of the binary's `stack.rs`, which gives the reason for each place.
#[rustfmt::skip]
fn assemble(acl: AclLayer, rate: RateLimitLayer, bandwidth: BandwidthLayer, seats: Settings) -> BoxDial {
    let members = Members::new();
    let metrics = MetricsLayer::new();
    let judged_again = acl.after_waits();
    metrics.seen(Front::SOCKS5);
    BoxDial::new(
        ServiceBuilder::new()
            .layer(TraceLayer::new())
            .layer(metrics)
            .layer(StandingLayer::new())
            .layer(acl)
            .layer(rate)
            .layer(bandwidth)
            .retry(WaitForClient::new(members.clone(), Duration::from_secs(3)))
            .layer(QueueLayer::new(seats))
            .layer(judged_again)
            .layer(ReuseLayer::new())
            .timeout(Duration::from_secs(20))
            .service(Balance::new(Strategy::LeastLoaded, members)),
    )
}

/// What a user who is logged in dials again and again.
#[derive(Debug)]
pub struct Wish {
    target: Target,
    identity: Identity,
    /// Keeps the account.
    verify: Option<Verify>,
}

impl Wish {
    /// That of a user with a name.
    ///
    /// # Panics
    ///
    /// Never: its target is one.
    #[must_use]
    pub fn of_alice() -> Self {
        let target = Target::parse("db.example.lan:5432").expect("a target");
        Self { target, identity: Account::new("alice", ["blue"]).into(), verify: None }
    }

    /// The same user's who has logged in, and must stand in accounts. What it takes to make those is random, as are their
    /// keys: not to be counted.
    ///
    /// # Panics
    ///
    /// Never: the account is one.
    #[must_use]
    pub fn logged_in(mut self) -> Self {
        let alice = User::plain("alice", "secret").in_groups(["blue"]);
        let accounts = Accounts::new([alice]).expect("an account");
        self.identity = accounts.identity("alice").expect("her account").clone();
        self.verify = Some(Verify::new(accounts));
        self
    }

    /// The dial, as a front makes it and its login signs it.
    #[must_use]
    pub fn dial(&self) -> Dial {
        let mut dial = Dial::tcp(self.target.clone(), ([192, 0, 2, 1], 4000).into(), Front::SOCKS5);
        dial.identity = self.identity.clone();
        dial
    }
}
