//! The smallest gateway worth running: accounts, a rule, limits, an HTTP and a SOCKS5 front, and clients by TLS.
//!
//! In the folder of the workspace, the last three each in a terminal of its own:
//!
//! ```sh
//! cargo run -- cert --out target/certs localhost
//! cargo run -p anyproxy-examples --example minimal_gateway -- target/certs
//! cargo run -- client --config examples/client.yaml
//! curl -x http://user:password@127.0.0.1:8080 http://example.com/
//! ```

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use anyproxy_acl::{AclLayer, Pattern, Policy, Rules};
use anyproxy_auth::{Accounts, AuthLayer, LockoutLayer, User, Verify};
use anyproxy_balance::{Balance, Strategy};
use anyproxy_core::{BoxError, Identity};
use anyproxy_front::{Listener, Tls};
use anyproxy_gateway::{Authenticate, ClientAccount, Clients, Config, Gateway};
use anyproxy_http::HttpProxy;
use anyproxy_metrics::MetricsLayer;
use anyproxy_queue::{QueueLayer, Settings, WaitForClient};
use anyproxy_rate_limit::{Key, Quota, RateLimitLayer};
use anyproxy_socks5::Socks5;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let clients = Clients::default();
    let users = Verify::new(Accounts::new([User::plain("user", "password")])?);
    let policy = Policy::new([Rules::forbidden("no mail", ["*:25".parse::<Pattern>()?.into()])]);

    clients.set_rules(policy.for_clients()); // they judge the addresses behind names, where it has ranges

    // From a dial to a stream, for all fronts together.
    let dials = ServiceBuilder::new()
        .layer(MetricsLayer::new()) // every dial once, its verdict, its last byte
        .layer(AclLayer::new(policy)) // who may reach what: cheap refusals first
        .layer(RateLimitLayer::new(Quota::new(Key::User, 100, 200)?)) // once per dial, not per attempt
        .retry(WaitForClient::new(clients.clone(), Duration::from_secs(3))) // a reconnect goes unnoticed
        .layer(QueueLayer::new(Settings::default())) // bounded, fair; the seat rides in the stream
        .timeout(Duration::from_secs(15)) // the dial itself, other clients tried included
        .service(Balance::new(Strategy::LeastLoaded, clients.clone())); // one stream on one client's tunnel

    // From a login to dials, for each front: who is locked out of one is not of the other.
    let login = || {
        ServiceBuilder::new()
            .layer(LockoutLayer::default()) // by source, before any password is checked
            .layer(AuthLayer::new(users.clone())) // a login becomes a dial service that signs each dial
            .service(dials.clone())
    };

    let stop = CancellationToken::new();
    let http = HttpProxy::new(login()).serve(listen("http", 2, 8080)?, stop.clone());
    let socks5 = Socks5::new(login()).serve(listen("socks5", 3, 1080)?, stop.clone());
    let gateway = Gateway::new(client_login()?, clients, Config::default());
    let gateway = gateway.serve(listen("clients", 4, 8443)?, certificate()?, stop);
    tokio::select! {
        _ = async { tokio::join!(http, socks5, gateway) } => Ok(()),
        end = tokio::signal::ctrl_c() => Ok(end?),
    }
}

/// Clients log in as users do; which groups' networks they may serve is theirs as well.
fn client_login() -> Result<impl Authenticate, BoxError> {
    let accounts = Accounts::new([User::plain("client", "client_password")])?;
    let rights = |who: Identity| Arc::new(ClientAccount::new(who.user().unwrap_or_default(), who.groups()));
    Ok(ServiceBuilder::new()
        .layer(LockoutLayer::default())
        .map_response(rights)
        .service(Verify::new(accounts)))
}

/// The certificate that clients know the gateway by.
fn certificate() -> Result<Tls, BoxError> {
    let certs = PathBuf::from(env::args().nth(1).ok_or("give the folder of server.crt and server.key")?);
    Ok(Tls::from_pem(&fs::read(certs.join("server.crt"))?, &fs::read(certs.join("server.key"))?)?)
}

/// The port is that argument, if it is given; 0 takes a free one.
fn listen(name: &str, argument: usize, usual: u16) -> Result<Listener, BoxError> {
    let port = env::args().nth(argument).map_or(Ok(usual), |port| port.parse())?;
    let listener = Listener::bind(&[(Ipv4Addr::LOCALHOST, port).into()])?;
    println!("{name}: {}", listener.local_addr()?);
    Ok(listener)
}
