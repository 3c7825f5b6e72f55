//! A whole client against a gateway of TLS, WebSocket and frames that the test holds in its hand.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_acl::{Pattern, Policy, Rules};
use anyproxy_client::{Client, ClientTls, Config, Handle, OpenPort, Replicas, Transport};
use anyproxy_core::{Credentials, Target};
use anyproxy_tunnel::frame::{ClientHello, GatewayHello, HostRef, Open, PortRequest};
use anyproxy_tunnel::{CloseReason, Tunnel, WebSocket, accept};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_util::sync::{CancellationToken, DropGuard};

#[tokio::test]
async fn a_client_logs_in_and_serves_and_comes_back() {
    let gateway = Gateway::start().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = gateway.client(|config| {
        config.group = "büro".into();
        let target = Target::parse("127.0.0.1:22").unwrap();
        config.open_ports = vec![OpenPort::new(2222, target, Transport::Tcp)];
    });
    for round in 0..2 {
        let (request, hello, tunnel, cut) = gateway.welcome().await;
        assert_eq!(request.uri().path(), "/ws");
        assert_eq!(request.headers()["authorization"], "Basic dXNlcjpjYW5hcnk=");
        assert_eq!(request.headers()["anyproxy-group"].as_bytes(), "büro".as_bytes());
        assert_eq!(hello.client_id, "printer-room");
        assert_eq!(hello.ports, [PortRequest { port: 2222, transport: Transport::Tcp }]);
        assert_eq!(*client.instance.get_or_insert(hello.instance), hello.instance, "round {round}");
        client.has_tunnels(1).await;

        let address = target.local_addr().unwrap();
        let (mut stream, _) =
            tunnel.open(Open::tcp(HostRef::Ip(address.ip()), address.port())).await.unwrap();
        let (mut socket, _) = target.accept().await.unwrap();
        socket.write_all(b"hello").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        drop(cut);
        client.has_tunnels(0).await;
    }
}

#[tokio::test]
async fn r7_a_panic_in_a_stream_s_task_ends_that_stream_alone() {
    keep_log();
    let gateway = Gateway::start().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = gateway.client(|config| {
        let nowhere = Pattern::parse("*.test").unwrap();
        config.rules = Policy::new([Rules::forbidden("forbidden_hosts", [nowhere.into()])]);
    });
    let (_, _, tunnel, _cut) = gateway.welcome().await;
    client.has_tunnels(1).await;
    let address = target.local_addr().unwrap();
    let open = || tunnel.open(Open::tcp(HostRef::Ip(address.ip()), address.port()));
    let (mut kept, _) = open().await.unwrap();
    let (mut socket, _) = target.accept().await.unwrap();

    // The access line of a refusal is written by the stream's task, and panics there.
    TRAP.set(Some("outcome=\"denied\""));
    let forbidden = tunnel.open(Open::tcp(HostRef::Name("printer.test".into()), 631));
    let error = timeout(Duration::from_secs(30), forbidden).await.expect("an answer").unwrap_err();
    assert!(error.to_string().contains("the client gave no answer"), "{error}");
    assert_eq!(TRAP.take(), None, "it has panicked");

    socket.write_all(b"still here").await.unwrap();
    kept.read_exact(&mut [0; 10]).await.unwrap();
    open().await.unwrap();
    client.has_tunnels(1).await;
}

#[tokio::test]
async fn r7_a_panic_in_the_supervision_of_a_tunnel_costs_that_tunnel_and_another_comes() {
    keep_log();
    let gateway = Gateway::start().await;
    TRAP.set(Some("a tunnel to the gateway stands"));
    let client = gateway.client(|_| {});
    let (_, _, _first, _cut) = gateway.welcome().await;
    let (_, _, _second, _cut) = gateway.welcome().await;
    assert_eq!(TRAP.take(), None, "it has panicked");
    client.has_tunnels(1).await;
    client.stopped().await;
}

#[tokio::test]
async fn wrong_credentials_are_said_plainly_by_one_tunnel_at_a_time_and_never_logged() {
    keep_log();
    let gateway = Gateway::start().await;
    let client = gateway.client(|config| {
        config.replicas = Replicas::exactly(3);
        (config.connect_timeout, config.handshake_timeout) = (PATIENT, PATIENT);
    });
    let began = Instant::now();
    for attempt in 0..3 {
        // A minute is not waited for.
        let (tcp, _) = gateway.listener.accept().await.unwrap();
        if attempt > 0 {
            tokio::time::resume();
        }
        let mut tls = gateway.tls.accept(tcp).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tls.read_u8().await.unwrap());
        }
        tls.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        tls.shutdown().await.unwrap();
        assert_eq!(client.handle.tunnels(), 0);
        // The client has heard it.
        let _ = tls.read_to_end(&mut Vec::new()).await;
        tokio::time::pause();
    }
    tokio::time::resume();
    let waited = began.elapsed().as_secs();
    assert!((60..=95).contains(&waited), "twice 30 to 45 s, however many tunnels there are: {waited}");
    client.stopped().await;
    let log = logged();
    assert!(log.contains("ERROR") && log.contains("401") && log.contains("auth_password"), "{log}");
    assert!(!log.contains("canary") && !log.contains("dXNlcjpjYW5hcnk"), "{log}");
}

#[tokio::test]
async fn w9_nothing_is_said_to_a_gateway_with_a_foreign_certificate() {
    keep_log();
    let (gateway, other) = (Gateway::start().await, Gateway::start().await);
    let client = gateway.client(|config| {
        config.tls = ClientTls::new(vec![other.certificate.clone()], None).unwrap();
    });
    for _ in 0..2 {
        assert!(gateway.accept().await.is_err(), "a handshake with an unknown gateway went through");
    }
    client.stopped().await;
    assert!(logged().contains("gateway_tls_cert"), "{}", logged());
}

#[tokio::test]
async fn f3_a_gateway_that_says_nothing_is_given_up() {
    let gateway = Gateway::start().await;
    let client = gateway.client(|config| config.handshake_timeout = Duration::from_millis(50));
    let _silent = gateway.listener.accept().await.unwrap();
    let _again = timeout(Duration::from_secs(5), gateway.listener.accept()).await.expect("another try");
    client.stopped().await;
}

#[tokio::test]
async fn a_new_tunnel_stands_before_the_old_one_is_drained() {
    let gateway = Gateway::start().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = gateway.client(|_| {});
    let (_, _, old, _old) = gateway.welcome().await;
    let address = target.local_addr().unwrap();
    let (mut stream, _) = old.open(Open::tcp(HostRef::Ip(address.ip()), address.port())).await.unwrap();
    let (mut socket, _) = target.accept().await.unwrap();
    old.drain();
    let (_, _, _new, _cut) = gateway.welcome().await;
    client.has_tunnels(1).await;
    stream.write_all(b"still here").await.unwrap();
    socket.read_exact(&mut [0; 10]).await.unwrap();
}

#[tokio::test]
async fn replicas_are_tunnels_of_one_instance() {
    let gateway = Gateway::start().await;
    let client = gateway.client(|config| config.replicas = Replicas::exactly(3));
    let mut tunnels = Vec::new();
    for _ in 0..3 {
        tunnels.push(gateway.welcome().await);
    }
    client.has_tunnels(3).await;
    assert!(tunnels.iter().all(|(_, hello, ..)| hello.instance == tunnels[0].1.instance));
    client.stopped().await;
}

#[tokio::test]
async fn a_full_tunnel_gets_company_which_is_given_back_after_a_calm_minute() {
    let gateway = Gateway::start().await;
    let line = slow_line(gateway.listener.local_addr().unwrap()).await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = target.local_addr().unwrap();
    // Targets that send without an end.
    let source = tokio::spawn(async move {
        let mut sources = JoinSet::new();
        while let Ok((mut socket, _)) = target.accept().await {
            sources.spawn(async move { while socket.write_all(&[0; 65_536]).await.is_ok() {} });
        }
    });
    let client = gateway.client(|config| {
        config.gateways = vec![line.try_into().unwrap()];
        config.replicas = Replicas { min: 1, max: 2 };
        config.tunnel.mux.ping_timeout = PATIENT;
    });
    let (_, hello, first, _first) = gateway.welcome().await;
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let (mut stream, _) = first.open(Open::tcp(HostRef::Ip(address.ip()), address.port())).await.unwrap();
        readers.spawn(async move { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await });
    }
    let (_, other, second, _cut) = gateway.welcome().await;
    assert_eq!(other.instance, hello.instance);
    client.has_tunnels(2).await;

    // An association on each, so that neither is given back: its source port would change.
    let loopback = HostRef::Ip(address.ip());
    let both = [first.open(Open::udp(1, loopback.clone(), 9)), second.open(Open::udp(2, loopback, 9))];
    let mut flows = futures_util::future::try_join_all(both).await.unwrap();

    // Nobody reads any more, and the minute is not waited for.
    readers.shutdown().await;
    source.abort();
    let over = async {
        while first.streams() > 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), over).await.unwrap();
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(100)).await;
    client.has_tunnels(2).await;
    drop(flows.pop());
    let mut tunnels = client.handle.watch_tunnels();
    timeout(Duration::from_secs(100), tunnels.wait_for(|tunnels| *tunnels == 1)).await.unwrap().unwrap();
    tokio::time::resume();
    let reason = timeout(Duration::from_secs(5), second.closed()).await.unwrap();
    assert!(matches!(reason, CloseReason::Drained), "given back, not lost: {reason:?}");
    assert!(first.accepts_opens());
    client.stopped().await;
}

#[tokio::test]
async fn a_client_that_is_dropped_cuts_its_tunnels() {
    let gateway = Gateway::start().await;
    let client = gateway.client(|_| {});
    let (_, _, tunnel, _cut) = gateway.welcome().await;
    client.has_tunnels(1).await;
    client.running.abort();
    timeout(Duration::from_secs(5), tunnel.closed()).await.expect("the tunnel ends");
}

// === Helpers ===

/// Where time is invented and the kernel's is not, a ping may find its answer late.
const PATIENT: Duration = Duration::from_secs(3_600);

struct Gateway {
    listener: TcpListener,
    tls: TlsAcceptor,
    certificate: CertificateDer<'static>,
}

impl Gateway {
    async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate: CertificateDer<'static> = made.cert.into();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener, tls: Arc::new(config).into(), certificate }
    }

    fn client(&self, change: impl FnOnce(&mut Config)) -> Running {
        let mut config = Config::new(
            vec![self.listener.local_addr().unwrap().try_into().unwrap()],
            ClientTls::new(vec![self.certificate.clone()], None).unwrap(),
            "printer-room",
            Credentials::new("user", "canary"),
        );
        change(&mut config);
        let client = Client::new(config).unwrap();
        let (handle, stop) = (client.handle(), CancellationToken::new());
        Running { handle, running: tokio::spawn(client.run(stop.clone())), stop, instance: None }
    }

    async fn accept(&self) -> io::Result<TlsStream<TcpStream>> {
        let accepted = timeout(Duration::from_secs(30), self.listener.accept()).await;
        self.tls.accept(accepted.expect("the client connects")?.0).await
    }

    /// Lets a client in: what it said, and its tunnel, which is cut when the guard is dropped.
    async fn welcome(&self) -> (Request, ClientHello, Tunnel, DropGuard) {
        let tls = self.accept().await.unwrap();
        let mut seen = None;
        #[expect(clippy::result_large_err, reason = "tungstenite's own")]
        let upgrade = |request: &Request, mut response: Response| {
            let protocol = request.headers()["sec-websocket-protocol"].clone();
            assert_eq!(protocol, "anyproxy.v1");
            response.headers_mut().insert("sec-websocket-protocol", protocol);
            seen = Some(request.clone());
            Ok(response)
        };
        let upgraded = tokio_tungstenite::accept_hdr_async(tls, upgrade).await.unwrap();
        let mut config = anyproxy_tunnel::Config::default();
        config.mux.ping_timeout = PATIENT;
        let accepting = accept(WebSocket::server(upgraded.into_inner()), config).await.unwrap();
        let hello = accepting.hello().clone();
        let (tunnel, driver) = accepting.finish(GatewayHello::new(1)).unwrap();
        let cut = CancellationToken::new();
        tokio::spawn(cut.clone().run_until_cancelled_owned(driver));
        (seen.unwrap(), hello, tunnel, cut.drop_guard())
    }
}

/// A way to `gateway` that takes some 800 kB a second from each client.
async fn slow_line(gateway: SocketAddr) -> SocketAddr {
    let entry = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = entry.local_addr().unwrap();
    tokio::spawn(async move {
        let mut lines = JoinSet::new();
        while let Ok((client, _)) = entry.accept().await {
            let (mut from_client, mut to_client) = client.into_split();
            let gateway = TcpStream::connect(gateway).await.unwrap();
            let (mut from_gateway, mut to_gateway) = gateway.into_split();
            lines.spawn(async move { drop(tokio::io::copy(&mut from_gateway, &mut to_client).await) });
            lines.spawn(async move {
                let mut packet = [0; 16 * 1024];
                while let Ok(length @ 1..) = from_client.read(&mut packet).await
                    && to_gateway.write_all(&packet[..length]).await.is_ok()
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
    });
    address
}

struct Running {
    handle: Handle,
    running: JoinHandle<()>,
    stop: CancellationToken,
    instance: Option<u128>,
}

impl Running {
    async fn has_tunnels(&self, wanted: usize) {
        let mut tunnels = self.handle.watch_tunnels();
        timeout(Duration::from_secs(5), tunnels.wait_for(|tunnels| *tunnels == wanted))
            .await
            .unwrap()
            .unwrap();
    }

    async fn stopped(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(5), self.running).await.expect("the client stops").unwrap();
    }
}

/// What this test has logged: one subscriber for the process, and a page for each test's thread.
fn logged() -> String {
    PAGE.with_borrow(|page| String::from_utf8_lossy(page).into_owned())
}

/// Keeps a log from here on.
fn keep_log() {
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::TRACE).with_writer(|| Page);
    // The first test of the process does it for all.
    let _ = subscriber.try_init();
    PAGE.take();
}

thread_local! {
    static PAGE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Words of a line that is not written: whoever logs it panics, once.
    static TRAP: Cell<Option<&'static str>> = const { Cell::new(None) };
}

struct Page;

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Ok(Some(trap)) = TRAP.try_with(Cell::get)
            && String::from_utf8_lossy(bytes).contains(trap)
        {
            TRAP.set(None);
            panic!("injected");
        }
        let _ = PAGE.try_with(|page| page.borrow_mut().extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
