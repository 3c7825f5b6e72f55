//! The whole way in, over TCP and TLS.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyproxy_core::{Dial, DialService as _, Endpoints as _};
use anyproxy_front::{Listener, RelayConfig, Tls};
use anyproxy_gateway::{Authenticate, Clients, Config, Gateway, Ports};
use anyproxy_tunnel::frame::{ClientHello, OpenOk, PortRequest, Transport};
use anyproxy_tunnel::{Config as TunnelConfig, Request, WebSocket};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use support::{Peer, accounts, dial, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// A certificate authority, and what it has signed.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec!["an authority".to_owned()]).expect("a name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a root");
        Arc::new(roots)
    }

    fn issue(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }
}

struct House {
    address: SocketAddr,
    clients: Clients,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

fn house(authority: &Authority, client_authority: Option<&Authority>) -> House {
    let clients = Clients::default();
    house_of(
        Gateway::new(accounts(1), clients.clone(), Config::default()),
        clients,
        authority,
        client_authority,
    )
}

fn house_of<A: Authenticate>(
    gateway: Gateway<A>,
    clients: Clients,
    authority: &Authority,
    client_authority: Option<&Authority>,
) -> House {
    let (chain, key) = authority.issue("gw.example");
    let server = ServerConfig::builder();
    let server = match client_authority {
        None => server.with_no_client_auth(),
        Some(clients) => server.with_client_cert_verifier(
            WebPkiClientVerifier::builder(clients.roots()).build().expect("a verifier"),
        ),
    };
    let tls = Tls::new(Arc::new(server.with_single_cert(chain, key).expect("a server")));
    let listener = Listener::bind(&[(Ipv4Addr::LOCALHOST, 0).into()]).expect("a free port");
    let address = listener.local_addr().expect("a bound port");
    let stop = CancellationToken::new();
    let serving = tokio::spawn(gateway.serve(listener, tls, stop.clone()));
    House { address, clients, stop, serving }
}

async fn connect(
    house: &House,
    config: ClientConfig,
) -> Result<Peer, Box<dyn std::error::Error + Send + Sync>> {
    connect_with(house, config, ClientHello::new("room-1", 1)).await
}

async fn connect_with(
    house: &House,
    config: ClientConfig,
    hello: ClientHello,
) -> Result<Peer, Box<dyn std::error::Error + Send + Sync>> {
    let tcp = TcpStream::connect(house.address).await?;
    let tls = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("gw.example")?, tcp).await?;
    let carrier = WebSocket::connect(tls, request("east", "blue")).await?;
    let (tunnel, requests, hello, driver) =
        anyproxy_tunnel::connect(carrier, hello, TunnelConfig::default()).await?;
    Ok(Peer { tunnel, requests, hello, driver: tokio::spawn(driver), task: None })
}

fn trusting(authority: &Authority) -> ClientConfig {
    ClientConfig::builder().with_root_certificates(authority.roots()).with_no_client_auth()
}

#[tokio::test]
async fn r6_a_stop_closes_the_ports_of_clients_at_once_and_their_connections_go_on() {
    let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let clients = Clients::default();
    let registry = clients.clone();
    let dials = tower::service_fn(move |dial: Dial| {
        let client = registry.snapshot(&dial)[0].clone();
        async move { client.dial(dial).await }
    });
    let ports = Ports::new(Ipv4Addr::LOCALHOST.into(), dials, RelayConfig::default());
    let gateway = Gateway::with_ports(accounts(port), clients.clone(), Config::default(), ports);
    let authority = Authority::new();
    let house = house_of(gateway, clients, &authority, None);
    let hello = ClientHello {
        ports: vec![PortRequest { port, transport: Transport::Tcp }],
        ..ClientHello::new("room-1", 1)
    };
    let echo = connect_with(&house, trusting(&authority), hello).await.unwrap().echo();
    let mut user = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    user.write_all(b"before").await.unwrap();
    let mut got = [0; 6];
    user.read_exact(&mut got).await.unwrap();
    house.stop.cancel();
    let closed = async {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closed).await.expect("no longer open");
    user.write_all(b"behind").await.unwrap();
    user.read_exact(&mut got).await.unwrap();
    drop(user);
    house.serving.await.unwrap();
    echo.await.unwrap();
}

#[tokio::test]
async fn a_client_is_served_over_tls_and_r6_a_stop_ends_its_streams_whole() {
    let authority = Authority::new();
    let house = house(&authority, None);
    let echo = connect(&house, trusting(&authority)).await.unwrap().echo();
    let mut stream = house.clients.snapshot(&dial("blue"))[0].dial(dial("blue")).await.unwrap();
    house.stop.cancel();
    while TcpStream::connect(house.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(&[7; 100_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got.len(), 100_000);
    drop(stream);
    house.serving.await.unwrap();
    echo.await.unwrap();
    assert!(house.clients.is_empty());
}

#[tokio::test]
async fn a_client_is_told_to_go_elsewhere_while_its_streams_live() {
    let authority = Authority::new();
    let house = house(&authority, None);
    let mut peer = connect(&house, trusting(&authority)).await.unwrap();
    let dialing = tokio::spawn(house.clients.snapshot(&dial("blue"))[0].dial(dial("blue")));
    let Some(Request::Open(request)) = peer.requests.next().await else { panic!("no open") };
    let far = request.accept(OpenOk::default());
    let near = dialing.await.unwrap().unwrap();
    house.stop.cancel();
    assert!(matches!(peer.requests.next().await, Some(Request::GoAway { .. })));
    assert!(!house.serving.is_finished());
    drop((near, far));
    house.serving.await.unwrap();
    peer.driver.await.unwrap();
}

#[tokio::test]
async fn w10_with_a_client_authority_only_its_certificates_get_in() {
    let (authority, of_clients, other) = (Authority::new(), Authority::new(), Authority::new());
    let house = house(&authority, Some(&of_clients));
    let config = |(chain, key)| {
        let builder = ClientConfig::builder().with_root_certificates(authority.roots());
        builder.with_client_auth_cert(chain, key).unwrap()
    };
    assert!(connect(&house, trusting(&authority)).await.is_err());
    assert!(connect(&house, config(other.issue("room-1"))).await.is_err());
    assert!(house.clients.is_empty());
    let _peer = connect(&house, config(of_clients.issue("room-1"))).await.unwrap();
    assert_eq!(house.clients.len(), 1);
}

#[tokio::test]
async fn w8_stalled_tls_handshakes_do_not_keep_a_client_out() {
    let authority = Authority::new();
    let house = house(&authority, None);
    let mut stalled = Vec::new();
    for _ in 0..300 {
        stalled.push(TcpStream::connect(house.address).await.unwrap());
    }
    let client = tokio::time::timeout(Duration::from_secs(2), connect(&house, trusting(&authority)));
    let _peer = client.await.expect("in time").unwrap();
    // The oldest 44 had to go at least.
    for tcp in &mut stalled[..44] {
        assert_eq!(tcp.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
}
