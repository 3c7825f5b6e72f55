//! `anyproxy demo`: gateway, client and a small service on loopback, with a throw-away certificate and password.
//!
//! The demo runs the same code as `gateway` and `client`, from a file it writes for itself.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyproxy_config::File;
use anyproxy_core::Target;
use anyproxy_workers::Workers;
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::runtime::Runtime;
use crate::settings::{self, Protocol, Source};
use crate::{cert, client, gateway, logging, process};

/// A throw-away certificate need not outlive the week.
const LIFETIME: Duration = Duration::from_secs(7 * 86_400);

/// Runs the demo until a signal ends it.
pub(crate) fn run() -> Result<ExitCode, Failure> {
    let _logging = logging::start(Some(&anyproxy_config::Log {
        level: Some(anyproxy_config::LogLevel::Warn),
        ..Default::default()
    }));
    process::raise_open_files();
    Runtime::start()?.run(|stop, hangups, workers| async move {
        // It has no file to read again; a terminal that hangs up is gone, and so is who looked at it.
        let hung_up = async {
            hangups.next().await;
            stop.cancel();
            pending::<Infallible>().await
        };
        tokio::select! {
            ended = demo(stop.clone(), workers) => ended,
            never = hung_up => match never {},
        }
    })
}

async fn demo(stop: CancellationToken, workers: Workers) -> Result<(), Failure> {
    let dir = tempfile::tempdir().map_err(|error| Failure::of("a folder for the certificate", error))?;
    let pair = cert::self_signed(&["127.0.0.1".to_owned()], LIFETIME);
    let pair = pair.map_err(|error| Failure::of("certificate", error))?;
    cert::write(dir.path(), &pair).map_err(|error| Failure::of("certificate", error))?;
    let password = password();
    let source = file(&dir.path().display().to_string(), &password)?;

    let section = source.required("gateway", source.file.gateway.as_ref())?;
    let gateway = gateway::Bound::new(settings::Gateway::new(&source, section)?, None, &workers)?;
    let section = source.required("client", source.file.client.as_ref())?;
    let mut client = settings::Client::new(&source, section)?;
    let address = gateway.clients_addr()?;
    client.config.gateways = vec![Target::try_from(address).map_err(|error| Failure::of(address, error))?];

    let bound = async {
        let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        announce(&gateway, service.local_addr()?, &password)?;
        Ok::<_, io::Error>(service)
    };
    let service = bound.await.map_err(|error| Failure::of("demo", error))?;
    let (gateway, client, ()) = tokio::join!(
        gateway.serve(None, stop.clone()),
        client::serve(client, None, None, &workers, stop.clone()),
        private_service(service, stop.clone()),
    );
    gateway.and(client)
}

/// The demo's file: about the smallest that serves both fronts. Port 0 is any free port.
fn file(dir: &str, password: &str) -> Result<Source, Failure> {
    let text = format!(
        "proxy:
  http: {{ listen_addr: '127.0.0.1:0', auth_username: demo, auth_password: {password} }}
  socks5: {{ listen_addr: '127.0.0.1:0', auth_username: demo, auth_password: {password} }}
gateway:
  listen_addr: '127.0.0.1:0'
  tls_cert: {dir}/server.crt
  tls_key: {dir}/server.key
  auth_username: client
  auth_password: {password}
client:
  gateway_addr: '127.0.0.1:1'
  gateway_tls_cert: {dir}/server.crt
  client_id: demo
  auth_username: client
  auth_password: {password}
"
    );
    Ok(Source { file: File::parse("demo", &text)?, name: "demo".into(), path: None })
}

/// A password nobody has to remember.
fn password() -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(16).collect()
}

/// What to try, each a line of its own.
fn announce(gateway: &gateway::Bound, target: SocketAddr, password: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "A private service is at {target}; gateway and client run. Try, in another terminal:")?;
    if let Some(http) = gateway.front_addr(Protocol::Http) {
        writeln!(out, "curl -x http://demo:{password}@{http} http://{target}/")?;
        writeln!(out, "curl -p -x http://demo:{password}@{http} http://{target}/")?;
    }
    if let Some(socks5) = gateway.front_addr(Protocol::Socks5) {
        writeln!(out, "curl -x socks5h://demo:{password}@{socks5} http://{target}/")?;
    }
    writeln!(out, "Ctrl-C ends it.")?;
    out.flush()
}

/// What the client reaches and nobody else was told of: a service that says hello.
async fn private_service(listener: TcpListener, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((connection, _)) = accepted else { continue };
        connections.spawn(http1::Builder::new().serve_connection(
            TokioIo::new(connection),
            service_fn(|_| async {
                let text = "Hello from a private service, through AnyProxy.\n";
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(text.as_bytes()))))
            }),
        ));
        while connections.try_join_next().is_some() {}
    }
}
