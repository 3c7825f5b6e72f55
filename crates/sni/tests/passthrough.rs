//! The front from outside: hellos of a real TLS client, targets in memory.

use std::future::{pending, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyproxy_core::{BoxError, Dial, Front, GatewayStack, Login, Outcome};
use anyproxy_sni::Sni;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tower::make::Shared;
use tower::{ServiceBuilder, service_fn};

#[tokio::test]
async fn the_target_hears_everything_from_the_first_byte() {
    let (mut stage, mut user) = Stage::new();
    // The hello, and what a user with 0-RTT sends at once behind it.
    let said = [hello("www.example.com"), b"\x17\x03\x03\x00\x05early".to_vec()].concat();
    user.write_all(&said).await.unwrap();
    let (target, mut io) = stage.target().await;
    assert_eq!(target, "www.example.com:8443");
    let mut heard = vec![0; said.len()];
    io.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, said);
    io.write_all(b"server hello").await.unwrap();
    let mut answer = [0; 12];
    user.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"server hello");
}

#[tokio::test]
async fn a_connection_can_be_spawned_whatever_its_stack_is_made_of() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dials = ServiceBuilder::new().timeout(Duration::from_secs(60)).service(service_fn(
        move |_: Dial| async move { Ok::<_, BoxError>(BufReader::new(TcpStream::connect(address).await?)) },
    ));
    let front = Sni::new(Shared::new(dials), |_| true);
    let (mut user, far) = duplex(4096);
    let stop = CancellationToken::new();
    tokio::spawn(async move { front.serve_connection(far, ([192, 0, 2, 1], 4000).into(), &stop).await });
    let said = hello("www.example.com");
    user.write_all(&said).await.unwrap();
    let mut heard = vec![0; said.len()];
    listener.accept().await.unwrap().0.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, said);
}

#[tokio::test]
async fn r6_after_stop_no_hello_is_waited_for() {
    let nobody =
        service_fn(|_: Dial| ready(Err::<BufReader<DuplexStream>, _>(io::Error::other(Outcome::Denied))));
    let said = hello("www.example.com");
    for said in [&b""[..], &said[..100]] {
        let stop = CancellationToken::new();
        let (mut user, task) = serve_until(Shared::new(nobody), 1024, &stop);
        user.write_all(said).await.unwrap();
        stop.cancel();
        timeout(Duration::from_secs(5), task).await.expect("not held up").unwrap();
    }
    // One that is there is answered.
    let stop = CancellationToken::new();
    let (mut user, _task) = serve_until(Shared::new(nobody), 4096, &stop);
    user.write_all(&said).await.unwrap();
    stop.cancel();
    assert_eq!(rest(user).await, alert(49));
}

#[tokio::test]
async fn a_hello_in_pieces_of_one_byte_is_served() {
    let (mut stage, mut user) = Stage::with(1, None);
    let said = hello("www.example.com");
    let length = said.len();
    tokio::spawn(async move {
        user.write_all(&said).await.unwrap();
        pending::<()>().await;
    });
    let (_, mut io) = stage.target().await;
    io.read_exact(&mut vec![0; length]).await.unwrap();
}

#[tokio::test]
async fn a_hello_longer_than_a_record_is_served() {
    let (mut stage, mut user) = Stage::new();
    let said = long_hello(18_000);
    assert!(said.len() > 16 * 1024 + 5, "more than one record: {}", said.len());
    user.write_all(&said).await.unwrap();
    let (_, mut io) = stage.target().await;
    let mut heard = vec![0; said.len()];
    io.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, said);
}

#[tokio::test]
async fn a_hello_without_end_is_refused_and_not_kept() {
    let (stage, mut user) = Stage::new();
    let said = long_hello(50_000);
    let _ = user.write_all(&said).await;
    assert_eq!(rest(user).await, alert(50));
    assert_eq!(stage.asked(), 0);
}

#[tokio::test]
async fn the_name_is_dialled_in_its_one_form() {
    let (mut stage, mut user) = Stage::new();
    user.write_all(&hello("WWW.Example.COM")).await.unwrap();
    assert_eq!(stage.target().await.0, "www.example.com:8443");
}

#[tokio::test]
async fn a_name_that_is_not_served_never_reaches_the_stack() {
    for name in ["www.example.org", "example.com", "www.example.com.evil.org"] {
        let (stage, mut user) = Stage::new();
        user.write_all(&hello(name)).await.unwrap();
        assert_eq!(rest(user).await, alert(112), "{name}");
        assert_eq!(stage.asked(), 0, "{name}");
    }
}

#[tokio::test]
async fn a_hello_without_a_name_never_reaches_the_stack() {
    let (stage, mut user) = Stage::new();
    // A client that dials an address says no name.
    user.write_all(&hello("192.0.2.1")).await.unwrap();
    assert_eq!(rest(user).await, alert(109));
    assert_eq!(stage.asked(), 0);
}

#[tokio::test]
async fn what_is_no_tls_never_reaches_the_stack() {
    for said in [&b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n"[..], b"\x05\x01\x00", &[0xff; 300]] {
        let (stage, mut user) = Stage::new();
        user.write_all(said).await.unwrap();
        user.shutdown().await.unwrap();
        let answer = rest(user).await;
        assert!(answer.is_empty() || answer.starts_with(&[0x15, 3]), "{answer:?}");
        assert_eq!(stage.asked(), 0, "{said:?}");
    }
}

#[tokio::test]
async fn a_hello_perturbed_anywhere_is_answered_or_dialled_and_nothing_else() {
    let whole = hello("www.example.com");
    for place in 0..whole.len() {
        let (_stage, mut user) = Stage::refusing(Outcome::NoClient);
        let mut said = whole.clone();
        said[place] ^= 0x55;
        user.write_all(&said).await.unwrap();
        user.shutdown().await.unwrap();
        let answer = rest(user).await;
        assert!(answer.is_empty() || answer.starts_with(&[0x15, 3]), "{place}: {answer:?}");
    }
}

#[tokio::test]
async fn refusals_of_the_stack_become_alerts() {
    for (outcome, code) in [
        (Outcome::Denied, 49),
        (Outcome::LoginRequired, 49),
        (Outcome::NoClient, 80),
        (Outcome::Unresolved, 112),
    ] {
        let (_stage, mut user) = Stage::refusing(outcome);
        user.write_all(&hello("www.example.com")).await.unwrap();
        assert_eq!(rest(user).await, alert(code), "{outcome}");
    }
}

#[tokio::test]
async fn a_stack_that_wants_a_login_denies() {
    let dials = service_fn(|_: Dial| pending::<io::Result<BufReader<DuplexStream>>>());
    let login = service_fn(move |login: Login| {
        assert_eq!(login.front, Front::SNI);
        let known = login.credentials.is_some();
        ready(if known { Ok(dials) } else { Err(io::Error::other(Outcome::LoginRequired)) })
    });
    let mut user = serve(login, 64 * 1024);
    user.write_all(&hello("www.example.com")).await.unwrap();
    assert_eq!(rest(user).await, alert(49));
}

#[tokio::test(start_paused = true)]
async fn a_slow_hello_is_cut_off_at_the_deadline() {
    let (stage, mut user) = Stage::new();
    let begun = Instant::now();
    let whole = hello("www.example.com");
    user.write_all(&whole[..whole.len() - 1]).await.unwrap();
    assert_eq!(rest(user).await, b"");
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    assert_eq!(stage.asked(), 0);
}

#[tokio::test]
async fn a_user_who_leaves_gives_the_dial_up() {
    let (given_up, mut told) = mpsc::channel::<()>(1);
    let dials = service_fn(move |_: Dial| {
        let given_up = given_up.clone();
        async move {
            // Held until the dial is dropped.
            let _given_up = given_up;
            pending::<io::Result<BufReader<DuplexStream>>>().await
        }
    });
    let mut user = serve(Shared::new(dials), 64 * 1024);
    user.write_all(&hello("www.example.com")).await.unwrap();
    drop(user);
    assert!(told.recv().await.is_none(), "the dial and the front are gone");
}

#[tokio::test]
async fn an_end_is_passed_on_and_the_other_way_goes_on() {
    let (mut stage, mut user) = Stage::new();
    let said = hello("www.example.com");
    user.write_all(&said).await.unwrap();
    let (_, mut io) = stage.target().await;
    io.read_exact(&mut vec![0; said.len()]).await.unwrap();
    user.shutdown().await.unwrap();
    assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
    io.write_all(b"still here").await.unwrap();
    io.shutdown().await.unwrap();
    assert_eq!(rest(user).await, b"still here");
}

#[tokio::test]
async fn a_hello_that_its_dial_leads_back_is_dialled_once_and_refused() {
    let (made, mut led_back) = mpsc::unbounded_channel();
    let dialled = Arc::new(AtomicUsize::new(0));
    let count = dialled.clone();
    let dials = service_fn(move |_: Dial| {
        // Not for ever, should nobody notice.
        let dialled = count.fetch_add(1, Ordering::Relaxed);
        let (near, far) = duplex(64 * 1024);
        let back = if dialled < 8 { Ok(made.send(far)) } else { Err(io::Error::other(Outcome::Denied)) };
        ready(back.map(|_| BufReader::new(near)))
    });
    let front = front(Shared::new(dials));
    let (mut user, _task) = connect(&front);
    user.write_all(&hello("www.example.com")).await.unwrap();
    let leads_back = async {
        while let Some(far) = led_back.recv().await {
            accept(&front, far, &CancellationToken::new());
        }
    };
    tokio::select! {
        heard = rest(user) => assert_eq!(heard, alert(80)),
        () = leads_back => unreachable!("the front dials as long as it stands"),
    }
    assert_eq!(dialled.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn only_the_same_hello_is_a_loop_and_only_while_it_is_passed_on() {
    let (made, mut targets) = mpsc::unbounded_channel();
    let dials = service_fn(move |_: Dial| {
        let (near, far) = duplex(64 * 1024);
        ready(made.send(far).map(|()| BufReader::new(near)))
    });
    let front = front(Shared::new(dials));
    let hellos = [hello("www.example.com"), hello("www.example.com")];
    let mut served = Vec::new();
    for said in &hellos {
        let (mut user, task) = connect(&front);
        user.write_all(said).await.unwrap();
        served.push((user, targets.recv().await.unwrap(), task));
    }
    let again = async || {
        let (mut user, _task) = connect(&front);
        user.write_all(&hellos[0]).await.unwrap();
        user
    };
    tokio::select! {
        heard = rest(again().await) => assert_eq!(heard, alert(80)),
        _ = targets.recv() => panic!("dialled again"),
    }
    for ((user, target, _), said) in served.iter_mut().zip(&hellos) {
        target.read_exact(&mut vec![0; said.len()]).await.unwrap();
        target.write_all(b"server hello").await.unwrap();
        user.read_exact(&mut [0; 12]).await.unwrap();
    }

    let (user, target, task) = served.swap_remove(0);
    drop((user, target));
    task.await.unwrap();
    let _user = again().await;
    targets.recv().await.unwrap().read_exact(&mut vec![0; hellos[0].len()]).await.unwrap();
}

// === The stage ===

/// A front for `*.example.com`, a user who is connected to it, and the targets it dials.
struct Stage {
    targets: mpsc::UnboundedReceiver<(String, DuplexStream)>,
    asked: Arc<AtomicUsize>,
}

impl Stage {
    fn new() -> (Self, DuplexStream) {
        Self::with(64 * 1024, None)
    }

    /// No dial comes through.
    fn refusing(outcome: Outcome) -> (Self, DuplexStream) {
        Self::with(64 * 1024, Some(outcome))
    }

    /// The user's connection carries `room` bytes at a time.
    fn with(room: usize, refusal: Option<Outcome>) -> (Self, DuplexStream) {
        let (made, targets) = mpsc::unbounded_channel();
        let dials = service_fn(move |dial: Dial| {
            assert_eq!(dial.front, Front::SNI);
            let made = made.clone();
            async move {
                if let Some(outcome) = refusal {
                    return Err(io::Error::other(outcome));
                }
                let (near, far) = duplex(64 * 1024);
                let _ = made.send((dial.target.to_string(), far));
                Ok(BufReader::new(near))
            }
        });
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let stack = service_fn(move |_: Login| {
            count.fetch_add(1, Ordering::Relaxed);
            ready(Ok::<_, io::Error>(dials.clone()))
        });
        (Self { targets, asked }, serve(stack, room))
    }

    /// The next target that was dialled.
    async fn target(&mut self) -> (String, DuplexStream) {
        self.targets.recv().await.expect("the stage stands")
    }

    /// How often the stack was asked.
    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn serve(stack: impl GatewayStack, room: usize) -> DuplexStream {
    serve_until(stack, room, &CancellationToken::new()).0
}

fn serve_until(
    stack: impl GatewayStack,
    room: usize,
    stop: &CancellationToken,
) -> (DuplexStream, JoinHandle<()>) {
    let (near, far) = duplex(room);
    (near, accept(&front(stack), far, stop))
}

fn front<M: GatewayStack>(stack: M) -> Sni<M> {
    Sni::new(stack, |target| target.host().to_string().ends_with(".example.com")).with_port(8443)
}

/// A user of `front`.
fn connect(front: &Sni<impl GatewayStack>) -> (DuplexStream, JoinHandle<()>) {
    let (near, far) = duplex(64 * 1024);
    (near, accept(front, far, &CancellationToken::new()))
}

fn accept(front: &Sni<impl GatewayStack>, user: DuplexStream, stop: &CancellationToken) -> JoinHandle<()> {
    let (front, stop) = (front.clone(), stop.clone());
    let source: SocketAddr = "192.0.2.1:4000".parse().expect("an address");
    tokio::spawn(async move { front.serve_connection(user, source, &stop).await })
}

/// What a TLS client says first to a server it knows by `name`.
fn hello(name: &str) -> Vec<u8> {
    first_words(name, Vec::new())
}

/// The same, made longer by about so many bytes.
fn long_hello(length: usize) -> Vec<u8> {
    first_words("www.example.com", vec![vec![b'x'; 250]; length / 251])
}

fn first_words(name: &str, alpn: Vec<Vec<u8>>) -> Vec<u8> {
    let mut config =
        ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = alpn;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut said = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut said).expect("memory does not fail");
    }
    said
}

fn alert(code: u8) -> [u8; 7] {
    [0x15, 3, 3, 0, 2, 2, code]
}

async fn rest(mut user: DuplexStream) -> Vec<u8> {
    let mut all = Vec::new();
    user.read_to_end(&mut all).await.expect("a pipe does not fail");
    all
}
