//! Who gets in, and who does not.

mod support;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_core::{BoxError, Login, Outcome};
use anyproxy_gateway::{ClientAccount, Clients, Config, Gateway};
use anyproxy_tunnel::frame::{ClientHello, GoAwayCode, HEADER_LEN};
use anyproxy_tunnel::{Carrier as _, TunnelError, UpgradeError, WebSocket};
use support::{House, request, source};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::time::{Instant, sleep, timeout};
use tower::{ServiceBuilder, service_fn};

const HEAD: &str = "Host: gw.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: anyproxy.v1\r\n";

fn get(path: &str, head: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\n{head}\r\n").into_bytes()
}

#[tokio::test]
async fn a_client_of_an_account_is_connected_in_its_group() {
    let house = House::new(Config::default());
    let peer = house.client("room-1", 1).await;
    assert_eq!(house.ids("blue"), ["room-1"]);
    assert!(house.ids("green").is_empty());
    let client = &house.serving("blue")[0];
    assert_eq!(client.tunnels().map(|tunnel| tunnel.session).collect::<Vec<_>>(), [peer.hello.session]);
    assert_eq!(&**client.account().name(), "east");
}

#[tokio::test]
async fn a_connection_can_be_spawned_whatever_knows_the_accounts() {
    let authenticate = ServiceBuilder::new().timeout(Duration::from_secs(60)).service(service_fn(
        |login: Login| async move {
            let name = login.credentials.ok_or(Outcome::LoginRequired)?.username;
            Ok::<_, BoxError>(Arc::new(ClientAccount::new(name, ["blue"])))
        },
    ));
    let gateway = Gateway::new(authenticate, Clients::default(), Config::default());
    let (near, far) = duplex(64 * 1024);
    tokio::spawn(async move { gateway.serve_connection(far, source()).await });
    WebSocket::connect(near, request("east", "blue")).await.unwrap();
}

#[tokio::test]
async fn w7_each_bad_upgrade_has_its_status() {
    let house = House::new(Config::default());
    for (request, status) in [
        (get("/", HEAD), "404"),
        (get("/ws", &HEAD.replace("Version: 13", "Version: 12")), "426"),
        (get("/ws", &HEAD.replace("Upgrade: websocket\r\n", "")), "426"),
        (get("/ws", &HEAD.replace("dGhlIHNhbXBsZSBub25jZQ==", "short")), "400"),
        (get("/ws", &HEAD.replace("anyproxy.v1", "chat")), "400"),
        (get("/ws", &format!("{HEAD}Origin: https://evil.example\r\n")), "403"),
        (get("/ws", HEAD), "401"),
        (get("/ws", &format!("{HEAD}Authorization: Basic ZWFzdDp3cm9uZw==\r\n")), "401"),
        (get("/ws", &format!("{HEAD}Authorization: Basic d2VzdDp3ZXN0\r\nAnyproxy-Group: green\r\n")), "403"),
        (get("/ws", &format!("{HEAD}X: {}\r\n", "x".repeat(1 << 20))), "431"),
        (get("/ws", &format!("{HEAD}{}", "X: x\r\n".repeat(101))), "431"),
        (
            get("/ws", HEAD).iter().copied().map(|byte| if byte == b':' { b' ' } else { byte }).collect(),
            "400",
        ),
    ] {
        let answer = house.answer(&request).await;
        let shown = String::from_utf8_lossy(&request[..request.len().min(300)]).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{shown}\n{answer}");
    }
    assert!(house.clients.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_says_no_hello_is_told_only_where_the_whole_login_has_longer() {
    for (limit, told) in [(10, false), (60, true)] {
        let mut config = Config::default();
        config.handshake_timeout = Duration::from_secs(limit);
        let house = House::new(config);
        let pipe = house.pipe();
        // As TLS takes a while.
        sleep(Duration::from_secs(1)).await;
        let mut carrier = WebSocket::connect(pipe, request("east", "blue")).await.unwrap();
        let upgraded = Instant::now();
        let word = poll_fn(|cx| carrier.poll_recv(cx)).await.and_then(Result::ok);
        assert_eq!(upgraded.elapsed().as_secs(), if told { 10 } else { limit - 1 });
        // A GO_AWAY, and its code.
        let code = word.map(|frame| (frame[0], frame[HEADER_LEN]));
        assert_eq!(code, told.then_some((0x0b, 7)));
    }
}

#[tokio::test]
async fn p8_wrong_credentials_are_told_apart_from_a_group_that_is_not_held() {
    let house = House::new(Config::default());
    assert!(matches!(house.upgrade("alice", "blue").await, Err(UpgradeError::Unauthorized)));
    assert!(matches!(house.upgrade("west", "green").await, Err(UpgradeError::Forbidden)));
    assert!(matches!(house.upgrade("west", "default").await, Err(UpgradeError::Forbidden)));
}

#[tokio::test(start_paused = true)]
async fn w8_the_whole_login_has_one_deadline() {
    let house = House::new(Config::default());
    let started = Instant::now();
    // Silent from the start; silent within the head; silent after the upgrade.
    let mut silent = [house.pipe(), house.pipe(), house.pipe()];
    silent[1].write_all(b"GET /ws HT").await.unwrap();
    let head = format!("{HEAD}Authorization: Basic ZWFzdDplYXN0\r\nAnyproxy-Group: blue\r\n");
    silent[2].write_all(&get("/ws", &head)).await.unwrap();
    for mut pipe in silent {
        let mut answer = Vec::new();
        let _ = pipe.read_to_end(&mut answer).await;
    }
    let took = started.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(11)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn w8_a_head_that_drips_does_not_move_the_deadline() {
    let house = House::new(Config::default());
    let (mut pipe, mut task) = house.pipe_and_task();
    let started = Instant::now();
    while timeout(Duration::from_secs(1), &mut task).await.is_err() {
        let _ = pipe.write_all(b"x").await;
    }
    assert!(started.elapsed() <= Duration::from_secs(11));
}

#[tokio::test]
async fn w8_a_crowd_that_never_logs_in_makes_way_for_a_client() {
    let house = House::new({
        let mut config = Config::default();
        config.max_unauthenticated = 8;
        config
    });
    let mut crowd: Vec<_> = (0..20).map(|_| house.pipe()).collect();
    let _peer = house.client("room-1", 1).await;
    let mut buf = [0; 1];
    for pipe in &mut crowd[..12] {
        assert_eq!(pipe.read(&mut buf).await.unwrap_or(0), 0, "the oldest are gone");
    }
    assert_eq!(house.ids("blue"), ["room-1"]);
}

#[tokio::test]
async fn a13_a_client_without_a_decent_name_is_sent_away() {
    let house = House::new(Config::default());
    for id in ["", "a\nb", "\u{1b}[2J"] {
        match house.connect("east", "blue", ClientHello::new(id, 1)).await {
            Err(TunnelError::Refused(go_away)) => assert_eq!(go_away.code, GoAwayCode::Refused),
            Err(TunnelError::Peer(_) | TunnelError::Carrier(_)) => {}
            other => panic!("{id:?}: {:?}", other.err()),
        }
    }
    assert!(house.clients.is_empty());
}
