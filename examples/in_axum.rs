//! A gateway inside an axum server that is already there: its port also proxies, and a page shows who is connected.
//!
//! In the folder of the workspace, the last four each in a terminal of its own:
//!
//! ```sh
//! cargo run -- cert --out target/certs localhost
//! cargo run -p anyproxy-examples --example in_axum -- target/certs
//! cargo run -- client --config examples/client.yaml
//! curl http://127.0.0.1:8080/                                                  # the site, as ever
//! curl http://127.0.0.1:8080/clients                                           # the gateway, seen from the site
//! curl -p -x http://user:password@127.0.0.1:8080 http://example.com/           # the gateway itself
//! ```
//!
//! The router serves the site. A CONNECT is no request for a site, so a layer takes it out before routing, asks the
//! gateway's stack as any front does, and relays. Clients come in by TLS on a port of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs, sync::Arc};

use anyproxy_auth::{Accounts, AuthLayer, LockoutLayer, User, Verify};
use anyproxy_balance::{Balance, Strategy};
use anyproxy_core::{
    BoxError, Credentials, Dial, DialService as _, Front, GatewayStack, Identity, Login, Outcome, Target,
};
use anyproxy_front::{Listener, RelayConfig, Tls, relay};
use anyproxy_gateway::{ClientAccount, Clients, Config, Gateway};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceBuilder;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let certs = PathBuf::from(env::args().nth(1).ok_or("give the folder of server.crt and server.key")?);
    let tls = Tls::from_pem(&fs::read(certs.join("server.crt"))?, &fs::read(certs.join("server.key"))?)?;
    let port = |argument, usual| env::args().nth(argument).map_or(Ok(usual), |port| port.parse::<u16>());

    // The gateway.
    let clients = Clients::default();
    let stack = ServiceBuilder::new()
        .layer(LockoutLayer::default())
        .layer(AuthLayer::new(Verify::new(Accounts::new([User::plain("user", "password")])?)))
        .timeout(Duration::from_secs(15))
        .service(Balance::new(Strategy::LeastLoaded, clients.clone()));
    let login = ServiceBuilder::new()
        .layer(LockoutLayer::default())
        .map_response(|who: Identity| {
            Arc::new(ClientAccount::new(who.user().unwrap_or_default(), who.groups()))
        })
        .service(Verify::new(Accounts::new([User::plain("client", "client_password")])?));
    let listener = Listener::bind(&[(Ipv4Addr::LOCALHOST, port(3, 8443)?).into()])?;
    println!("clients: {}", listener.local_addr()?);
    let gateway = Gateway::new(login, clients.clone(), Config::default());
    let gateway = gateway.serve(listener, tls, CancellationToken::new());

    // The site, with one page about the gateway and one layer in front.
    let tunnels = TaskTracker::new();
    let site = Router::new()
        .route("/", get("This is the site.\n"))
        .route(
            "/clients",
            get(async |State(clients): State<Clients>| {
                clients
                    .connected()
                    .iter()
                    .map(|client| format!("{} of {}\n", client.id(), client.group()))
                    .collect::<String>()
            }),
        )
        .with_state(clients)
        .layer(from_fn_with_state((stack, tunnels.clone()), proxy));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port(2, 8080)?)).await?;
    println!("http: {}", listener.local_addr()?);
    let site = site.into_make_service_with_connect_info::<SocketAddr>();
    tokio::select! {
        end = axum::serve(listener, site) => Ok(end?),
        () = gateway => Ok(()),
        end = tokio::signal::ctrl_c() => Ok(end?),
    }
}

/// The layer: a CONNECT is for the gateway, everything else for the site.
async fn proxy<M: GatewayStack>(
    State((stack, tunnels)): State<(M, TaskTracker)>,
    ConnectInfo(source): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if request.method() != Method::CONNECT {
        return next.run(request).await;
    }
    match connect(stack, tunnels, source, request).await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(error) => refusal(Outcome::of(&*error)),
    }
}

/// A front in a few lines: credentials and target from the request, the stack's answer, and then bytes.
async fn connect<M: GatewayStack>(
    stack: M,
    tunnels: TaskTracker,
    source: SocketAddr,
    request: Request,
) -> Result<(), BoxError> {
    let target = request.uri().authority().ok_or(Outcome::InvalidTarget)?;
    let target = Target::parse(target.as_str())?;
    let login = Login::new(credentials(request.headers()), source, Front::HTTP);
    let stream = stack.login(login).await?.dial(Dial::tcp(target, source, Front::HTTP)).await?;
    tunnels.spawn(async move {
        // Once the 200 has left, hyper gives the connection back, with what the user has sent since.
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let Ok(parts) = downcast::<TokioIo<TcpStream>>(upgraded) else { return };
        relay(parts.io.into_inner(), stream, RelayConfig::default()).with_early(parts.read_buf).await;
    });
    Ok(())
}

fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    let basic = headers.get(header::PROXY_AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let pair = String::from_utf8(STANDARD.decode(basic).ok()?).ok()?;
    let (username, password) = pair.split_once(':')?;
    Some(Credentials::new(username, password))
}

/// The few outcomes that a user of this site may meet; `anyproxy-http` has the whole table.
fn refusal(outcome: Outcome) -> Response {
    match outcome {
        Outcome::LoginRequired => {
            let basic = [(header::PROXY_AUTHENTICATE, "Basic realm=\"the site\"")];
            (StatusCode::PROXY_AUTHENTICATION_REQUIRED, basic).into_response()
        }
        Outcome::LockedOut { .. } | Outcome::Limited { .. } => StatusCode::TOO_MANY_REQUESTS.into_response(),
        Outcome::Denied => StatusCode::FORBIDDEN.into_response(),
        Outcome::InvalidTarget => StatusCode::BAD_REQUEST.into_response(),
        Outcome::NoClient | Outcome::Overloaded { .. } => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Outcome::TimedOut => StatusCode::GATEWAY_TIMEOUT.into_response(),
        _ => StatusCode::BAD_GATEWAY.into_response(),
    }
}
