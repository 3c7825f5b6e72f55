//! The stock gateway's stack: the only place that knows the order of layers.
//!
//! Everything a user may do is decided here, top to bottom; ARCHITECTURE.md says more about each place.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_acl::AclLayer;
use anyproxy_auth::{AuthLayer, Identified, LockoutLayer, StandingLayer, Verify};
use anyproxy_balance::Balance;
use anyproxy_core::{Account, BoxDial, BoxError, BoxGateway, Dial, Identity, Login, Outcome, Target};
use anyproxy_gateway::{Authenticate, ClientAccount, Clients, Routes};
use anyproxy_http::ReuseLayer;
use anyproxy_metrics::MetricsLayer;
use anyproxy_queue::{QueueLayer, WaitForClient};
use anyproxy_rate_limit::{BandwidthLayer, RateLimitLayer};
use anyproxy_trace::TraceLayer;
use arc_swap::ArcSwap;
use tower::{ServiceBuilder, service_fn};

use crate::settings::Route;
use crate::traces;

/// What the dial stack is built of.
pub(crate) struct Parts {
    pub(crate) metrics: MetricsLayer,
    pub(crate) acl: AclLayer,
    pub(crate) rate: RateLimitLayer,
    pub(crate) bandwidth: BandwidthLayer,
    pub(crate) wait: WaitForClient<Clients>,
    pub(crate) queue: QueueLayer,
    pub(crate) dial_timeout: Duration,
    pub(crate) reuse: ReuseLayer,
    pub(crate) balance: Balance<Clients>,
}

/// From a signed dial to a stream, for all fronts together: limits hold for a user wherever they come in.
#[rustfmt::skip]
pub(crate) fn dials(parts: Parts) -> BoxDial {
    let judged_again = parts.acl.after_waits();
    BoxDial::new(
        ServiceBuilder::new()
            .layer(TraceLayer::new())       // one access line a dial, refused ones too
            .map_request(traces::hand_on)   // the client's part of a trace hangs below ours
            .layer(parts.metrics)           // every dial once, its verdict, its last byte
            .layer(StandingLayer::new())    // an association may outlive its account, and a dial may wait
            .layer(parts.acl)               // who may reach what: cheap refusals first
            .layer(parts.rate)              // once per dial, not per attempt
            .layer(parts.bandwidth)         // bytes: credit comes back more slowly, nothing is buffered
            .retry(parts.wait)              // a client that reconnects goes unnoticed; waits without a seat
            .layer(parts.queue)             // bounded, fair, with a deadline; the seat rides in the stream
            .layer(judged_again)            // rules may have changed while a dial waited
            .layer(parts.reuse)             // a request may follow another of its connection on one stream
            .timeout(parts.dial_timeout)    // the dial itself, other clients tried included
            .service(parts.balance),        // the terminal: one stream on one client's tunnel
    )
}

/// A front's stack: all users dial through the same one, each under their own name.
pub(crate) type Gateway = BoxGateway<Identified<BoxDial>>;

/// From a login to a dial service that signs each dial, for one front: who is locked out of one is not of another.
#[rustfmt::skip]
pub(crate) fn login(accounts: Option<Verify>, group: Option<&str>, stock: &Stock) -> Gateway {
    let logins = ServiceBuilder::new()
        .layer(stock.metrics.clone()) // wrong logins never become dials: counted here
        .layer(LockoutLayer::default()); // by source, before any hash is computed
    match accounts {
        Some(accounts) => {
            BoxGateway::of(logins.layer(AuthLayer::new(accounts)).service(stock.dials.clone()))
        }
        // An open front asks nobody: everybody is the same anonymous user of its group.
        None => {
            let everybody = group.map_or(Identity::ANONYMOUS, |group| Account::anonymous(group).into());
            let verifier = service_fn(move |_: Login| {
                std::future::ready(Ok::<_, std::convert::Infallible>(everybody.clone()))
            });
            BoxGateway::of(logins.layer(AuthLayer::new(verifier)).service(stock.dials.clone()))
        }
    }
}

/// What all fronts of a gateway share.
pub(crate) struct Stock {
    pub(crate) metrics: MetricsLayer,
    pub(crate) dials: BoxDial,
}

/// What each account of clients may do, by its name.
pub(crate) type Rights = HashMap<String, Arc<ClientAccount>>;

/// From a client's login to its account, guarded as those of users are.
pub(crate) fn client_login(
    accounts: Verify,
    rights: Arc<ArcSwap<Rights>>,
    metrics: MetricsLayer,
) -> impl Authenticate {
    ServiceBuilder::new()
        .layer(metrics)
        .layer(LockoutLayer::default())
        .and_then(move |identity: Identity| {
            // An account without rights is one that is being taken away at this moment.
            let rights = identity.user().and_then(|user| rights.load().get(user).cloned());
            std::future::ready(rights.ok_or_else(|| BoxError::from(Outcome::LoginRequired)))
        })
        .service(accounts)
}

/// How these routes choose the group of a dial.
pub(crate) fn routes(routes: Vec<Route>) -> impl Routes {
    move |dial: &Dial| route(&routes, &dial.target, &dial.identity)
}

/// The group a route sends a dial to: the first whose targets match and whose group the user holds.
pub(crate) fn route(routes: &[Route], target: &Target, identity: &Identity) -> Option<Arc<str>> {
    let matches = |route: &&Route| {
        identity.has_group(&route.group) && route.targets.iter().any(|pattern| pattern.matches(target))
    };
    routes.iter().find(matches).map(|route| route.group.clone())
}
