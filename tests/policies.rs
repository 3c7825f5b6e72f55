//! What the file can ask of a gateway beyond carrying bytes: accounts and groups, places and lines, ports and fronts.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyproxy_tests::{
    HttpTarget, Options, Output, Result, Stage, Target, USER, Way, metric, run, socks5_request, tool, tunnel,
    until,
};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// Runs curl through `proxy`.
async fn curl(proxy: &str, arguments: &[&str]) -> Result<Output> {
    let mut curl = tool("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--proxy", proxy]).args(arguments);
    run(curl).await
}

/// The code of the proxy's answer, and its `Retry-After`.
async fn code(stage: &Stage, url: &str) -> Result<String> {
    let what = ["--output", "/dev/null", "--write-out", "%{http_code} %header{retry-after}", url];
    Ok(curl(&stage.http(), &what).await?.out)
}

/// Whether bytes go there and back.
async fn echoes(stream: &mut TcpStream) -> Result<bool> {
    stream.write_all(b"there and back").await?;
    let mut back = [0; 14];
    stream.read_exact(&mut back).await?;
    Ok(&back == b"there and back")
}

// === Clients that come and go ===

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_restarts_goes_unnoticed() -> Result {
    let options = Options { gateway: "  limits: { wait_for_client: 20s }".to_owned(), ..Options::default() };
    let (mut stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    for end in [Signal::SIGTERM, Signal::SIGKILL] {
        stage.client.signal(end)?;
        stage.client.wait()?;
        let waiting = (0..20).map(|index| {
            let proxy = if index % 2 == 0 { stage.http() } else { stage.socks5() };
            let url = target.url("/hello");
            tokio::spawn(async move { curl(&proxy, &[&url]).await?.ok() })
        });
        let waiting: Vec<_> = waiting.collect();
        stage.restart_client()?;
        for answer in waiting {
            assert_eq!(answer.await??, "hello from inside\n");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn f1_while_another_client_serves_the_group_nobody_is_refused() -> Result {
    let (mut stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let other = stage.another_client(&[("CLIENT_ID", "client-2")])?;
    stage.client.kill()?;
    for _ in 0..20 {
        assert_eq!(code(&stage, &target.url("/hello")).await?, "200 ");
    }
    drop(other);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn l6_clients_share_evenly_and_one_that_goes_is_asked_no_more() -> Result {
    const DIALS: usize = 800;
    let options =
        Options { gateway: "  balance: { strategy: round_robin }".to_owned(), ..Options::default() };
    let (mut stage, echo) = (Stage::with(&options)?, Target::echo().await?);
    let mut others = Vec::new();
    for id in ["client-2", "client-3", "client-4"] {
        others.push(stage.another_client(&[("CLIENT_ID", id)])?);
    }
    for way in Way::ALL {
        for _ in 0..DIALS / 2 {
            assert!(echoes(&mut tunnel(&stage, way, echo.addr()).await?).await?);
        }
    }
    assert_eq!(
        shares(&stage, DIALS).await?,
        [("client-1", 200), ("client-2", 200), ("client-3", 200), ("client-4", 200)].map(owned)
    );
    stage.client.signal(Signal::SIGTERM)?;
    stage.client.wait()?;
    for _ in 0..DIALS / 2 {
        assert!(echoes(&mut tunnel(&stage, Way::Connect, echo.addr()).await?).await?);
    }
    let shares = shares(&stage, DIALS + DIALS / 2).await?;
    assert_eq!(shares[0], owned(("client-1", 200)));
    for (client, share) in &shares[1..] {
        // A third of what came since.
        assert!((327..=340).contains(share), "{client}: {share}");
    }
    Ok(())
}

fn owned((client, share): (&str, usize)) -> (String, usize) {
    (client.to_owned(), share)
}

/// How many streams each client has carried, once so many have ended.
async fn shares(stage: &Stage, streams: usize) -> Result<Vec<(String, usize)>> {
    let count = || {
        let mut shares = std::collections::BTreeMap::new();
        for line in stage.gateway.lines() {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            if let (Some("ok"), Some(client)) = (line["outcome"].as_str(), line["client"].as_str()) {
                *shares.entry(client.to_owned()).or_default() += 1;
            }
        }
        shares.into_iter().collect::<Vec<_>>()
    };
    until("all lines", async || Ok(count().iter().map(|(_, share)| share).sum::<usize>() == streams)).await?;
    Ok(count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_s_successor_takes_over_at_once_and_its_streams_live_on() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let echo = Target::echo().await?;
    let mut old = tunnel(&stage, Way::Socks5, echo.addr()).await?;
    let successor = stage.another_client(&[])?;
    assert!(echoes(&mut old).await?);
    assert_eq!(code(&stage, &target.url("/hello")).await?, "200 ");
    successor.access(&[("target", target.addr().to_string().into()), ("outcome", "ok".into())])?;
    stage.client.line("why", |line| {
        line["message"].as_str().is_some_and(|message| message.contains("took this client's place"))
    })?;
    Ok(())
}

// === Who a user is ===

#[tokio::test(flavor = "multi_thread")]
async fn l3_what_a_user_says_of_their_address_is_believed_nowhere() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let url = target.url("/hello");
    let forged = ["--header", "X-Forwarded-For: 10.9.8.7", "--header", "Forwarded: for=10.9.8.7"];
    let what = [&forged[..], &["--output", "/dev/null", "--write-out", "%{http_code}"]].concat();
    assert_eq!(curl(&stage.http(), &[&what[..], &[&url]].concat()).await?.out, "200");
    let line = stage.gateway.access(&[("outcome", "ok".into())])?;
    assert!(line["source"].as_str().is_some_and(|source| source.starts_with("127.0.0.1:")), "{line}");
    // The lock-out counts by the socket too: a new forged address each time is no new source.
    let wrong = format!("http://{USER}:wrong@{}", stage.http_addr());
    let mut codes = Vec::new();
    for number in 0..12 {
        let forged = format!("X-Forwarded-For: 10.9.8.{number}");
        let what = ["--header", &forged, "--output", "/dev/null", "--write-out", "%{http_code}", &url];
        codes.push(curl(&wrong, &what).await?.out);
    }
    assert_eq!((codes[9].as_str(), codes[11].as_str()), ("407", "429"), "{codes:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_an_account_of_one_front_is_none_of_another_and_none_of_a_client() -> Result {
    let options = Options {
        open: true,
        http: ", users: [ { username: web, password: w } ]".to_owned(),
        socks5: ", users: [ { username: sock, password: s } ]".to_owned(),
        ..Options::default()
    };
    let (stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    let url = target.url("/hello");
    let (http, socks5) = (stage.http_addr(), stage.socks5_addr());
    for (proxy, code) in [
        (format!("http://web:w@{http}"), "200"),
        (format!("http://sock:s@{http}"), "407"),
        (format!("socks5h://sock:s@{socks5}"), "200"),
        (format!("socks5h://web:w@{socks5}"), "000"),
        (format!("socks5h://gateway_user:gateway_password@{socks5}"), "000"),
    ] {
        let what = ["--output", "/dev/null", "--write-out", "%{http_code}", &url];
        assert_eq!(curl(&proxy, &what).await?.out, code, "{proxy}");
    }
    let mut intruder = anyproxy_tests::Program::command(&["client", "--config"])?;
    intruder.arg(stage.file());
    for (key, value) in [("CLIENT_ID", "client-2"), ("AUTH_USERNAME", "web"), ("AUTH_PASSWORD", "w")] {
        intruder.env(format!("ANYPROXY_CLIENT__{key}"), value);
    }
    let intruder = anyproxy_tests::Program::spawn(&mut intruder)?;
    intruder.line("a refusal", |line| line["level"] == "ERROR" && line["message"] == "no tunnel")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_users_wrong_logins_keep_no_client_out() -> Result {
    // About two seconds of a core for each guess.
    let users = "users: [ { username: user, password_hash: \
                 '$2y$15$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/FuA2/mHZFpe' } ]";
    let options = Options {
        open: true,
        http: format!(", {users}"),
        gateway: "  clients: [ { username: hashed, password_hash: \
                  '$2y$05$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/FuA2/mHZFpe' } ]"
            .to_owned(),
        ..Options::default()
    };
    let stage = Stage::with(&options)?;
    let proxy = stage.http_addr();
    // As many as hash and wait in line, each guess from an address of its own: none is locked out.
    let seats = (std::thread::available_parallelism()?.get() / 2).max(1);
    let mut guessing = JoinSet::new();
    for guesser in 0..u8::try_from(64 + seats)? {
        guessing.spawn(async move {
            for guess in (0..u16::MAX).map(u16::to_be_bytes) {
                guess_from([127, 100 + guesser % 100, guess[0], guess[1]].into(), proxy).await?;
            }
            Result::Ok(())
        });
    }
    let full = async || Ok(guess_from([127, 0, 0, 1].into(), proxy).await? == "HTTP/1.1 503");
    until("the line is full", full).await?;
    let hashed = [("CLIENT_ID", "client-2"), ("AUTH_USERNAME", "hashed"), ("AUTH_PASSWORD", "password")];
    drop(stage.another_client(&hashed)?);
    assert!(guessing.try_join_next().is_none(), "nobody has stopped guessing");
    Ok(())
}

/// How the answer to a wrong login from that address begins.
async fn guess_from(source: IpAddr, proxy: SocketAddr) -> Result<String> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    let mut user = socket.connect(proxy).await?;
    // `user:wrong`.
    user.write_all(b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nProxy-Authorization: Basic dXNlcjp3cm9uZw==\r\n\r\n")
        .await?;
    let mut answer = [0; 12];
    user.read_exact(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

// === Places ===

#[tokio::test(flavor = "multi_thread")]
async fn h24_a_proxy_that_is_asked_for_itself_ends_at_the_user_s_places() -> Result {
    let users = ", users: [ { username: user, password: 'pass:w0rd' }, { username: bob, password: b } ]";
    let options = Options {
        open: true,
        http: users.to_owned(),
        gateway: "  limits: { per_user_connections: 5 }".to_owned(),
        ..Options::default()
    };
    let (stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    let own = stage.http_addr();
    let mut stream = TcpStream::connect(own).await?;
    let mut codes = Vec::new();
    for _ in 0..6 {
        // Each time within what the last one has opened.
        let ask = format!(
            "CONNECT {own} HTTP/1.1\r\nHost: {own}\r\nProxy-Authorization: Basic dXNlcjpwYXNzOncwcmQ=\r\n\r\n"
        );
        stream.write_all(ask.as_bytes()).await?;
        let head = anyproxy_tests::head(&mut stream).await?;
        codes.push(head.get(9..12).unwrap_or_default().to_owned());
    }
    assert_eq!(codes, ["200", "200", "200", "200", "200", "429"]);
    let bob = format!("http://bob:b@{own}");
    assert_eq!(curl(&bob, &[&target.url("/hello")]).await?.ok()?, "hello from inside\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_place_waits_in_line_and_who_finds_no_line_is_told_when_to_come_back() -> Result {
    let options = Options {
        gateway: "  limits: { max_connections: 2, queue: { size: 1, timeout: 20s } }".to_owned(),
        ..Options::default()
    };
    let (stage, echo) = (Stage::with(&options)?, Target::echo().await?);
    let target = HttpTarget::start().await?;
    let held =
        [tunnel(&stage, Way::Connect, echo.addr()).await?, tunnel(&stage, Way::Socks5, echo.addr()).await?];
    // Of two more, one finds the line empty and the other finds it full.
    let url = target.url("/hello");
    let (mut one, mut other) = (Box::pin(code(&stage, &url)), Box::pin(code(&stage, &url)));
    let (refused, waiting) = tokio::select! {
        refused = &mut one => (refused?, other),
        refused = &mut other => (refused?, one),
    };
    let (told, retry_after) = refused.split_once(' ').unwrap_or_default();
    assert!(told == "503" && retry_after.parse::<u32>()? > 0, "{refused}");
    drop(held);
    assert_eq!(waiting.await?, "200 ");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_for_a_place_is_told_when_to_come_back() -> Result {
    let options = Options {
        gateway: "  limits: { max_connections: 1, queue: { timeout: 300ms } }".to_owned(),
        ..Options::default()
    };
    let (stage, echo) = (Stage::with(&options)?, Target::echo().await?);
    let _held = tunnel(&stage, Way::Connect, echo.addr()).await?;
    let begun = Instant::now();
    let answer = code(&stage, "http://localhost:1/").await?;
    assert!(answer.starts_with("503 ") && answer.len() > 4, "{answer}");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_place_when_the_gateway_drains_is_answered_at_once() -> Result {
    let options = Options {
        gateway: "  limits: { max_connections: 1, queue: { timeout: 1h } }".to_owned(),
        top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(),
        ..Options::default()
    };
    let (stage, echo) = (Stage::with(&options)?, Target::echo().await?);
    let held = tunnel(&stage, Way::Connect, echo.addr()).await?;
    let drain = async {
        let waits = async || Ok(metric(&stage.gateway, "anyproxy_queue_length").await? > 0.0);
        until("a dial waits", waits).await?;
        stage.gateway.signal(Signal::SIGTERM)?;
        Result::Ok(())
    };
    let (answer, ()) = tokio::try_join!(code(&stage, "http://localhost:1/"), drain)?;
    assert!(answer.starts_with("503 "), "{answer}");
    drop(held);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_s_places_are_theirs_at_all_fronts_together() -> Result {
    let options =
        Options { gateway: "  limits: { per_user_connections: 2 }".to_owned(), ..Options::default() };
    let (stage, echo) = (Stage::with(&options)?, Target::echo().await?);
    let first = tunnel(&stage, Way::Connect, echo.addr()).await?;
    let _second = tunnel(&stage, Way::Socks5, echo.addr()).await?;
    let answer = code(&stage, &format!("http://{}/", echo.addr())).await?;
    assert!(answer.starts_with("429 ") && answer.len() > 4, "{answer}");
    drop(first);
    until("a place is free", async || Ok(tunnel(&stage, Way::Socks5, echo.addr()).await.is_ok())).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_s_bytes_come_no_faster_than_they_may() -> Result {
    let options = Options {
        gateway: "  limits: { bandwidth: { key: user, down: 1MiB } }".to_owned(),
        ..Options::default()
    };
    let (stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    let begun = Instant::now();
    // Two at once share what their user may have.
    let one = || {
        let (proxy, url) = (stage.http(), target.url("/bytes/1500000"));
        async move { curl(&proxy, &["--output", "/dev/null", &url]).await?.ok() }
    };
    let (first, second) = tokio::join!(one(), one());
    first.and(second)?;
    let took = begun.elapsed();
    assert!((Duration::from_millis(1_500)..Duration::from_secs(6)).contains(&took), "3 MB took {took:?}");
    Ok(())
}

// === Groups ===

#[tokio::test(flavor = "multi_thread")]
async fn a11_who_may_not_use_a_network_is_told_so_when_they_ask_for_it() -> Result {
    const ASSOCIATE: &[u8] = &[3, 0, 1, 0, 0, 0, 0, 0, 0];
    let only = |network: &str, user: &str| Options {
        gateway: format!(
            "  access: {{ rules: [ {{ deny: ['*'], users: [{user}], protocols: [{network}] }} ], default: allow }}"
        ),
        ..Options::default()
    };
    let target = HttpTarget::start().await?;
    for (denied, user, associates, connects) in
        [("udp", USER, 2, "200 "), ("udp", "bob", 0, "200 "), ("tcp", USER, 0, "403 ")]
    {
        let mut stage = Stage::with(&only(denied, user))?;
        let reply = associate(&stage, ASSOCIATE).await?;
        assert_eq!(reply, associates, "{denied} denied to {user}");
        assert_eq!(code(&stage, &target.url("/hello")).await?, connects, "{denied} denied to {user}");
        stage.client.kill()?;
        if associates == 0 {
            assert_eq!(associate(&stage, ASSOCIATE).await?, 3, "nobody is there");
        }
    }
    // The client's own rules say the same, later and by the same word.
    let options = Options { client: "  protocols: [tcp]".to_owned(), ..Options::default() };
    assert_eq!(associate(&Stage::with(&options)?, ASSOCIATE).await?, 2);
    Ok(())
}

/// The code of the reply; one of success tells an address.
async fn associate(stage: &Stage, request: &[u8]) -> Result<u8> {
    let mut user = socks5_request(stage, request).await?;
    let mut reply = [0; 10];
    user.read_exact(&mut reply).await?;
    let address = u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]);
    assert_eq!(reply[1] == 0, address != 0, "{reply:?}");
    Ok(reply[1])
}

#[tokio::test(flavor = "multi_thread")]
async fn users_reach_the_networks_of_their_groups_and_no_other() -> Result {
    let users = ", users: [ { username: alice, password: a, groups: [blue, green] }, \
                 { username: bob, password: b, group: green }, { username: carol, password: c, group: red } ]";
    let options = Options {
        open: true,
        http: users.to_owned(),
        gateway: "  clients:
    - { username: east, password: e, groups: [blue] }
    - { username: west, password: w, groups: [green] }
  routes: [ { targets: ['localhost'], group: green } ]
  limits: { wait_for_client: 100ms }"
            .to_owned(),
        ..Options::default()
    };
    let (stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    let login = |user, password, group| {
        [("CLIENT_ID", user), ("AUTH_USERNAME", user), ("AUTH_PASSWORD", password), ("GROUP_ID", group)]
    };
    let _east = stage.another_client(&login("east", "e", "blue"))?;
    let _west = stage.another_client(&login("west", "w", "green"))?;
    let by_name = format!("http://localhost:{}/hello", target.addr().port());
    let by_address = target.url("/hello");
    for (user, url, client) in [
        ("alice:a", &by_address, "east"),
        ("alice:a", &by_name, "west"),
        ("bob:b", &by_address, "west"),
        ("bob:b", &by_name, "west"),
    ] {
        let proxy = format!("http://{user}@{}", stage.http_addr());
        assert_eq!(curl(&proxy, &[url]).await?.ok()?, "hello from inside\n", "{user} {url}");
        let host = url.trim_start_matches("http://").trim_end_matches("/hello");
        let name = user.split(':').next().unwrap_or_default();
        stage.gateway.access(&[("user", name.into()), ("target", host.into()), ("client", client.into())])?;
    }
    let carol = format!("http://carol:c@{}", stage.http_addr());
    let what = ["--output", "/dev/null", "--write-out", "%{http_code}", &by_address];
    assert_eq!(curl(&carol, &what).await?.out, "503");

    let mut intruder = anyproxy_tests::Program::command(&["client", "--config"])?;
    intruder.arg(stage.file());
    for (key, value) in login("east", "e", "green") {
        intruder.env(format!("ANYPROXY_CLIENT__{key}"), value);
    }
    let intruder = anyproxy_tests::Program::spawn(&mut intruder)?;
    let refused = intruder.line("a refusal", |line| line["message"] == "no tunnel")?;
    assert!(refused["advice"].as_str().is_some_and(|advice| advice.contains("group_id")), "{refused}");
    Ok(())
}

// === Further fronts ===

#[tokio::test(flavor = "multi_thread")]
async fn http_and_socks5_share_a_port_where_they_are_asked_to() -> Result {
    let mixed = "  mixed: { listen_addr: '127.0.0.1:0', auth_username: alice, auth_password: a }";
    let options = Options { proxy: mixed.to_owned(), ..Options::default() };
    let (stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    let front = stage.gateway.listening("mixed")?;
    for scheme in ["http", "socks5h"] {
        let url = target.url("/hello");
        let answer = curl(&format!("{scheme}://alice:a@{front}"), &[&url]).await?.ok()?;
        assert_eq!(answer, "hello from inside\n", "{scheme}");
        assert_ne!(
            curl(&format!("{scheme}://alice:b@{front}"), &["--fail", &url]).await?.code,
            0,
            "{scheme}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_opens_a_port_of_the_gateway_that_its_account_may_have() -> Result {
    let (allowed, other) = (anyproxy_tests::free_port()?, anyproxy_tests::free_port()?);
    let echo = Target::echo().await?;
    let options = Options {
        gateway: format!("  clients: [ {{ username: east, password: e, open_ports: ['{allowed}'] }} ]"),
        client: format!(
            "  open_ports:
    - {{ remote_port: {allowed}, local_port: {0} }}
    - {{ remote_port: {other}, local_port: {0} }}",
            echo.addr().port()
        ),
        ..Options::default()
    };
    let stage = Stage::with(&options)?;
    let login = [("CLIENT_ID", "east"), ("AUTH_USERNAME", "east"), ("AUTH_PASSWORD", "e")];
    let client = stage.another_client(&login)?;
    client
        .line("the port", |line| line["message"] == "the gateway opened a port" && line["port"] == allowed)?;
    client.line("a refusal", |line| {
        line["message"] == "the gateway did not open a port" && line["port"] == other
    })?;
    let mut stream = TcpStream::connect(("127.0.0.1", allowed)).await?;
    assert!(echoes(&mut stream).await?);
    drop(stream);
    let line = stage.gateway.access(&[("front", "port".into())])?;
    assert_eq!((&line["user"], &line["client"]), (&"port:east".into(), &"east".into()), "{line}");
    assert!(TcpStream::connect(("127.0.0.1", other)).await.is_err());
    drop(client);
    until("the port goes with its client", async || {
        Ok(TcpStream::connect(("127.0.0.1", allowed)).await.is_err())
    })
    .await?;
    Ok(())
}
