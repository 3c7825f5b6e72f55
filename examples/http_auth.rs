//! Accounts that live elsewhere: an HTTP service is asked who a user is.
//!
//! ```sh
//! cargo run -p anyproxy-examples --example http_auth
//! curl -x http://alice:secret@127.0.0.1:8080 http://example.com/
//! ```
//!
//! With a URL as argument that service is asked; without one, the example runs a tiny one of its own. It gets what the
//! user presented as `Authorization: Basic`, and answers 200 with the user's group in a `group` header, or 401.
//!
//! Whatever answers a `Login` with an `Identity` is a `Verifier`; here it is one function. HTTP users log in with every
//! request, so a service that is far away wants a cache in between, which would be a layer on the verifier.

use std::env;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyproxy_auth::{AuthLayer, LockoutLayer};
use anyproxy_core::{Account, BoxError, Credentials, DEFAULT_GROUP, Dial, Identity, Login, Outcome};
use anyproxy_front::Listener;
use anyproxy_http::HttpProxy;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::{ServiceBuilder, service_fn};

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let service: Uri = match env::args().nth(1).as_deref() {
        None | Some("") => own_service().await?,
        Some(url) => url.parse()?,
    };
    let port = env::args().nth(2).map_or(Ok(8080), |port| port.parse())?;

    let client: HttpClient = Client::builder(TokioExecutor::new()).build_http();
    let verifier = ServiceBuilder::new()
        .timeout(Duration::from_secs(2)) // a service that hangs is a login that failed, and not a user who waits
        .service_fn(move |login: Login| ask(client.clone(), service.clone(), login.credentials));
    let stack = ServiceBuilder::new()
        .layer(LockoutLayer::default()) // guesses stop here, and never reach the service
        .layer(AuthLayer::new(verifier))
        .service(service_fn(|dial: Dial| async move {
            println!("{} of group {} dials {}", dial.identity, dial.identity.group(), dial.target);
            TcpStream::connect(dial.target.to_string()).await.map(BufReader::new)
        }));

    let listener = Listener::bind(&[(Ipv4Addr::LOCALHOST, port).into()])?;
    println!("http: {}", listener.local_addr()?);
    tokio::select! {
        () = HttpProxy::new(stack).serve(listener, CancellationToken::new()) => Ok(()),
        end = tokio::signal::ctrl_c() => Ok(end?),
    }
}

/// The verifier: asks the service about these credentials.
async fn ask(client: HttpClient, service: Uri, login: Option<Credentials>) -> Result<Identity, BoxError> {
    let Credentials { username, password } = login.ok_or(Outcome::LoginRequired)?;
    let basic = STANDARD.encode(format!("{username}:{}", password.expose_secret()));
    let request = Request::get(service).header(header::AUTHORIZATION, format!("Basic {basic}"));
    let response = client.request(request.body(Empty::new())?).await?;
    match response.status() {
        StatusCode::OK => {
            let group = response.headers().get("group").and_then(|group| group.to_str().ok());
            Ok(Account::new(username, [group.unwrap_or(DEFAULT_GROUP)]).into())
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Outcome::LoginRequired.into()),
        // Not the user's fault: an outcome that is not named here is `Internal`, and is answered with 500.
        status => Err(format!("the account service answered {status}").into()),
    }
}

/// A service that knows one account.
async fn own_service() -> Result<Uri, BoxError> {
    let alice = format!("Basic {}", STANDARD.encode("alice:secret"));
    let known = move |headers: HeaderMap| async move {
        if headers.get(header::AUTHORIZATION).is_some_and(|login| login == alice.as_str()) {
            Ok([("group", "blue")])
        } else {
            Err(StatusCode::UNAUTHORIZED)
        }
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/", get(known))).await });
    Ok(format!("http://{address}/").parse()?)
}
