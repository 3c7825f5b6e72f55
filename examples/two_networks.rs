//! One gateway for two networks, each with its own clients, rules and way of spreading dials.
//!
//! In the folder of the workspace, the last four each in a terminal of its own:
//!
//! ```sh
//! cargo run -- cert --out target/certs localhost
//! cargo run -p anyproxy-examples --example two_networks -- target/certs
//! ANYPROXY_CLIENT__CLIENT_ID=office ANYPROXY_CLIENT__GROUP_ID=office cargo run -- client --config examples/client.yaml
//! ANYPROXY_CLIENT__CLIENT_ID=lab ANYPROXY_CLIENT__GROUP_ID=lab cargo run -- client --config examples/client.yaml
//! curl -x http://alice:secret@127.0.0.1:8080 http://example.com/      # by the office's clients
//! curl -x http://bob:secret@127.0.0.1:8080 http://localhost:8000/     # by the lab's, which serve nothing else
//! ```
//!
//! The registry already keeps the groups apart: a dial goes to clients of its user's group. What differs besides is a
//! stack of its own for each, and tower's `Steer` chooses between them.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs, sync::Arc};

use anyproxy_acl::{AclLayer, Pattern, Policy, Rules};
use anyproxy_auth::{Accounts, AuthLayer, LockoutLayer, User, Verify};
use anyproxy_balance::{Balance, StickyBy, Strategy};
use anyproxy_core::{BoxDial, BoxError, Dial, Identity};
use anyproxy_front::{Listener, Tls};
use anyproxy_gateway::{ClientAccount, Clients, Config, Gateway};
use anyproxy_http::HttpProxy;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower::steer::Steer;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let certs = PathBuf::from(env::args().nth(1).ok_or("give the folder of server.crt and server.key")?);
    let tls = Tls::from_pem(&fs::read(certs.join("server.crt"))?, &fs::read(certs.join("server.key"))?)?;
    let clients = Clients::default();

    // The office: everything but mail, and whoever has the least to do.
    let mail = "*:25".parse::<Pattern>()?;
    let office = Policy::new([Rules::forbidden("office", [mail.into()])]);

    // The lab: its own names alone, and always the same client for a user, since experiments keep state.
    let names = ["*.lab".parse::<Pattern>()?.into(), "localhost".parse::<Pattern>()?.into()];
    let lab = Policy::new([Rules::allowed("lab", names)]);

    // What either leaves to clients to judge, the addresses behind names, they are sent first.
    clients.set_rules([&office, &lab].into_iter().filter_map(Policy::for_clients));
    let office = network(&clients, office, Strategy::LeastLoaded);
    let lab = network(&clients, lab, Strategy::Sticky(StickyBy::User));

    let by_group = |dial: &Dial, _: &[BoxDial]| usize::from(dial.identity.group() == "lab");
    let users = Accounts::new([
        User::plain("alice", "secret").in_groups(["office"]),
        User::plain("bob", "secret").in_groups(["lab"]),
    ])?;
    let stack = ServiceBuilder::new()
        .layer(LockoutLayer::default())
        .layer(AuthLayer::new(Verify::new(users)))
        .service(Steer::new([office, lab], by_group));

    // One account for the clients of both networks. With one for each, neither could serve the other's.
    let account = User::plain("client", "client_password").in_groups(["office", "lab"]);
    let login = ServiceBuilder::new()
        .layer(LockoutLayer::default())
        .map_response(|who: Identity| {
            Arc::new(ClientAccount::new(who.user().unwrap_or_default(), who.groups()))
        })
        .service(Verify::new(Accounts::new([account])?));

    let stop = CancellationToken::new();
    let http = HttpProxy::new(stack).serve(listen("http", 2, 8080)?, stop.clone());
    let gateway = Gateway::new(login, clients, Config::default());
    let gateway = gateway.serve(listen("clients", 3, 8443)?, tls, stop);
    tokio::select! {
        _ = async { tokio::join!(http, gateway) } => Ok(()),
        end = tokio::signal::ctrl_c() => Ok(end?),
    }
}

/// The dial stack of one network. Boxed, so that two stacks of any shape are of one type.
fn network(clients: &Clients, policy: Policy, strategy: Strategy) -> BoxDial {
    BoxDial::new(
        ServiceBuilder::new()
            .layer(AclLayer::new(policy))
            .timeout(Duration::from_secs(15))
            .service(Balance::new(strategy, clients.clone())),
    )
}

/// The port is that argument, if it is given; 0 takes a free one.
fn listen(name: &str, argument: usize, usual: u16) -> Result<Listener, BoxError> {
    let port = env::args().nth(argument).map_or(Ok(usual), |port| port.parse())?;
    let listener = Listener::bind(&[(Ipv4Addr::LOCALHOST, port).into()])?;
    println!("{name}: {}", listener.local_addr()?);
    Ok(listener)
}
