//! Load, and ends that nobody wished for. `--nocapture` shows the figures; `ANYPROXY_TEST_FULL=1` carries as much as a
//! release should be asked to.
//!
//! What is measured here would disturb itself: one test runs at a time.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyproxy_client::{Client, ClientTls, Config};
use anyproxy_core::Credentials;
use anyproxy_tests::{
    HttpTarget, Options, Output, Program, Result, Stage, Target, Way, run, socks5_reply, socks5_request,
    tool, tunnel, until,
};
use nix::sys::signal::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard, mpsc};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Held by the test that runs.
async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// Runs curl through `proxy`.
async fn curl(proxy: &str, arguments: &[&str]) -> Result<Output> {
    let mut curl = tool("curl");
    curl.args(["--silent", "--show-error", "--max-time", "110", "--proxy", proxy]).args(arguments);
    run(curl).await
}

/// The code of an answer to a plain request.
async fn code(stage: &Stage, url: &str) -> Result<String> {
    let arguments = ["--output", "/dev/null", "--write-out", "%{http_code}", url];
    Ok(curl(&stage.http(), &arguments).await?.out)
}

/// Resident memory of both processes, in KiB.
fn resident(stage: &Stage) -> Result<u64> {
    Ok(stage.gateway.resident_kib()? + stage.client.resident_kib()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_megabytes_arrive_whole_by_each_way_in_and_each_direction() -> Result {
    let _turn = alone().await;
    let length = if std::env::var_os("ANYPROXY_TEST_FULL").is_some() { 256 << 20 } else { 64 << 20 };
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let hash = HttpTarget::hash(length);
    let (up, down) = (stage.dir().join("up"), stage.dir().join("down").display().to_string());
    std::fs::write(&up, HttpTarget::bytes(length))?;
    let up = up.display().to_string();
    for (name, proxy, tunnel) in [
        ("absolute-form", stage.http(), "--no-proxytunnel"),
        ("CONNECT", stage.http(), "--proxytunnel"),
        ("SOCKS5", stage.socks5(), "--no-proxytunnel"),
    ] {
        let begun = Instant::now();
        let answer = curl(&proxy, &[tunnel, "--upload-file", &up, &target.url("/hash")]).await?.ok()?;
        let took = begun.elapsed();
        assert_eq!(answer, format!("{hash} {length}\n"), "{name}, up");
        println!("{} MiB up by {name}: {took:.1?}", length >> 20);
        let begun = Instant::now();
        curl(&proxy, &[tunnel, "--output", &down, &target.url(&format!("/bytes/{length}"))]).await?.ok()?;
        let took = begun.elapsed();
        assert_eq!(HttpTarget::hash_of(&std::fs::read(&down)?), hash, "{name}, down");
        println!("{} MiB down by {name}: {took:.1?}", length >> 20);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_live_at_once_and_leave_nothing_behind() -> Result {
    const STREAMS: usize = 1_000;
    let _turn = alone().await;
    let (stage, target) = (Arc::new(Stage::start()?), Target::echo().await?);
    let descriptors = || {
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((
            stage.gateway.descriptors()?,
            stage.client.descriptors()?,
        ))
    };
    // The first stream opens what every later one shares.
    drop(tunnel(&stage, Way::Socks5, target.addr()).await?);
    let (before, memory, begun) = (descriptors()?, resident(&stage)?, Instant::now());
    let mut opening = JoinSet::new();
    for index in 0..STREAMS {
        let (stage, address) = (stage.clone(), target.addr());
        opening.spawn(async move { tunnel(&stage, Way::ALL[index % 2], address).await });
    }
    let mut streams = Vec::new();
    while let Some(opened) = opening.join_next().await {
        streams.push(opened??);
    }
    let opened = begun.elapsed();
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&index.to_be_bytes()).await?;
    }
    for (index, stream) in streams.iter_mut().enumerate() {
        assert_eq!(stream.read_u64().await?, index as u64);
    }
    let grown = resident(&stage)?.saturating_sub(memory);
    println!("{STREAMS} streams: open in {opened:.1?}, both processes grown by {grown} KiB");
    drop(streams);
    let back = until("as many descriptors as before", async || {
        let (gateway, client) = descriptors()?;
        // A descriptor more or less is the runtime's.
        Ok(gateway <= before.0 + 2 && client <= before.1 + 2)
    });
    println!("their descriptors were back after {:.1?}", back.await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stop_reading_hold_up_nobody_and_little_memory() -> Result {
    let _turn = alone().await;
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let sent = Arc::new(AtomicU64::new(0));
    let source = Target::start({
        let sent = sent.clone();
        move |mut connection| {
            let sent = sent.clone();
            async move {
                let block = vec![7; 64 << 10];
                loop {
                    sent.fetch_add(connection.write(&block).await? as u64, Ordering::Relaxed);
                }
            }
        }
    });
    let source = source.await?;
    let before = resident(&stage)?;
    let mut stopped = Vec::new();
    for index in 0..20 {
        let mut stream = tunnel(&stage, Way::ALL[index % 2], source.addr()).await?;
        stream.read_exact(&mut [0; 4096]).await?;
        stopped.push(stream);
    }
    // They are stuck once the source is.
    let (mut last, mut looks) = (0, interval(Duration::from_millis(200)));
    looks.tick().await;
    until("the source is stuck", async || {
        looks.tick().await;
        let now = sent.load(Ordering::Relaxed);
        Ok(now == std::mem::replace(&mut last, now))
    })
    .await?;
    let grown = resident(&stage)?.saturating_sub(before);
    for (proxy, tunnel) in [
        (stage.http(), "--no-proxytunnel"),
        (stage.http(), "--proxytunnel"),
        (stage.socks5(), "--no-proxytunnel"),
    ] {
        let begun = Instant::now();
        let arguments = [tunnel, "--output", "/dev/null", &target.url("/bytes/1000000")];
        curl(&proxy, &arguments).await?.ok()?;
        let took = begun.elapsed();
        println!("1 MB beside 20 stopped readers took {took:.2?} ({tunnel})");
        assert!(took < Duration::from_millis(1_500), "1 MB took {took:?}");
    }
    println!("both processes grown by {grown} KiB; the source was stuck after {} KiB", last >> 10);
    assert!(grown < 160 << 10, "grown by {grown} KiB");
    // Nothing is lost for having waited.
    let mut stream = stopped.swap_remove(0);
    timeout(Duration::from_secs(10), stream.read_exact(&mut vec![0; 4 << 20])).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_requests_at_a_hundred_at_a_time_all_succeed() -> Result {
    let _turn = alone().await;
    let (stage, target) = (Arc::new(Stage::start()?), HttpTarget::start().await?);
    let begun = Instant::now();
    let places = Arc::new(tokio::sync::Semaphore::new(100));
    let mut requests = JoinSet::new();
    for index in 0..500 {
        let (stage, address, places) = (stage.clone(), target.addr(), places.clone());
        requests.spawn(async move {
            let _place = places.acquire_owned().await?;
            let (mut stream, form) = match index % 3 {
                0 => {
                    let login = "Proxy-Authorization: Basic dXNlcjpwYXNzOncwcmQ=\r\n";
                    (TcpStream::connect(stage.http_addr()).await?, format!("http://{address}/hello\n{login}"))
                }
                1 => (tunnel(&stage, Way::Connect, address).await?, "/hello\n".to_owned()),
                _ => (tunnel(&stage, Way::Socks5, address).await?, "/hello\n".to_owned()),
            };
            let (uri, login) = form.split_once('\n').unwrap_or_default();
            let request =
                format!("GET {uri} HTTP/1.1\r\nHost: {address}\r\n{login}Connection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let whole = answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello from inside\n");
            if whole { Ok(()) } else { Err(format!("request {index}: {answer:?}").into()) }
        });
    }
    let failed: Vec<_> = requests.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
    println!("500 requests at 100 at a time: {:.2?}", begun.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn f1_when_the_client_is_killed_its_users_are_told_and_served_again_on_its_return() -> Result {
    let _turn = alone().await;
    let (mut stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let echo = Target::echo().await?;
    let mut streams = Vec::new();
    for index in 0..200 {
        let mut stream = tunnel(&stage, Way::ALL[index % 2], echo.addr()).await?;
        stream.write_all(b"alive").await?;
        stream.read_exact(&mut [0; 5]).await?;
        streams.push(stream);
    }
    let killed = Instant::now();
    stage.client.kill()?;
    for stream in &mut streams {
        let told = timeout(Duration::from_secs(3), stream.read_u8()).await?;
        assert_eq!(told.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    }
    println!("200 users were told {:.2?} after the client was killed", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(3));
    let refused = Instant::now();
    assert_eq!(code(&stage, &target.url("/hello")).await?, "503");
    println!("without a client, 503 came after {:.2?}", refused.elapsed());
    let returned = Instant::now();
    stage.restart_client()?;
    until("served again", async || Ok(code(&stage, &target.url("/hello")).await? == "200")).await?;
    println!("served again {:.2?} after the client's return", returned.elapsed());
    assert!(returned.elapsed() < Duration::from_secs(5));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn f2_when_the_gateway_is_killed_its_client_comes_back_to_the_next() -> Result {
    let _turn = alone().await;
    let (mut stage, target) = (Stage::start()?, HttpTarget::start().await?);
    stage.gateway.kill()?;
    stage.client.line("the loss", |line| line["message"] == "a tunnel was lost")?;
    let returned = Instant::now();
    stage.restart_gateway()?;
    stage.gateway.line("the client", |line| line["message"] == "client connected")?;
    println!("the client was back {:.2?} after the gateway", returned.elapsed());
    assert!(returned.elapsed() < Duration::from_secs(12));
    assert_eq!(code(&stage, &target.url("/hello")).await?, "200");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn f2_a_thousand_clients_come_back_spread_after_their_gateway_was_away() -> Result {
    const CLIENTS: usize = 1_000;
    let _turn = alone().await;
    let mut stage = Stage::start()?;
    let gateway = stage.gateway.listening("gateway")?;
    let pem = std::fs::read(stage.dir().join("server.crt"))?;
    let anchors: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<std::result::Result<_, _>>()?;
    let tls = ClientTls::new(anchors, None)?;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut handles = Vec::new();
    for number in 0..CLIENTS {
        let credentials = Credentials::new("gateway_user", "gateway_password");
        let target = format!("localhost:{}", gateway.port()).parse()?;
        let client =
            Client::new(Config::new(vec![target], tls.clone(), format!("herd-{number}"), credentials))?;
        handles.push(client.handle());
        tokio::spawn(client.run(stop.clone()));
    }
    let connected = || handles.iter().filter(|handle| handle.tunnels() > 0).count();
    let grown = Instant::now();
    while connected() < CLIENTS {
        assert!(grown.elapsed() < Duration::from_secs(120), "{} of {CLIENTS}", connected());
        sleep(Duration::from_millis(100)).await;
    }
    stage.gateway.kill()?;
    // As long as a restart of a machine's service may take: by now the clients' waits have grown.
    sleep(Duration::from_secs(8)).await;
    assert_eq!(connected(), 0);
    stage.restart_gateway()?;
    let (returned, mut before, mut most) = (Instant::now(), 0, 0);
    while before < CLIENTS {
        sleep(Duration::from_secs(1)).await;
        let now = connected();
        most = most.max(now.saturating_sub(before));
        before = now;
        assert!(returned.elapsed() < Duration::from_secs(45), "{now} of {CLIENTS} after 45 s");
    }
    println!("all back {:.1?} after the gateway, at most {most} in a second", returned.elapsed());
    assert!(most <= CLIENTS * 3 / 10, "{most} in a second");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn i5_who_is_in_the_middle_of_a_transfer_when_a_process_is_killed_sees_a_reset() -> Result {
    // Of a response in HTTP/1.0 nothing but the connection's end says that it is whole.
    const BEGUN: &[u8] = b"HTTP/1.0 200 OK\r\n\r\nbegun";
    let _turn = alone().await;
    for killed in ["gateway", "client"] {
        let mut stage = Stage::start()?;
        let (ends, mut ended) = mpsc::unbounded_channel();
        // Says something, and then reads to whatever end there is.
        let target = Target::start(move |mut stream: TcpStream| {
            let ends = ends.clone();
            async move {
                let _ = stream.write_all(BEGUN).await;
                let _ = ends.send(to_the_end(&mut stream).await);
                Ok(())
            }
        })
        .await?;
        let mut users = Vec::new();
        for way in Way::ALL {
            let mut user = tunnel(&stage, way, target.addr()).await?;
            user.read_exact(&mut [0; BEGUN.len()]).await?;
            user.write_all(b"half of it").await?;
            users.push(user);
        }
        let mut user = TcpStream::connect(stage.http_addr()).await?;
        let login = "Proxy-Authorization: Basic dXNlcjpwYXNzOncwcmQ=";
        user.write_all(format!("GET http://{}/ HTTP/1.0\r\n{login}\r\n\r\n", target.addr()).as_bytes())
            .await?;
        assert!(anyproxy_tests::head(&mut user).await?.starts_with("HTTP/1.0 200 "));
        user.read_exact(&mut [0; 5]).await?;
        users.push(user);
        if killed == "gateway" {
            stage.gateway.kill()?
        } else {
            stage.client.kill()?
        }
        for user in &mut users {
            let end = timeout(Duration::from_secs(3), to_the_end(user)).await?;
            assert_eq!(end, Err(ErrorKind::ConnectionReset), "a user, {killed} killed");
            let end = timeout(Duration::from_secs(3), ended.recv()).await?;
            assert_eq!(end, Some(Err(ErrorKind::ConnectionReset)), "a target, {killed} killed");
        }
    }
    Ok(())
}

async fn to_the_end(stream: &mut TcpStream) -> std::result::Result<(), ErrorKind> {
    loop {
        match stream.read(&mut [0; 4096]).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.kind()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_drains_is_nothing_to_warn_of() -> Result {
    let _turn = alone().await;
    let options = Options { gateway: "  drain_timeout: 4s".to_owned(), ..Options::default() };
    let (mut stage, echo) = (Stage::with(&options)?, Target::echo().await?);
    let _stream = tunnel(&stage, Way::Socks5, echo.addr()).await?;
    stage.gateway.signal(Signal::SIGTERM)?;
    assert!(stage.gateway.wait_within(Duration::from_secs(10))?.success());
    let lines: Vec<Value> =
        stage.client.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let said = |line: &Value| line["message"] == "the gateway closes a tunnel";
    assert_eq!(lines.iter().filter(|line| said(line)).count(), 1, "{lines:?}");
    assert!(lines.iter().all(|line| line["level"] != "WARN" && line["level"] != "ERROR"), "{lines:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_dials_end_in_time_though_every_client_of_the_group_stalls() -> Result {
    let _turn = alone().await;
    let options = Options { gateway: "  connect_timeout: 2s".to_owned(), ..Options::default() };
    let (stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    let echo = Target::echo().await?;
    let mut bulk = Vec::new();
    for _ in 0..16 {
        bulk.push(tunnel(&stage, Way::Connect, echo.addr()).await?);
    }
    stage.client.signal(Signal::SIGSTOP)?;
    // Until nothing moves any more: more than the windows let pass fills what the kernel holds for the tunnel. Then it
    // stalls, and counts as stalled a little later.
    for stream in &mut bulk {
        while let Ok(written) = timeout(Duration::from_millis(300), stream.write_all(&[0; 64 << 10])).await {
            written?;
        }
    }
    for _ in 0..2 {
        let begun = Instant::now();
        assert_eq!(code(&stage, &target.url("/hello")).await?, "504");
        // The gateway waits a second longer than the client may take.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    let SocketAddr::V4(address) = target.addr() else { return Err("an IPv4 target".into()) };
    let request = [&[1, 0, 1][..], &address.ip().octets(), &address.port().to_be_bytes()].concat();
    assert_eq!(socks5_reply(&stage, &request).await?.0, 6);
    stage.client.signal(Signal::SIGCONT)?;
    until("served again", async || Ok(code(&stage, &target.url("/hello")).await? == "200")).await?;
    Ok(())
}

/// Whether this line says that a drain begins.
fn is_draining(line: &Value) -> bool {
    line["message"].as_str().is_some_and(|message| message.starts_with("draining"))
}

/// A transfer of 60 MB by `proxy` that is under way, and its end: the hash of what arrived.
async fn under_way(
    stage: &Stage,
    target: &HttpTarget,
    proxy: String,
) -> Result<tokio::task::JoinHandle<Result<String>>> {
    let file = stage.dir().join("down");
    let _ = std::fs::remove_file(&file);
    let (to, url) = (file.display().to_string(), target.url("/bytes/60000000"));
    let transfer = tokio::spawn({
        let file = file.clone();
        async move {
            // Slow enough that it is not over before the signal is sent.
            curl(&proxy, &["--limit-rate", "30M", "--output", &to, &url]).await?.ok()?;
            Ok(HttpTarget::hash_of(&std::fs::read(file)?))
        }
    });
    until("bytes arrive", async || Ok(file.metadata().is_ok_and(|file| file.len() > 0))).await?;
    Ok(transfer)
}

#[tokio::test(flavor = "multi_thread")]
async fn r6_a_transfer_ends_whole_when_the_gateway_is_asked_to_stop() -> Result {
    let _turn = alone().await;
    let target = HttpTarget::start().await?;
    for socks5 in [false, true] {
        let mut stage = Stage::start()?;
        let proxy = if socks5 { stage.socks5() } else { stage.http() };
        let transfer = under_way(&stage, &target, proxy).await?;
        let begun = Instant::now();
        stage.gateway.signal(Signal::SIGTERM)?;
        stage.gateway.line("the drain", is_draining)?;
        until("nobody is let in any more", async || Ok(TcpStream::connect(stage.http_addr()).await.is_err()))
            .await?;
        assert!(!transfer.is_finished(), "the transfer was over before the drain began");
        assert_eq!(transfer.await??, HttpTarget::hash(60_000_000));
        assert!(stage.gateway.wait()?.success());
        println!("the gateway ended {:.2?} after SIGTERM, the transfer whole", begun.elapsed());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn r6_a_transfer_ends_whole_when_the_client_is_asked_to_stop() -> Result {
    let _turn = alone().await;
    let (mut stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let transfer = under_way(&stage, &target, stage.http()).await?;
    stage.client.signal(Signal::SIGTERM)?;
    assert_eq!(transfer.await??, HttpTarget::hash(60_000_000));
    assert!(stage.client.wait()?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn r6_a_second_sigterm_ends_at_once() -> Result {
    let _turn = alone().await;
    let echo = Target::echo().await?;
    let mut stage = Stage::start()?;
    let stream = tunnel(&stage, Way::Connect, echo.addr()).await?;
    ends_at_the_second_sigterm(&mut stage.gateway, stream).await?;
    let mut stage = Stage::start()?;
    let stream = tunnel(&stage, Way::Connect, echo.addr()).await?;
    ends_at_the_second_sigterm(&mut stage.client, stream).await
}

async fn ends_at_the_second_sigterm(program: &mut Program, mut stream: TcpStream) -> Result {
    program.signal(Signal::SIGTERM)?;
    program.line("the drain", is_draining)?;
    let begun = Instant::now();
    program.signal(Signal::SIGTERM)?;
    assert_eq!(program.wait_within(Duration::from_secs(5))?.code(), Some(1));
    println!("ended {:.2?} after the second SIGTERM", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(1));
    let told = stream.read_u8().await.map_err(|error| error.kind());
    assert_eq!(told, Err(ErrorKind::ConnectionReset));
    // What is cut off has its line, too.
    program.access(&[("end", "abandoned".into())]).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_nobody_who_has_asked_for_nothing_or_whom_nobody_can_serve() -> Result {
    let _turn = alone().await;
    let mut stage = Stage::with(&Options {
        http: ", handshake_timeout: 60s".to_owned(),
        socks5: ", handshake_timeout: 60s".to_owned(),
        proxy: "  mixed: { listen_addr: '127.0.0.1:0', handshake_timeout: 60s }
  sni: { listen_addr: '127.0.0.1:0', hosts: ['a.example'], handshake_timeout: 60s }"
            .to_owned(),
        gateway: "  limits: { wait_for_client: 60s }".to_owned(),
        top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(),
        ..Options::default()
    })?;
    let mut silent = Vec::new();
    for front in ["http", "socks5", "mixed", "sni"] {
        silent.push(TcpStream::connect(stage.gateway.listening(front)?).await?);
    }
    // Two who have begun: a greeting that is answered, and the header of a record.
    let mut greeted = TcpStream::connect(stage.socks5_addr()).await?;
    greeted.write_all(&[5, 1, 2]).await?;
    greeted.read_u16().await?;
    let mut begun = TcpStream::connect(stage.gateway.listening("sni")?).await?;
    begun.write_all(&[22, 3, 1]).await?;
    stage.client.kill()?;
    stage.gateway.line("the client's end", |line| line["message"] == "client's tunnel ended")?;
    let mut waiting = socks5_request(&stage, &[1, 0, 1, 127, 0, 0, 1, 0, 9]).await?;
    let metrics = format!("http://{}/metrics", stage.gateway.listening("admin")?);
    until("one waits for a client", async || {
        let mut curl = tool("curl");
        curl.args(["--silent", "--show-error", "--max-time", "10", &metrics]);
        Ok(run(curl).await?.ok()?.contains("\nanyproxy_waiting_for_client 1\n"))
    })
    .await?;
    let begun_at = Instant::now();
    stage.gateway.signal(Signal::SIGTERM)?;
    let mut reply = [0; 10];
    waiting.read_exact(&mut reply).await?;
    assert_eq!(reply[1], 3, "as without a wait");
    assert!(stage.gateway.wait()?.success());
    let took = begun_at.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let warned = |line: &String| line.contains("when the time to drain was over");
    assert!(!stage.gateway.lines().iter().any(warned));
    drop((silent, greeted, begun));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drain_ends_when_its_time_is_over() -> Result {
    let _turn = alone().await;
    let mut stage =
        Stage::with(&Options { gateway: "  drain_timeout: 1s".to_owned(), ..Options::default() })?;
    let echo = Target::echo().await?;
    let mut stream = tunnel(&stage, Way::Socks5, echo.addr()).await?;
    let begun = Instant::now();
    stage.gateway.signal(Signal::SIGTERM)?;
    assert!(stage.gateway.wait()?.success());
    let took = begun.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&took), "{took:?}");
    assert_eq!(stream.read_u8().await.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_comes_whole_is_no_stream_in_the_drain_s_last_words() -> Result {
    let _turn = alone().await;
    let mut stage =
        Stage::with(&Options { gateway: "  drain_timeout: 1s".to_owned(), ..Options::default() })?;
    let mut user = TcpStream::connect(stage.http_addr()).await?;
    user.write_all(b"GET http://a.invalid/ HTTP/1.1\r\n").await?;
    // Accepted in their order: once a second one is answered, the first is there.
    assert_eq!(code(&stage, "http://a.invalid/").await?, "502");
    stage.gateway.signal(Signal::SIGTERM)?;
    assert!(stage.gateway.wait()?.success());
    let lines = stage.gateway.lines();
    let last = lines.iter().find(|line| line.contains("when the time to drain was over"));
    assert!(last.is_some_and(|line| line.contains("connections were still open")), "{last:?}");
    Ok(())
}
