//! The smallest gateway worth running: accounts, a rule, limits, an HTTP and a SOCKS5 front, and clients by TLS.
//!
//! In the folder of the workspace, the last three each in a terminal of its own:
//!
//! ```sh
//! cargo run -- cert --out certs localhost
//! cargo run -p anyproxy-examples --example minimal_gateway -- certs
//! cargo run -- client --config examples/client.yaml
//! curl -x http://user:password@127.0.0.1:8080 http://example.com/
//! ```

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs, sync::Arc};

use anyproxy_acl::{AclLayer, Pattern, Policy, Rules};
use anyproxy_auth::{Accounts, AuthLayer, LockoutLayer, User, Verify};
use anyproxy_balance::{Balance, Strategy};
use anyproxy_core::{BoxError, Identity};
use anyproxy_front::{Listener, Tls};
use anyproxy_gateway::{ClientAccount, Clients, Config, Gateway};
use anyproxy_http::HttpProxy;
use anyproxy_queue::{QueueLayer, Settings, WaitForClient};
use anyproxy_rate_limit::{Key, Quota, RateLimitLayer};
use anyproxy_socks5::Socks5;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;

#[tokio::main]
#[rustfmt::skip]
async fn main() -> Result<(), BoxError> {
    let certs = PathBuf::from(env::args().nth(1).ok_or("give the folder of server.crt and server.key")?);
    let tls = Tls::from_pem(&fs::read(certs.join("server.crt"))?, &fs::read(certs.join("server.key"))?)?;

    let users = Accounts::new([User::plain("user", "password")])?;
    let policy = Policy::new([Rules::forbidden("no mail", ["*:25".parse::<Pattern>()?.into()])]);
    let clients = Clients::default(); // who is connected from inside
    let stack = ServiceBuilder::new()
        .layer(LockoutLayer::default())                             // by source, before any password is checked
        .layer(AuthLayer::new(Verify::new(users)))                  // a login becomes dials that are signed
        .layer(AclLayer::new(policy))                               // who may reach what
        .layer(RateLimitLayer::new(Quota::new(Key::User, 100, 200)))
        .retry(WaitForClient::new(clients.clone(), Duration::from_secs(3)))
        .layer(QueueLayer::new(Settings::default()))                // bounded and fair; the seat rides in the stream
        .timeout(Duration::from_secs(15))                           // the dial itself
        .service(Balance::new(Strategy::LeastLoaded, clients.clone()));

    // Clients log in as users do; which groups' networks they may serve is theirs as well.
    let login = ServiceBuilder::new()
        .layer(LockoutLayer::default())
        .map_response(|who: Identity| Arc::new(ClientAccount::new(who.user().unwrap_or_default(), who.groups())))
        .service(Verify::new(Accounts::new([User::plain("client", "client_password")])?));

    let stop = CancellationToken::new();
    let http = HttpProxy::new(stack.clone()).serve(listen("http", 2, 8080)?, stop.clone());
    let socks5 = Socks5::new(stack).serve(listen("socks5", 3, 1080)?, stop.clone());
    let gateway = Gateway::new(login, clients, Config::default()).serve(listen("clients", 4, 8443)?, tls, stop);
    tokio::select! {
        _ = async { tokio::join!(http, socks5, gateway) } => Ok(()),
        end = tokio::signal::ctrl_c() => Ok(end?),
    }
}

/// The port is that argument, if it is given; 0 takes a free one.
fn listen(name: &str, argument: usize, usual: u16) -> Result<Listener, BoxError> {
    let port = env::args().nth(argument).map_or(Ok(usual), |port| port.parse())?;
    let listener = Listener::bind(&[(Ipv4Addr::LOCALHOST, port).into()])?;
    println!("{name}: {}", listener.local_addr()?);
    Ok(listener)
}
