//! The real program when something runs short: memory, descriptors, patience, the network. `--nocapture` shows the
//! figures; `ANYPROXY_TEST_FULL=1` asks for as much as a release should bear.
//!
//! What is measured here would disturb itself: one test runs at a time.

mod siege;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyproxy_mock_peer::client;
use anyproxy_tests::{
    HttpTarget, Options, PATIENCE, Program, Result, Stage, Target, Way, free_port, head, metric, metric_at,
    run, tool, tunnel, until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use crate::siege::{Cost, Honest, MALLORY, Siege, echo};

/// `user:pass:w0rd`.
const LOGIN: &str = "Proxy-Authorization: Basic dXNlcjpwYXNzOncwcmQ=\r\n";

/// Held by the test that runs.
async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// `usual`, or ten times that where all is asked for.
fn tenfold(usual: usize) -> usize {
    if std::env::var_os("ANYPROXY_TEST_FULL").is_some() { 10 * usual } else { usual }
}

/// Asks for `target`: the code of the answer, and what is behind it.
async fn connect(http: SocketAddr, target: &str) -> Result<(String, TcpStream)> {
    connect_by(TcpStream::connect(http).await?, target).await
}

/// The same by a user for whom the system keeps little, so that what they do not read is the gateway's soon.
async fn connect_narrow(http: SocketAddr, target: &str) -> Result<(String, TcpStream)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    connect_by(socket.connect(http).await?, target).await
}

async fn connect_by(mut stream: TcpStream, target: &str) -> Result<(String, TcpStream)> {
    stream
        .write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{LOGIN}\r\n").as_bytes())
        .await?;
    let head = head(&mut stream).await?;
    Ok((head.split(' ').nth(1).unwrap_or_default().to_owned(), stream))
}

/// The middle, the 99th of a hundred, and the worst.
fn quantiles(times: &mut [Duration]) -> (Duration, Duration, Duration) {
    times.sort_unstable();
    let at = |hundredths: usize| times.get(times.len() * hundredths / 100).copied().unwrap_or_default();
    (at(50), at(99), times.last().copied().unwrap_or_default())
}

// === Memory ===

const MIB: f64 = (1 << 20) as f64;

/// Sends without end.
async fn firehose() -> Result<Target> {
    Target::start(|mut connection| async move {
        let block = vec![7; 64 << 10];
        loop {
            connection.write_all(&block).await?;
        }
    })
    .await
}

/// Takes a connection, and never reads.
async fn wall() -> Result<Target> {
    Target::start(|connection| async move {
        let _connection = connection;
        std::future::pending().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn f9_stalled_streams_shrink_what_others_hold_until_new_ones_are_refused_and_nothing_is_killed()
-> Result {
    const LIMIT_MIB: u64 = 32;
    let _turn = alone().await;
    // Downloads that stall hold memory at the gateway, uploads at the client; each end is the one with little.
    for short in ["gateway", "client"] {
        let options = Options {
            gateway: if short == "gateway" {
                format!("  memory_limit: {LIMIT_MIB}MiB")
            } else {
                String::new()
            },
            client: if short == "client" { format!("  memory_limit: {LIMIT_MIB}MiB") } else { String::new() },
            top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(),
            ..Options::default()
        };
        let stage = Arc::new(Stage::with(&options)?);
        let target = if short == "gateway" { firehose().await? } else { wall().await? };
        let echo_target = Target::echo().await?;
        let mut kept = tunnel(&stage, Way::Socks5, echo_target.addr()).await?;
        echo(&mut kept, b"before").await?;
        let program = if short == "gateway" { &stage.gateway } else { &stage.client };
        assert_eq!(metric(program, "anyproxy_stream_memory_limit_bytes").await?, (LIMIT_MIB << 20) as f64);
        let cost = Cost::begin(program)?;
        let mut stalled = Vec::new();
        let mut uploads = JoinSet::new();
        let deadline = Instant::now() + PATIENCE;
        let refused = loop {
            assert!(Instant::now() < deadline, "{} streams, and none refused", stalled.len() + uploads.len());
            let (code, mut stream) = connect(stage.http_addr(), &target.addr().to_string()).await?;
            if code != "200" {
                break code;
            }
            if short == "gateway" {
                stalled.push(stream);
            } else {
                uploads.spawn(async move {
                    loop {
                        if stream.write_all(&[b'u'; 16 << 10]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        };
        println!("{short}: refused with {refused} after {} stalled streams", stalled.len() + uploads.len());
        assert_eq!(refused, "503");
        // Who lives goes on, in spite of all.
        for _ in 0..20 {
            timeout(PATIENCE, echo(&mut kept, &[b'k'; 4096])).await??;
        }
        let grown = cost.grown_kib(program)?;
        // The streams' bytes; what else a stalled connection costs; what the allocator keeps.
        assert!(grown <= (LIMIT_MIB * 2 + 32) << 10, "{grown} KiB");
        // Users who do not read are gone with their connections; those who write are, once their target is.
        drop((stalled, target));
        uploads.abort_all();
        until("the memory is given back", async || {
            Ok(metric(program, "anyproxy_stream_memory_bytes").await? < (1 << 20) as f64)
        })
        .await?;
        let (code, mut fresh) = connect(stage.http_addr(), &echo_target.addr().to_string()).await?;
        assert_eq!(code, "200", "there is room again");
        echo(&mut fresh, b"after").await?;
    }
    Ok(())
}

/// A control group of memory, version 1 or 2; `None` where none can be made.
struct Group(std::path::PathBuf, bool);

impl Group {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("anyproxy-test-{}", std::process::id());
        for (root, file, old) in [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", true),
            ("/sys/fs/cgroup", "memory.max", false),
        ] {
            let path = std::path::Path::new(root).join(&name);
            if std::fs::create_dir(&path).is_ok() {
                if std::fs::write(path.join(file), bytes.to_string()).is_ok() {
                    return Some(Self(path, old));
                }
                let _ = std::fs::remove_dir(&path);
            }
        }
        None
    }

    fn take(&self, program: &Program) -> Result {
        Ok(std::fs::write(self.0.join("cgroup.procs"), program.id().to_string())?)
    }

    fn most(&self) -> Result<u64> {
        let file = if self.1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        Ok(std::fs::read_to_string(self.0.join(file))?.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f9_five_thousand_stalled_streams_in_256_mib_are_refused_or_carried_and_never_killed() -> Result {
    const STREAMS: usize = 5_000;
    let _turn = alone().await;
    let Some(group) = Group::new(256 << 20) else {
        println!("no control group can be made here");
        return Ok(());
    };
    let options = Options {
        top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(),
        gateway: "  memory_limit: 128MiB\n  limits: { queue: { timeout: 1s } }".to_owned(),
        ..Options::default()
    };
    let stage = Arc::new(Stage::with(&options)?);
    group.take(&stage.gateway)?;
    let (source, echo_target) = (firehose().await?, Target::echo().await?);
    let mut kept = tunnel(&stage, Way::Connect, echo_target.addr()).await?;
    let mut asking = JoinSet::new();
    let (mut stalled, mut refused) = (Vec::new(), 0);
    for number in 0..STREAMS {
        let (http, target) = (stage.http_addr(), source.addr().to_string());
        asking.spawn(async move { connect_narrow(http, &target).await });
        while asking.len() >= 50 || number + 1 == STREAMS && !asking.is_empty() {
            let Some(asked) = asking.join_next().await else { break };
            match asked?? {
                (code, stream) if code == "200" => stalled.push(stream),
                (code, _) => {
                    assert_eq!(code, "503");
                    refused += 1;
                }
            }
        }
    }
    timeout(PATIENCE, echo(&mut kept, b"alive")).await??;
    let at_gateway = metric(&stage.gateway, "anyproxy_stream_memory_bytes").await? / MIB;
    let at_client = metric(&stage.client, "anyproxy_stream_memory_bytes").await? / MIB;
    // A tunnel's bound, and the smallest window of 5,000 streams.
    assert!(at_gateway < 128.0 && at_client < 144.0, "{at_gateway} {at_client} MiB");
    let most = group.most()?;
    println!(
        "{} stalled, {refused} refused with 503; streams held {at_gateway:.0} MiB at the gateway and {at_client:.0} at \
         the client, the gateway had {} MiB at the most",
        stalled.len(),
        most >> 20
    );
    assert!(most < 256 << 20, "{most}");
    // Gone before its group is.
    drop(stage);
    Ok(())
}

// === Descriptors ===

/// Sets the soft limit of open files of a running program.
async fn limit_files(program: &Program, files: usize) -> Result {
    let mut prlimit = tool("prlimit");
    prlimit.arg(format!("--pid={}", program.id())).arg(format!("--nofile={files}:"));
    run(prlimit).await?.ok().map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn f6_users_leave_some_of_a_client_s_descriptors_to_its_tunnels_and_its_health_check() -> Result {
    let _turn = alone().await;
    let top = "admin: { listen_addr: '127.0.0.1:0' }".to_owned();
    let mut stage = Stage::with(&Options { top, ..Options::default() })?;
    let mut client = tool("prlimit");
    client.arg("--nofile=100:100").arg(Program::path()?).args(["client", "--config"]).arg(stage.file());
    stage.client.kill()?;
    stage.client = Program::spawn(&mut client)?;
    stage.client.connected()?;
    let target = Target::echo().await?;
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..100 {
        match timeout(PATIENCE, connect(stage.http_addr(), &target.addr().to_string())).await?? {
            (code, stream) if code == "200" => held.push(stream),
            (code, _) => {
                assert_eq!(code, "503");
                refused += 1;
            }
        }
    }
    // And what it inherited with a high number, or took for itself meanwhile.
    let (open, spare) = (stage.client.descriptors()?, 82..90);
    assert!(refused > 0 && spare.contains(&open), "{} held, {refused} refused, {open} open", held.len());
    assert!(metric(&stage.client, "anyproxy_tunnels").await? > 0.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn f6_without_descriptors_nothing_spins_the_living_go_on_and_all_is_well_once_there_are_some() -> Result
{
    let _turn = alone().await;
    for short in ["gateway", "client"] {
        let stage = Arc::new(Stage::start()?);
        let target = Target::echo().await?;
        let mut kept = tunnel(&stage, Way::Socks5, target.addr()).await?;
        let program = if short == "gateway" { &stage.gateway } else { &stage.client };
        limit_files(program, program.descriptors()? + 20).await?;
        let stop = watch::Sender::new(false);
        let mut users = JoinSet::new();
        for _ in 0..100 {
            let (http, address, mut stop) = (stage.http_addr(), target.addr().to_string(), stop.subscribe());
            users.spawn(async move {
                let mut served = 0;
                while !*stop.borrow() {
                    // Held for a while, so that others find nothing.
                    if let Ok(Ok((code, stream))) =
                        timeout(Duration::from_secs(2), connect(http, &address)).await
                        && code == "200"
                    {
                        served += 1;
                        let _held = stream;
                        let _ = timeout(Duration::from_millis(300), stop.changed()).await;
                    } else {
                        let _ = timeout(Duration::from_millis(100), stop.changed()).await;
                    }
                }
                served
            });
        }
        sleep(Duration::from_secs(1)).await;
        // Nobody comes or goes: what it does now, it does for want of descriptors.
        let cost = Cost::begin(program)?;
        let measured = Instant::now();
        let mut rounds = Vec::new();
        while measured.elapsed() < Duration::from_secs(5) {
            let begun = Instant::now();
            timeout(PATIENCE, echo(&mut kept, b"the living go on")).await??;
            rounds.push(begun.elapsed());
            sleep(Duration::from_millis(50)).await;
        }
        let share = cost.cpu(program)?.as_secs_f64() / measured.elapsed().as_secs_f64();
        let (_, _, slowest) = quantiles(&mut rounds);
        stop.send_replace(true);
        let mut served = 0;
        while let Some(user) = users.join_next().await {
            served += user?;
        }
        limit_files(program, 4096).await?;
        let freed = Instant::now();
        until("it serves again", async || {
            Ok(timeout(Duration::from_secs(5), connect(stage.http_addr(), &target.addr().to_string()))
                .await
                .is_ok_and(|asked| asked.is_ok_and(|(code, _)| code == "200")))
        })
        .await?;
        println!(
            "{short}: {:.0} % of a processor beside 100 users of whom {served} were served, the living waited {slowest:?} \
             at most, all were served again after {:?}",
            share * 100.0,
            freed.elapsed()
        );
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        assert!(freed.elapsed() < Duration::from_secs(3), "{:?}", freed.elapsed());
        // A spin would be a whole one; a hundred users who come again cost what they cost in a debug build.
        assert!(share < 0.6, "{share}");
    }
    Ok(())
}

// === Crowds ===

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_on_a_listener_leave_users_unharmed() -> Result {
    const IDLE: usize = 10_000;
    let _turn = alone().await;
    for listener in ["http", "socks5", "gateway"] {
        let stage = Arc::new(Stage::start()?);
        let honest = Honest::start(stage.clone(), 1).await?;
        let address = stage.gateway.listening(listener)?;
        let (before, cost) = (stage.gateway.descriptors()?, Cost::begin(&stage.gateway)?);
        let begun = Instant::now();
        let mut idle = Vec::with_capacity(IDLE);
        while idle.len() < IDLE {
            let batch: Vec<_> = (0..200).map(|_| tokio::spawn(TcpStream::connect(address))).collect();
            for connection in batch {
                idle.push(connection.await??);
            }
        }
        let took = begun.elapsed();
        if listener != "gateway" {
            until("all are accepted", async || Ok(stage.gateway.descriptors()? >= before + IDLE)).await?;
        }
        // The clients' listener lets 256 wait who have not logged in; who is turned away takes a moment to go.
        if listener == "gateway" {
            until("the others are gone", async || Ok(stage.gateway.descriptors()? < before + 300)).await?;
        }
        let most = stage.gateway.descriptors()?;
        let grown = cost.grown_kib(&stage.gateway)?;
        honest.noticed_nothing(&stage).await?;
        println!(
            "{listener}: {IDLE} in {took:?}, {most} descriptors, {grown} KiB more, {} bytes each",
            grown * 1024 / IDLE as u64
        );
        assert!(grown < 160 << 10, "{grown} KiB");
        drop(idle);
        until("their descriptors are back", async || Ok(stage.gateway.descriptors()? <= before + 4)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h23_slow_heads_and_handshakes_are_cut_in_time_and_normal_users_do_not_wait() -> Result {
    const SLOW: usize = 500;
    let _turn = alone().await;
    let stage = Arc::new(Stage::start()?);
    let honest = Honest::start(stage.clone(), 1).await?;
    let cost = Cost::begin(&stage.gateway)?;
    let begun = Instant::now();
    let mut slow = JoinSet::new();
    for (name, first, drip) in [
        ("http", &b"GET http://127.0.0.1/ HTTP/1.1\r\nX-Slow: "[..], b'x'),
        ("socks5", &[5, 255][..], 2),
        // A record of TLS that claims 512 bytes.
        ("gateway", &[22, 3, 1, 2, 0][..], 1),
    ] {
        let address = stage.gateway.listening(name)?;
        // The clients' listener lets no more than 256 wait.
        for _ in 0..if name == "gateway" { 200 } else { SLOW } {
            slow.spawn(async move {
                let mut stream = TcpStream::connect(address).await?;
                let begun = Instant::now();
                stream.write_all(first).await?;
                let (mut reader, mut writer) = stream.into_split();
                let dripping = async {
                    loop {
                        sleep(Duration::from_millis(900)).await;
                        if writer.write_all(&[drip]).await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    }
                };
                let cut = async { while matches!(reader.read(&mut [0; 256]).await, Ok(1..)) {} };
                tokio::select! { () = dripping => {}, () = cut => {} }
                Ok::<_, std::io::Error>((name, begun.elapsed()))
            });
        }
    }
    let mut cuts = std::collections::BTreeMap::<_, Vec<_>>::new();
    while let Some(cut) = timeout(PATIENCE, slow.join_next()).await? {
        let (name, after) = cut??;
        cuts.entry(name).or_default().push(after);
    }
    for (name, cuts) in &mut cuts {
        let (median, _, last) = quantiles(cuts);
        println!("{name}: {} cut after {:?} to {last:?}, median {median:?}", cuts.len(), cuts[0]);
        assert!(cuts[0] > Duration::from_secs(9) && last < Duration::from_secs(12), "{name}: {last:?}");
    }
    println!("all were gone after {:?}", begun.elapsed());
    honest.noticed_nothing(&stage).await?;
    assert!(cost.grown_kib(&stage.gateway)? < 64 << 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h23_slow_bodies_arrive_whole_and_normal_users_do_not_wait() -> Result {
    const SLOW: usize = 1_000;
    const BODY: &str = "slowness";
    let _turn = alone().await;
    let (stage, target) = (Arc::new(Stage::start()?), HttpTarget::start().await?);
    let honest = Honest::start(stage.clone(), 1).await?;
    let cost = Cost::begin(&stage.gateway)?;
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: target\r\n{LOGIN}Content-Length: {}\r\nConnection: close\r\n\r\n",
        target.url("/hash"),
        BODY.len()
    );
    let mut slow = JoinSet::new();
    for _ in 0..SLOW {
        let (http, request) = (stage.http_addr(), request.clone());
        slow.spawn(async move {
            let mut stream = TcpStream::connect(http).await?;
            stream.write_all(request.as_bytes()).await?;
            for byte in BODY.bytes() {
                sleep(Duration::from_millis(900)).await;
                stream.write_all(&[byte]).await?;
            }
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        });
    }
    // All at once: each has a body under way, and none a deadline for it.
    until("all bodies are under way", async || Ok(stage.client.descriptors()? >= SLOW)).await?;
    let hash = HttpTarget::hash_of(BODY.as_bytes());
    while let Some(answer) = timeout(PATIENCE, slow.join_next()).await? {
        let answer = answer??;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(&hash), "{answer}");
    }
    honest.noticed_nothing(&stage).await?;
    let grown = cost.grown_kib(&stage.gateway)?;
    println!("{} bytes for each slow body", grown * 1024 / SLOW as u64);
    assert!(grown < 64 << 10, "{grown} KiB");
    Ok(())
}

// === Targets ===

#[tokio::test(flavor = "multi_thread")]
async fn f4_targets_that_say_nothing_drip_reset_or_leave_end_as_they_should() -> Result {
    let _turn = alone().await;
    let options = Options {
        gateway: "  idle_timeout: 2s\n  connect_timeout: 1s\n  half_closed_timeout: 1s".to_owned(),
        client: "  idle_timeout: 2s\n  connect_timeout: 1s\n  half_closed_timeout: 1s".to_owned(),
        ..Options::default()
    };
    let stage = Arc::new(Stage::with(&options)?);

    // Accepts and says nothing: a reset once the stream has idled, never an end.
    let silent = wall().await?;
    for way in Way::ALL {
        let mut stream = tunnel(&stage, way, silent.addr()).await?;
        stream.write_all(b"anybody?").await?;
        let begun = Instant::now();
        let error = timeout(PATIENCE, stream.read(&mut [0; 1])).await?.expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{way:?}");
        let waited = begun.elapsed();
        assert!(waited > Duration::from_millis(1_500) && waited < Duration::from_secs(5), "{waited:?}");
    }

    // Drips: slow is not idle.
    let drip = Target::start(|mut connection| async move {
        for byte in b"slowly but surely".chunks(4) {
            sleep(Duration::from_secs(1)).await;
            connection.write_all(byte).await?;
        }
        Ok(())
    });
    let drip = drip.await?;
    let mut stream = tunnel(&stage, Way::Connect, drip.addr()).await?;
    let mut whole = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut whole)).await??;
    assert_eq!(whole, "slowly but surely");

    // Resets in the middle: an error behind what came.
    let reset = Target::start(|mut connection| async move {
        connection.write_all(b"half").await?;
        connection.peek(&mut [0]).await?;
        connection.set_zero_linger()
    });
    let reset = reset.await?;
    let mut stream = tunnel(&stage, Way::Socks5, reset.addr()).await?;
    stream.read_exact(&mut [0; 4]).await?;
    stream.write_all(b"go").await?;
    assert!(timeout(PATIENCE, stream.read(&mut [0; 1])).await?.is_err());

    // Has said all: a clean end, though it never hears what the user says.
    let finished = Target::start(|mut connection| async move {
        connection.shutdown().await?;
        std::future::pending().await
    });
    let finished = finished.await?;
    let mut stream = tunnel(&stage, Way::Connect, finished.addr()).await?;
    assert_eq!(timeout(PATIENCE, stream.read(&mut [0; 1])).await??, 0, "a clean end");
    // And all is well behind them.
    drop(stream);
    let echo_target = Target::echo().await?;
    let mut after = tunnel(&stage, Way::Connect, echo_target.addr()).await?;
    echo(&mut after, b"after all").await
}

// === The network ===

/// Drops every packet of a port, or some of them, without a word, until it is dropped itself.
struct Blackhole(String);

impl Blackhole {
    fn new(port: u16) -> Result<Self> {
        Self::of(port, "")
    }

    /// Of a hundred packets it drops so many.
    fn leaking(port: u16, lost: u32) -> Result<Self> {
        Self::of(port, &format!("numgen random mod 100 < {lost}"))
    }

    fn of(port: u16, which: &str) -> Result<Self> {
        let table = format!("anyproxy_test_{}", std::process::id());
        let rules = format!(
            "table inet {table} {{ chain input {{ type filter hook input priority 0; \
             tcp dport {port} {which} counter drop; tcp sport {port} {which} counter drop; }}; }}"
        );
        let added = Command::new("nft").arg(&rules).stderr(Stdio::null()).status();
        match added {
            Ok(status) if status.success() => Ok(Self(table)),
            _ => Err("nft cannot add a rule: .ci/setup installs it, and this test needs root".into()),
        }
    }
}

impl Blackhole {
    /// How many packets it has dropped.
    fn dropped(&self) -> Result<u64> {
        let listed = Command::new("nft").args(["list", "table", "inet", &self.0]).output()?;
        let listed = String::from_utf8(listed.stdout)?;
        let counts =
            listed.split("packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        Ok(counts.sum())
    }
}

impl Drop for Blackhole {
    fn drop(&mut self) {
        let _ = Command::new("nft").args(["delete", "table", "inet", &self.0]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f3_a_tunnel_whose_packets_are_dropped_is_found_dead_by_both_ends_in_time() -> Result {
    let _turn = alone().await;
    let timers = "  ping_interval: 2s\n  ping_timeout: 2s";
    let options = Options {
        gateway: format!("{timers}\n  limits: {{ wait_for_client: 500ms }}"),
        client: timers.to_owned(),
        ..Options::default()
    };
    let stage = Arc::new(Stage::with(&options)?);
    let target = Target::echo().await?;
    let mut users = Vec::new();
    for way in Way::ALL {
        let mut stream = tunnel(&stage, way, target.addr()).await?;
        echo(&mut stream, b"before").await?;
        users.push(stream);
    }
    let descriptors = stage.client.descriptors()?;
    let begun = Instant::now();
    let blackhole = Blackhole::new(stage.gateway.listening("gateway")?.port())?;
    for (name, program) in [("gateway", &stage.gateway), ("client", &stage.client)] {
        program.line("a dead peer", |line| line["reason"] == "dead")?;
        println!("{name} knew after {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(2 + 2 + 5), "{:?}", begun.elapsed());
    }
    for mut user in users {
        let error = timeout(PATIENCE, user.read(&mut [0; 1])).await?.expect_err("not an end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let asked = Instant::now();
    assert_eq!(connect(stage.http_addr(), &target.addr().to_string()).await?.0, "503");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    until("the client's descriptors are freed", async || Ok(stage.client.descriptors()? < descriptors))
        .await?;
    drop(blackhole);
    let healed = Instant::now();
    until("the client is back", async || {
        Ok(connect(stage.http_addr(), &target.addr().to_string()).await?.0 == "200")
    })
    .await?;
    println!("served again {:?} after the network was", healed.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn f5_transfers_over_a_line_that_loses_packets_arrive_whole() -> Result {
    const AT_ONCE: usize = 20;
    let _turn = alone().await;
    let transfers = tenfold(100);
    let stage = Arc::new(Stage::start()?);
    let target = Target::echo().await?;
    for lost in [1, 5] {
        let loss = Blackhole::leaking(stage.gateway.listening("gateway")?.port(), lost)?;
        let begun = Instant::now();
        let mut running = JoinSet::new();
        for number in 0..transfers {
            if running.len() == AT_ONCE {
                running.join_next().await.ok_or("one runs")???;
            }
            let (stage, target) = (stage.clone(), target.addr());
            running.spawn(async move {
                let stream = timeout(PATIENCE, tunnel(&stage, Way::ALL[number % 2], target)).await??;
                let said: Vec<u8> = (0..100_000).map(|at| ((at * (number + 1)) >> 3) as u8).collect();
                let (mut reader, mut writer) = stream.into_split();
                let saying = async {
                    writer.write_all(&said).await?;
                    writer.shutdown().await
                };
                let mut heard = Vec::new();
                let (told, whole) =
                    timeout(2 * PATIENCE, async { tokio::join!(saying, reader.read_to_end(&mut heard)) })
                        .await?;
                told?;
                whole?;
                if heard == said {
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
                } else {
                    Err("not what was said".into())
                }
            });
        }
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        let dropped = loss.dropped()?;
        println!("{transfers} transfers whole in {:?}, {lost} %, {dropped} packets, lost", begun.elapsed());
        assert!(dropped > 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn f8_a_log_that_nobody_takes_holds_up_nobody_and_is_counted() -> Result {
    let _turn = alone().await;
    for full_disk in [false, true] {
        let options = Options {
            top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(),
            gateway: "  forbidden_hosts: ['*.forbidden']".to_owned(),
            ..Options::default()
        };
        let mut stage = Stage::with(&options)?;
        stage.gateway.kill()?;
        let http = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let file = stage.file();
        let mut mute = Program::command(&["gateway", "--config", file.to_str().ok_or("a path in Unicode")?])?;
        mute.env("ANYPROXY_PROXY__HTTP__LISTEN_ADDR", http.to_string());
        mute.env("ANYPROXY_ADMIN__LISTEN_ADDR", admin.to_string());
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full")?;
        mute.stdout(if full_disk { Stdio::from(full) } else { Stdio::piped() });
        let mut mute = mute.stderr(Stdio::null()).spawn()?;
        let target = Target::echo().await?;
        until("it serves", async || {
            Ok(connect(http, &target.addr().to_string()).await.is_ok_and(|(code, _)| code == "200"))
        })
        .await?;
        // Each refusal is a line; more of them than the pipe and the queue hold together.
        let mut users = JoinSet::new();
        for _ in 0..10 {
            users.spawn(async move {
                let mut user = TcpStream::connect(http).await?;
                for _ in 0..2_000 {
                    user.write_all(
                        format!("GET http://a.forbidden/ HTTP/1.1\r\nHost: a.forbidden\r\n{LOGIN}\r\n")
                            .as_bytes(),
                    )
                    .await?;
                    let head = head(&mut user).await?;
                    let length =
                        head.to_ascii_lowercase().split("content-length: ").nth(1).map(str::to_owned);
                    let length = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok()).unwrap_or(0);
                    user.read_exact(&mut vec![0; length]).await?;
                    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            });
        }
        while let Some(user) = timeout(4 * PATIENCE, users.join_next()).await? {
            user??;
        }
        let (code, mut stream) = timeout(PATIENCE, connect(http, &target.addr().to_string())).await??;
        assert_eq!(code, "200");
        echo(&mut stream, b"traffic goes on").await?;
        // A full disk takes none of them.
        let lost = if full_disk { 20_000.0 } else { 1.0 };
        until("what was lost is counted", async || {
            Ok(metric_at(admin, "anyproxy_log_lines_dropped_total").await? >= lost)
        })
        .await?;
        // Nor does it hold up the end.
        drop(stream);
        kill(Pid::from_raw(i32::try_from(mute.id())?), Signal::SIGTERM)?;
        let ended = until("it ends", async || Ok(mute.try_wait()?.is_some())).await;
        if ended.is_err() {
            mute.kill()?;
            mute.wait()?;
        }
        ended?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn i10_a_machine_that_was_suspended_wakes_up_with_its_tunnels_and_streams() -> Result {
    let _turn = alone().await;
    let timers = "  ping_interval: 1s\n  ping_timeout: 1s";
    let options = Options { gateway: timers.to_owned(), client: timers.to_owned(), ..Options::default() };
    let stage = Arc::new(Stage::with(&options)?);
    let honest = Honest::start(stage.clone(), 1).await?;
    let target = Target::echo().await?;
    let mut kept = tunnel(&stage, Way::Connect, target.addr()).await?;
    echo(&mut kept, b"before").await?;
    for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
        for program in [&stage.gateway, &stage.client] {
            program.signal(signal)?;
        }
        // Longer than a peer may be silent; then, as long again to be wrong about it.
        sleep(Duration::from_secs(4)).await;
    }
    timeout(PATIENCE, echo(&mut kept, b"after")).await??;
    honest.noticed_nothing(&stage).await
}

#[tokio::test(flavor = "multi_thread")]
async fn f7_name_servers_that_stall_delay_those_names_alone() -> Result {
    let _turn = alone().await;
    // Takes every question and answers none.
    let Ok(_mute) = UdpSocket::bind("127.0.0.153:53").await else {
        println!("port 53 cannot be bound here");
        return Ok(());
    };
    let options = Options { client: "  connect_timeout: 3s".to_owned(), ..Options::default() };
    let mut stage = Stage::with(&options)?;
    stage.client.kill()?;
    let resolv = stage.dir().join("resolv.conf");
    std::fs::write(&resolv, "nameserver 127.0.0.153\noptions timeout:30 attempts:1\n")?;
    let mut command = tool("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount --bind \"$1\" /etc/resolv.conf && exec \"$2\" client --config \"$3\"",
        "sh",
    ]);
    command.arg(&resolv).arg(Program::path()?).arg(stage.file());
    stage.client = Program::spawn(&mut command)?;
    stage.client.connected()?;
    let stage = Arc::new(stage);
    let honest = Honest::start(stage.clone(), 2).await?;
    let target = Target::echo().await?;
    let mut asking = JoinSet::new();
    for number in 0..300 {
        let http = stage.http_addr();
        asking.spawn(async move {
            let begun = Instant::now();
            // Of three zones whose servers are all dead.
            let name = format!("host-{number}.zone-{}.example.com:80", number % 3);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((
                connect(http, &name).await?.0,
                begun.elapsed(),
            ))
        });
    }
    sleep(Duration::from_millis(500)).await;
    // A name that needs no server, and an address.
    for target in [format!("localhost:{}", target.addr().port()), target.addr().to_string()] {
        let begun = Instant::now();
        let (code, mut stream) = connect(stage.http_addr(), &target).await?;
        assert_eq!(code, "200", "{target}");
        echo(&mut stream, b"beside them").await?;
        println!("{target} took {:?} beside 300 stalled lookups", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    let mut times = Vec::new();
    while let Some(asked) = asking.join_next().await {
        let (code, took) = asked??;
        assert!(["502", "504"].contains(&&*code), "{code}");
        times.push(took);
    }
    let (median, _, slowest) = quantiles(&mut times);
    println!("stalled names were answered after {median:?}, {slowest:?} at the latest");
    assert!(slowest < Duration::from_secs(3 + 2), "{slowest:?}");
    honest.noticed_nothing(&stage).await
}

// === Churn ===

/// What both processes have.
#[derive(Clone, Copy, Debug)]
struct Level {
    kib: [u64; 2],
    descriptors: [usize; 2],
}

impl Level {
    /// Once everything has settled.
    async fn of(stage: &Stage) -> Result<Self> {
        let mut last = None;
        let mut looks = interval(Duration::from_millis(250));
        looks.tick().await;
        loop {
            looks.tick().await;
            let now = [stage.gateway.descriptors()?, stage.client.descriptors()?];
            if last == Some(now) {
                let kib = [stage.gateway.resident_kib()?, stage.client.resident_kib()?];
                return Ok(Self { kib, descriptors: now });
            }
            last = Some(now);
        }
    }
}

/// Opens so many streams and closes them, 50 at a time, by each way in and each way to end.
async fn churn(stage: &Arc<Stage>, target: SocketAddr, streams: usize) -> Result {
    let mut workers = JoinSet::new();
    for worker in 0..50 {
        let stage = stage.clone();
        workers.spawn(async move {
            for number in (worker..streams).step_by(50) {
                let mut stream = tunnel(&stage, Way::ALL[number % 2], target).await?;
                echo(&mut stream, b"churn").await?;
                match number % 3 {
                    0 => stream.set_zero_linger()?,
                    1 => {
                        stream.shutdown().await?;
                        stream.read_to_end(&mut Vec::new()).await?;
                    }
                    _ => {}
                }
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_streams_by_the_thousand_leave_memory_and_descriptors_where_they_were() -> Result {
    let _turn = alone().await;
    let (stage, target) = (Arc::new(Stage::start()?), Target::echo().await?);
    churn(&stage, target.addr(), 500).await?;
    let first = Level::of(&stage).await?;
    println!("after 500 streams: {first:?}");
    let begun = Instant::now();
    let streams = tenfold(20_000);
    for done in [4_000, streams - 4_000].into_iter().scan(500, |sum, more| {
        *sum += more;
        Some((*sum, more))
    }) {
        let (sum, more) = done;
        churn(&stage, target.addr(), more).await?;
        let now = Level::of(&stage).await?;
        println!("after {sum} streams: {now:?}, {:?}", begun.elapsed());
        for end in 0..2 {
            assert!(now.kib[end] <= first.kib[end] + (8 << 10), "{first:?} {now:?}");
            assert!(now.descriptors[end] <= first.descriptors[end] + 4, "{first:?} {now:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_clients_that_come_and_go_leave_the_gateway_as_it_was() -> Result {
    let _turn = alone().await;
    let siege = Siege::start().await?;
    let gateway = siege.gateway()?;
    let visit = |number: usize| async move {
        let peer = client::join(gateway, &MALLORY, &format!("visitor-{}", number % 7)).await?;
        // Half of them hang up in the middle of it, without a word.
        if number.is_multiple_of(2) {
            peer.flood_deaf::<anyproxy_mock_peer::frame::ToClient>(&[0x88, 0x80, 0, 0, 0, 0], 1).await?;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    };
    for number in 0..50 {
        visit(number).await?;
    }
    let first = Level::of(&siege.stage).await?;
    println!("after 50: {first:?}");
    let reconnects = tenfold(200);
    for number in 0..reconnects {
        visit(number).await?;
    }
    let now = Level::of(&siege.stage).await?;
    println!("after {} more: {now:?}", reconnects);
    assert!(now.kib[0] <= first.kib[0] + (8 << 10), "{first:?} {now:?}");
    // The honest user's come and go.
    assert!(now.descriptors[0] <= first.descriptors[0] + 6, "{first:?} {now:?}");
    let cost = Cost::begin(&siege.stage.gateway)?;
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_a_client_whose_connection_is_cut_again_and_again_is_as_it_was() -> Result {
    let _turn = alone().await;
    let (mut stage, target) = (Stage::start()?, Target::echo().await?);
    // A gateway that goes and comes cuts without a word.
    for round in 0..3 {
        let mut stream = tunnel(&stage, Way::Connect, target.addr()).await?;
        echo(&mut stream, b"hello").await?;
        stage.gateway.kill()?;
        stage.restart_gateway()?;
        until("the client is back", async || {
            Ok(connect(stage.http_addr(), &target.addr().to_string()).await?.0 == "200")
        })
        .await?;
        println!("round {round}: {} descriptors", stage.client.descriptors()?);
    }
    let before = stage.client.descriptors()?;
    assert!(before < 40, "{before}");
    Ok(())
}
