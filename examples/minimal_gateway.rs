//! The shortest gateway that is one: accounts, a rule, both fronts, clients by TLS.
//!
//! `cargo run -p anyproxy-examples --example minimal_gateway -- server.crt server.key`, then a client of group
//! `default` with `client_password` at 127.0.0.1:8443, and `curl -x http://user:password@127.0.0.1:8080 …`.

use std::{env::args, error::Error, sync::Arc, time::Duration};

use anyproxy_acl::{AclLayer, Lists, Policy};
use anyproxy_auth::{Accounts, AuthLayer, User, Verify};
use anyproxy_balance::{Balance, Strategy};
use anyproxy_core::Identity;
use anyproxy_front::{Listener, Tls};
use anyproxy_gateway::{ClientAccount, Clients, Config, Gateway};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let (cert, key) = args().nth(1).zip(args().nth(2)).ok_or("give server.crt and server.key")?;
    let (chain, key) = (vec![CertificateDer::from_pem_file(cert)?], PrivateKeyDer::from_pem_file(key)?);
    let tls = Tls::new(Arc::new(
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?,
    ));

    let clients = Clients::default();
    let forbidden = vec!["*:25".parse::<anyproxy_acl::Pattern>()?.into()];
    let stack = ServiceBuilder::new()
        .layer(AuthLayer::new(Verify::new(Accounts::new([User::plain("user", "password")])?)))
        .layer(AclLayer::new(Policy::new(Lists { forbidden, ..Lists::default() }.into_rules("example"))))
        .timeout(Duration::from_secs(15))
        .service(Balance::new(Strategy::LeastLoaded, clients.clone()));

    let account = Arc::new(ClientAccount::new("client", ["default"]));
    let login = Verify::new(Accounts::new([User::plain("client", "client_password")])?);
    let login = ServiceBuilder::new().map_response(move |_: Identity| account.clone()).service(login);
    let (listen, stop) =
        (|at: &str| Listener::bind(&[at.parse().expect("an address")]), CancellationToken::new());
    tokio::select! {
        () = anyproxy_http::HttpProxy::new(stack.clone()).serve(listen("127.0.0.1:8080")?, stop.clone()) => {}
        () = anyproxy_socks5::Socks5::new(stack).serve(listen("127.0.0.1:1080")?, stop.clone()) => {}
        () = Gateway::new(login, clients, Config::default()).serve(listen("127.0.0.1:8443")?, tls, stop.clone()) => {}
        signal = tokio::signal::ctrl_c() => signal?,
    }
    Ok(())
}
