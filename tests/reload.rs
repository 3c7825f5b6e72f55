//! What SIGHUP changes of a gateway and a client that run, and what it leaves alone.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyproxy_tests::{
    HttpTarget, Options, PASSWORD, PATIENCE, Program, Result, Stage, Target, USER, Way, head, metric, run,
    tool, tunnel, until,
};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The code of the proxy's or the target's answer to a user with this password.
async fn code(stage: &Stage, password: &str, url: &str) -> Result<String> {
    let mut curl = tool("curl");
    curl.args([
        "--silent",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
        "--max-time",
        "60",
        "--proxy",
    ]);
    curl.arg(format!("http://user:{password}@{}", stage.http_addr())).arg(url);
    Ok(run(curl).await?.out)
}

/// Puts other text in the place of some of the file's.
fn edit(stage: &Stage, from: &str, to: &str) -> Result {
    let text = std::fs::read_to_string(stage.file())?;
    assert!(text.contains(from), "{from} is not in {text}");
    Ok(std::fs::write(stage.file(), text.replace(from, to))?)
}

/// Sends a SIGHUP and waits for what is said about it, at the `nth` time.
fn reload(program: &Program, said: &str, nth: usize) -> Result<serde_json::Value> {
    program.signal(Signal::SIGHUP)?;
    let seen = Cell::new(0);
    program.line(said, |line| {
        if line["message"].as_str().is_some_and(|message| message.contains(said)) {
            seen.set(seen.get() + 1);
            return seen.get() == nth;
        }
        false
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_what_a_new_file_says_holds_at_once_and_living_streams_go_on() -> Result {
    let (stage, echo, target) = (Stage::start()?, Target::echo().await?, HttpTarget::start().await?);
    let (old, url) = (PASSWORD.replace(':', "%3A"), target.url("/hello"));
    let mut living = tunnel(&stage, Way::Socks5, echo.addr()).await?;
    assert_eq!(code(&stage, &old, &url).await?, "200");

    edit(&stage, PASSWORD, "changed")?;
    reload(&stage.gateway, "the file is in force", 1)?;
    assert_eq!(code(&stage, &old, &url).await?, "407");
    assert_eq!(code(&stage, "changed", &url).await?, "200");

    // A rule on a range, which the client judges for names.
    edit(&stage, "  tls_key", "  forbidden_hosts: ['127.0.0.0/8']\n  tls_key")?;
    reload(&stage.gateway, "the file is in force", 2)?;
    assert_eq!(code(&stage, "changed", &url).await?, "403");
    let by_name = url.replace("127.0.0.1", "localhost");
    assert_eq!(code(&stage, "changed", &by_name).await?, "403");

    edit(&stage, "  forbidden_hosts: ['127.0.0.0/8']\n  tls_key", "  tls_key")?;
    reload(&stage.gateway, "the file is in force", 3)?;
    assert_eq!(code(&stage, "changed", &by_name).await?, "200");

    // The client's own rules.
    edit(&stage, "  client_id", "  forbidden_hosts: ['127.0.0.0/8']\n  client_id")?;
    reload(&stage.client, "the file is in force", 1)?;
    assert_eq!(code(&stage, "changed", &url).await?, "403");

    living.write_all(b"still here").await?;
    living.read_exact(&mut [0; 10]).await?;
    Ok(())
}

/// How many waits ended while a thread looked for work, once a byte has been to the target and back a hundred times.
async fn looks(program: &Program, stage: &Stage, echo: &Target) -> Result<f64> {
    let mut stream = tunnel(stage, Way::Socks5, echo.addr()).await?;
    for _ in 0..100 {
        stream.write_all(b"a").await?;
        stream.read_exact(&mut [0]).await?;
    }
    metric(program, "anyproxy_waits_total{end=\"looking\"}").await
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_threads_look_for_work_before_they_sleep_for_as_long_as_the_new_file_says() -> Result {
    let never = "  busy_poll: 0".to_owned();
    let top = "admin: { listen_addr: '127.0.0.1:0' }".to_owned();
    let options = Options { gateway: never.clone(), client: never, top, ..Options::default() };
    // Both read the same file, so each listens on a port of its own.
    let (stage, echo) = (Stage::with(&options)?, Target::echo().await?);
    let ends = [&stage.gateway, &stage.client];
    for end in ends {
        assert_eq!(looks(end, &stage, &echo).await?, 0.0);
    }
    edit(&stage, "busy_poll: 0", "busy_poll: 1ms")?;
    for end in ends {
        reload(end, "the file is in force", 1)?;
        until("it looks for work", async || Ok(looks(end, &stage, &echo).await? > 0.0)).await?;
    }
    edit(&stage, "busy_poll: 1ms", "busy_poll: 0")?;
    for end in ends {
        reload(end, "the file is in force", 2)?;
        let before = looks(end, &stage, &echo).await?;
        assert_eq!(looks(end, &stage, &echo).await?, before);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_limits_routes_and_the_choice_of_clients_are_those_of_the_new_file() -> Result {
    let options = Options {
        open: true,
        http: format!(", users: [ {{ username: user, password: '{PASSWORD}', groups: [default, green] }} ]"),
        gateway: "  clients: [ { username: green, password: g, groups: [green] } ]
  limits: { wait_for_client: 1h }
  balance: { strategy: round_robin }"
            .to_owned(),
        ..Options::default()
    };
    let (mut stage, echo) = (Stage::with(&options)?, Target::echo().await?);
    let password = PASSWORD.replace(':', "%3A");
    let second = stage.another_client(&[("CLIENT_ID", "client-2")])?;
    let green =
        [("CLIENT_ID", "green"), ("AUTH_USERNAME", "green"), ("AUTH_PASSWORD", "g"), ("GROUP_ID", "green")];
    let green = stage.another_client(&green)?;

    let (in_turn, always_one) = (HttpTarget::start().await?, HttpTarget::start().await?);
    assert_eq!(clients(&stage, &in_turn).await?.len(), 2);
    edit(&stage, "{ strategy: round_robin }", "{ strategy: sticky }")?;
    reload(&stage.gateway, "the file is in force", 1)?;
    assert_eq!(clients(&stage, &always_one).await?.len(), 1);

    // A connection that keeps its way to the target for the next request, and asks again under the new routes.
    let (mut asking, kept) = (TcpStream::connect(stage.http_addr()).await?, HttpTarget::start().await?);
    ask(&mut asking, &kept).await?;
    edit(&stage, "  limits", "  routes: [ { targets: ['127.0.0.1'], group: green } ]\n  limits")?;
    reload(&stage.gateway, "the file is in force", 2)?;
    let elsewhere = HttpTarget::start().await?;
    assert_eq!(clients(&stage, &elsewhere).await?, BTreeSet::from(["green".to_owned()]));
    ask(&mut asking, &kept).await?;
    drop(asking);
    assert!(served(&stage, &kept, 2).await?.contains("green"));

    limit(&stage, "rate: { per_second: 1, burst: 1 }")?;
    reload(&stage.gateway, "the file is in force", 3)?;
    // One connection asks five times in a row.
    let codes = code(&stage, &password, &elsewhere.url("/hello?[1-5]")).await?;
    assert!(codes.starts_with("200") && codes.contains("429"), "{codes}");

    limit(&stage, "bandwidth: { down: 64KiB }")?;
    reload(&stage.gateway, "the file is in force", 4)?;
    let begun = Instant::now();
    assert_eq!(code(&stage, &password, &elsewhere.url("/bytes/160000")).await?, "200");
    assert!(begun.elapsed() > Duration::from_secs(1), "160 kB came in {:?}", begun.elapsed());

    let _living = tunnel(&stage, Way::Connect, echo.addr()).await?;
    limit(&stage, "max_connections: 1, queue: { size: 0 }")?;
    reload(&stage.gateway, "the file is in force", 5)?;
    assert_eq!(code(&stage, &password, &elsewhere.url("/hello")).await?, "503");

    // Nobody is there, and the first file would have let them wait.
    for mut client in [second, green] {
        client.kill()?;
    }
    stage.client.kill()?;
    let gone = |line: &&String| line.contains("client's tunnel ended");
    until("nobody is there", async || Ok(stage.gateway.lines().iter().filter(gone).count() == 3)).await?;
    limit(&stage, "wait_for_client: 0")?;
    reload(&stage.gateway, "the file is in force", 6)?;
    assert_eq!(code(&stage, &password, &elsewhere.url("/hello")).await?, "503");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn i11_a_dial_that_waits_while_it_is_revoked_is_refused_when_its_turn_comes() -> Result {
    let options = Options {
        open: true,
        http: format!(", users: [ {{ username: user, password: '{PASSWORD}' }} ]"),
        gateway: "  limits: { max_connections: 1, queue: { timeout: 1h } }".to_owned(),
        top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(),
        ..Options::default()
    };
    let (stage, echo, target) = (Stage::with(&options)?, Target::echo().await?, HttpTarget::start().await?);
    let (password, url) = (PASSWORD.replace(':', "%3A"), target.url("/hello"));
    let revoked = [
        ("  limits", format!("  forbidden_hosts: ['{}']\n  limits", target.addr()), "403"),
        ("username: user", "username: another".to_owned(), "407"),
        (PASSWORD, "changed".to_owned(), "407"),
    ];
    let mut reloads = 0;
    for (from, to, refused) in revoked {
        let running = tunnel(&stage, Way::Connect, echo.addr()).await?;
        let waits = async || Ok(metric(&stage.gateway, "anyproxy_queue_length").await? > 0.0);
        reloads += 1;
        let revoke = async {
            until("a dial waits", waits).await?;
            edit(&stage, from, &to)?;
            reload(&stage.gateway, "the file is in force", reloads)?;
            drop(running);
            Result::Ok(())
        };
        let (code, ()) = tokio::try_join!(code(&stage, &password, &url), revoke)?;
        assert_eq!(code, refused);
        let outcome = if refused == "407" { "login_required" } else { "denied" };
        stage.gateway.access(&[("target", target.addr().to_string().into()), ("outcome", outcome.into())])?;
        edit(&stage, &to, from)?;
        reloads += 1;
        reload(&stage.gateway, "the file is in force", reloads)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_what_a_revoked_user_asks_for_is_refused_and_has_its_line_and_its_place_in_the_metrics() -> Result
{
    let options = Options { top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(), ..Options::default() };
    let (stage, echo) = (Stage::with(&options)?, Target::echo().await?);
    let good = std::fs::read_to_string(stage.file())?;
    let revoked = [("auth_username: user", "auth_username: another"), (PASSWORD, "changed")];
    for (nth, (from, to)) in revoked.into_iter().enumerate() {
        let (mut user, target) = (logged_in(&stage).await?, echo.addr().to_string());
        edit(&stage, from, to)?;
        reload(&stage.gateway, "the file is in force", 2 * nth + 1)?;
        assert_ne!(connect(&mut user, echo.addr()).await?, 0, "{to}");
        let refused =
            [("user", "user".into()), ("target", target.into()), ("outcome", "login_required".into())];
        stage.gateway.access(&refused)?;
        let counted = [
            "anyproxy_dials_total{front=\"socks5\",network=\"tcp\",outcome=\"login_required\"}",
            "anyproxy_refusals_total{layer=\"auth\",outcome=\"login_required\"}",
        ];
        for counter in counted {
            assert_eq!(metric(&stage.gateway, counter).await?, (nth + 1) as f64, "{counter}");
        }
        std::fs::write(stage.file(), &good)?;
        reload(&stage.gateway, "the file is in force", 2 * nth + 2)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_an_association_of_who_was_revoked_keeps_its_destinations_and_gets_no_other() -> Result {
    let user = format!("{{ username: user, password: '{PASSWORD}' }}");
    let options = Options { open: true, socks5: format!(", users: [ {user} ]"), ..Options::default() };
    let stage = Stage::with(&options)?;
    let (first, second, third) = (udp_echo().await?, udp_echo().await?, udp_echo().await?);
    let mut control = logged_in(&stage).await?;
    control.write_all(&[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    let mut answer = [0; 10];
    control.read_exact(&mut answer).await?;
    assert_eq!(answer[1], 0);
    let relay = u16::from_be_bytes([answer[8], answer[9]]);
    let datagrams = UdpSocket::bind("127.0.0.1:0").await?;
    datagrams.connect(("127.0.0.1", relay)).await?;
    let echoes = async |port: u16| {
        let datagram = [&[0, 0, 0, 1, 127, 0, 0, 1], &port.to_be_bytes()[..], b"hello"].concat();
        let mut back = [0; 32];
        datagrams.send(&datagram).await?;
        let length = timeout(PATIENCE, datagrams.recv(&mut back)).await??;
        assert_eq!(&back[..length], datagram);
        Result::Ok(())
    };
    echoes(first).await?;

    edit(&stage, &user, &user.replace(" }", ", groups: [default, green] }"))?;
    reload(&stage.gateway, "the file is in force", 1)?;
    echoes(second).await?;

    edit(&stage, PASSWORD, "changed")?;
    reload(&stage.gateway, "the file is in force", 2)?;
    for known in [first, second] {
        echoes(known).await?;
    }
    datagrams.send(&[&[0, 0, 0, 1, 127, 0, 0, 1], &third.to_be_bytes()[..], b"hello"].concat()).await?;
    let target = format!("127.0.0.1:{third}");
    stage.gateway.access(&[("target", target.into()), ("outcome", "login_required".into())])?;
    Ok(())
}

/// The port of a target that sends datagrams back.
async fn udp_echo() -> Result<u16> {
    let target = UdpSocket::bind("127.0.0.1:0").await?;
    let port = target.local_addr()?.port();
    tokio::spawn(async move {
        let mut datagram = [0; 32];
        while let Ok((length, from)) = target.recv_from(&mut datagram).await {
            let _ = target.send_to(&datagram[..length], from).await;
        }
    });
    Ok(port)
}

/// A user who has logged in by SOCKS5, and has asked for nothing yet.
async fn logged_in(stage: &Stage) -> Result<TcpStream> {
    let mut user = TcpStream::connect(stage.socks5_addr()).await?;
    user.write_all(b"\x05\x01\x02").await?;
    let login = [&[1, USER.len() as u8], USER.as_bytes(), &[PASSWORD.len() as u8], PASSWORD.as_bytes()];
    user.write_all(&login.concat()).await?;
    let mut answer = [0; 4];
    user.read_exact(&mut answer).await?;
    assert_eq!(answer, [5, 2, 1, 0]);
    Ok(user)
}

/// The answer to a CONNECT of a user who is logged in.
async fn connect(user: &mut TcpStream, target: SocketAddr) -> Result<u8> {
    let SocketAddr::V4(target) = target else { return Err("an IPv4 target".into()) };
    user.write_all(&[&[5, 1, 0, 1], &target.ip().octets()[..], &target.port().to_be_bytes()].concat())
        .await?;
    let mut answer = [0; 10];
    user.read_exact(&mut answer).await?;
    Ok(answer[1])
}

/// Puts other limits in the place of the file's.
fn limit(stage: &Stage, limits: &str) -> Result {
    let text = std::fs::read_to_string(stage.file())?;
    let now = text.lines().find(|line| line.starts_with("  limits: ")).ok_or("limits in the file")?;
    edit(stage, now, &format!("  limits: {{ {limits} }}"))
}

/// Asks `target` four times, each by a connection of its own: who served that.
async fn clients(stage: &Stage, target: &HttpTarget) -> Result<BTreeSet<String>> {
    for _ in 0..4 {
        assert_eq!(code(stage, &PASSWORD.replace(':', "%3A"), &target.url("/hello")).await?, "200");
    }
    served(stage, target, 4).await
}

/// Which clients served so many streams to `target`, once all have ended.
async fn served(stage: &Stage, target: &HttpTarget, streams: usize) -> Result<BTreeSet<String>> {
    let served = || {
        let lines = stage.gateway.lines();
        let lines = lines.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let lines = lines.filter(|line| line["target"] == target.addr().to_string());
        lines.filter_map(|line| Some(line["client"].as_str()?.to_owned())).collect::<Vec<_>>()
    };
    until("an access line for each", async || Ok(served().len() == streams)).await?;
    Ok(served().into_iter().collect())
}

/// Asks `target` on a connection that is kept.
async fn ask(asking: &mut TcpStream, target: &HttpTarget) -> Result {
    // `user:pass:w0rd`.
    let login = "Proxy-Authorization: Basic dXNlcjpwYXNzOncwcmQ=";
    let request = format!("GET {} HTTP/1.1\r\nHost: target\r\n{login}\r\n\r\n", target.url("/hello"));
    asking.write_all(request.as_bytes()).await?;
    let head = head(asking).await?;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    asking.read_exact(&mut [0; "hello from inside\n".len()]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn r4_a_new_certificate_is_shown_at_once_tunnels_stay_and_one_without_its_key_is_not_taken() -> Result {
    let options = Options {
        proxy: "  mixed: { listen_addr: '127.0.0.1:0', auth_username: alice, auth_password: a, \
                tls_cert: '{dir}/server.crt', tls_key: '{dir}/server.key' }"
            .to_owned(),
        ..Options::default()
    };
    let (stage, echo) = (Stage::with(&options)?, Target::echo().await?);
    let mut living = tunnel(&stage, Way::Socks5, echo.addr()).await?;
    let next = stage.dir().join("next");
    let made = Program::start(&["cert", "--out", &next.display().to_string(), "localhost"])?.wait()?;
    assert!(made.success());
    let listeners = [stage.gateway.listening("mixed")?, stage.gateway.listening("gateway")?];
    let old = std::fs::read_to_string(stage.dir().join("server.crt"))?;
    let new = std::fs::read_to_string(next.join("server.crt"))?;

    std::fs::copy(next.join("server.crt"), stage.dir().join("server.crt"))?;
    let line = reload(&stage.gateway, "is not taken over", 1)?;
    assert!(line["error"].as_str().is_some_and(|error| error.contains("server.key")), "{line}");
    for listener in listeners {
        assert_eq!(shown(listener).await?, old.trim());
    }

    std::fs::copy(next.join("server.key"), stage.dir().join("server.key"))?;
    reload(&stage.gateway, "the file is in force", 1)?;
    for listener in listeners {
        assert_eq!(shown(listener).await?, new.trim());
    }
    living.write_all(b"still here").await?;
    living.read_exact(&mut [0; 10]).await?;
    Ok(())
}

/// The certificate that a listener shows, PEM, as openssl tells it.
async fn shown(listener: SocketAddr) -> Result<String> {
    let mut openssl = tool("openssl");
    openssl.args(["s_client", "-servername", "localhost", "-connect", &listener.to_string()]);
    let said = run(openssl).await?.out;
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let from = said.find(begin).ok_or_else(|| format!("no certificate in {said}"))?;
    let to = said.find(end).ok_or("an end of it")? + end.len();
    Ok(said[from..to].to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_a_file_that_cannot_be_taken_over_changes_nothing() -> Result {
    let options = Options { top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(), ..Options::default() };
    let (stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    let (old, url) = (PASSWORD.replace(':', "%3A"), target.url("/hello"));
    for outcome in ["ok", "failed"] {
        let counter = format!("anyproxy_reloads_total{{outcome=\"{outcome}\"}}");
        assert_eq!(metric(&stage.gateway, &counter).await?, 0.0, "before the first");
    }
    let good = std::fs::read_to_string(stage.file())?;
    let broken = [
        (good.replace("  tls_key", "  tls_ky"), "anyproxy.yaml:10:3: unknown key"),
        (good.replace(PASSWORD, "changed") + "]", "anyproxy.yaml:"),
        (good.replace("server.key'", "gone.key'"), "gone.key"),
        (good.replace("  tls_key", "  forbidden_hosts: ['10.0.0.0/40']\n  tls_key"), "anyproxy.yaml:10:21"),
        // A front that should be gone must not go on in silence.
        (good.lines().filter(|line| !line.contains("socks5:")).collect::<Vec<_>>().join("\n"), "restart"),
        (good.replace(&format!(", auth_username: user, auth_password: '{PASSWORD}'"), ""), "restart"),
    ];
    for (index, (text, why)) in broken.iter().enumerate() {
        assert_ne!(*text, good);
        std::fs::write(stage.file(), text)?;
        let line = reload(&stage.gateway, "is not taken over", index + 1)?;
        assert!(line["error"].as_str().is_some_and(|error| error.contains(why)), "{why}: {line}");
        assert_eq!(code(&stage, &old, &url).await?, "200", "{why}");
    }
    // What needs a restart is named.
    std::fs::write(stage.file(), good.replace("gateway:\n", "gateway:\n  connect_timeout: 7s\n"))?;
    let line = reload(&stage.gateway, "waits for a restart", 1)?;
    assert_eq!(line["keys"], "gateway.connect_timeout");
    // So is a front that is new; what else the file says does not wait for it.
    let sni = "proxy:\n  sni: { listen_addr: '127.0.0.1:0', hosts: ['a.example'] }\n";
    std::fs::write(stage.file(), good.replace("proxy:\n", sni).replace(PASSWORD, "changed"))?;
    let line = reload(&stage.gateway, "waits for a restart", 2)?;
    assert_eq!(line["keys"], "proxy.sni");
    assert_eq!(code(&stage, &old, &url).await?, "407");
    assert_eq!(code(&stage, "changed", &url).await?, "200");
    let mut curl = tool("curl");
    curl.arg("--silent").arg(format!("http://{}/metrics", stage.gateway.listening("admin")?));
    let metrics = run(curl).await?.out;
    assert!(
        metrics.contains(&format!("anyproxy_reloads_total{{outcome=\"failed\"}} {}", broken.len())),
        "{metrics}"
    );
    assert!(metrics.contains("anyproxy_reloads_total{outcome=\"ok\"} 2"), "{metrics}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn r5_listeners_move_to_a_new_address_and_stay_where_it_is_taken() -> Result {
    let (stage, echo, target) = (Stage::start()?, Target::echo().await?, HttpTarget::start().await?);
    let (old, url) = (PASSWORD.replace(':', "%3A"), target.url("/hello"));
    let mut living = tunnel(&stage, Way::Socks5, echo.addr()).await?;
    let good = std::fs::read_to_string(stage.file())?;

    let taken = std::net::TcpListener::bind("127.0.0.2:0")?;
    edit(
        &stage,
        "http: { listen_addr: '127.0.0.1:0'",
        &format!("http: {{ listen_addr: '{}'", taken.local_addr()?),
    )?;
    edit(&stage, "socks5: { listen_addr: '127.0.0.1:0'", "socks5: { listen_addr: '127.0.0.2:0'")?;
    edit(&stage, PASSWORD, "changed")?;
    let line = reload(&stage.gateway, "is not taken over", 1)?;
    assert!(line["error"].as_str().is_some_and(|error| error.contains("http cannot listen on")), "{line}");
    assert_eq!(code(&stage, &old, &url).await?, "200");
    drop(TcpStream::connect(stage.socks5_addr()).await?);

    let gateway = stage.gateway.listening("gateway")?;
    std::fs::write(stage.file(), good)?;
    edit(&stage, "127.0.0.1:0", "127.0.0.2:0")?;
    edit(&stage, &format!("listen_addr: {gateway}"), &format!("listen_addr: 127.0.0.2:{}", gateway.port()))?;
    reload(&stage.gateway, "the file is in force", 1)?;
    let mut moved = Vec::new();
    for name in ["http", "socks5", "gateway"] {
        let there = |line: &serde_json::Value| {
            let address = line["address"].as_str().unwrap_or_default();
            line["message"] == "listening" && line["front"] == name && address.starts_with("127.0.0.2:")
        };
        let line = stage.gateway.line(&format!("{name} at its new address"), there)?;
        moved.push(line["address"].as_str().ok_or("an address")?.parse::<SocketAddr>()?);
    }
    for was in [stage.http_addr(), stage.socks5_addr(), gateway] {
        until(&format!("{was} to be closed"), async || Ok(TcpStream::connect(was).await.is_err())).await?;
    }
    for way in ["http", "socks5h"] {
        let address = moved[usize::from(way == "socks5h")];
        let mut curl = tool("curl");
        curl.args(["--silent", "--fail", "--proxy", &format!("{way}://user:{old}@{address}"), &url]);
        run(curl).await?;
    }
    shown(moved[2]).await?;
    living.write_all(b"on").await?;
    assert_eq!(living.read_u16().await?, u16::from_be_bytes(*b"on"));

    // They are where the file says.
    reload(&stage.gateway, "the file is in force", 2)?;
    let listening = stage.gateway.lines().iter().filter(|line| line.contains("\"listening\"")).count();
    assert_eq!(listening, 6);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_a_client_whose_account_is_gone_is_out_at_once_and_stays_out() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let (password, url) = (PASSWORD.replace(':', "%3A"), target.url("/hello"));
    // Its own file keeps the old name.
    edit(&stage, "tls_key: '", "handshake_timeout: 10s\n  tls_key: '")?;
    let text = std::fs::read_to_string(stage.file())?;
    let (gateway, client) = text.split_once("client:").ok_or("a section for the client")?;
    std::fs::write(
        stage.file(),
        format!("{}client:{client}", gateway.replace("gateway_user", "another_user")),
    )?;
    reload(&stage.gateway, "the file is in force", 1)?;
    stage.client.line("401", |line| line["cause"].as_str().is_some_and(|cause| cause.contains("401")))?;
    assert_eq!(code(&stage, &password, &url).await?, "503");

    // And in again, when the client is told the new name.
    std::fs::write(stage.file(), text.replace("gateway_user", "another_user"))?;
    let other = stage.another_client(&[("CLIENT_ID", "client-2")])?;
    until("an answer", async || Ok(code(&stage, &password, &url).await? == "200")).await?;
    drop(other);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_reloads_fails_no_request_and_leaves_nothing_behind() -> Result {
    let (stage, echo, target) = (Stage::start()?, Target::echo().await?, HttpTarget::start().await?);
    let mut living = tunnel(&stage, Way::Connect, echo.addr()).await?;
    let (password, url) = (PASSWORD.replace(':', "%3A"), target.url("/hello"));
    let good = std::fs::read_to_string(stage.file())?;
    let other = good.replace(
        "gateway:\n",
        "gateway:\n  forbidden_hosts: ['*.internal', '10.0.0.0/8']\n  limits: { max_connections: 500, rate: { key: \
         user, per_second: 100000 } }\n",
    );
    let stage = Arc::new(stage);
    let over = CancellationToken::new();
    let mut asking = JoinSet::new();
    for _ in 0..2 {
        let (stage, password, url, over) = (stage.clone(), password.clone(), url.clone(), over.clone());
        asking.spawn(async move {
            let mut asked = 0;
            while !over.is_cancelled() {
                match code(&stage, &password, &url).await {
                    Ok(code) if code == "200" => asked += 1,
                    other => return Err(format!("{other:?} after {asked}")),
                }
            }
            Ok(asked)
        });
    }
    let mut descriptors = 0;
    for round in 1..=60 {
        std::fs::write(stage.file(), if round % 2 == 1 { &other } else { &good })?;
        reload(&stage.gateway, "the file is in force", round)?;
        if round == 10 {
            descriptors = stage.gateway.descriptors()?;
        }
    }
    over.cancel();
    while let Some(asked) = asking.join_next().await {
        assert!(asked?? > 0);
    }
    living.write_all(b"still here").await?;
    living.read_exact(&mut [0; 10]).await?;
    // But for what the requests of that moment had open.
    until("nothing left behind", async || Ok(stage.gateway.descriptors()? <= descriptors)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_a_hangup_during_the_start_waits_for_its_end_and_a_pipe_is_not_read_again() -> Result {
    let mut stage = Stage::start()?;
    stage.gateway.kill()?;
    stage.client.kill()?;
    let (text, mut ends) = (std::fs::read_to_string(stage.file())?, Vec::new());
    for (command, starts) in [("gateway", "listening"), ("client", "a tunnel to the gateway stands")] {
        let path = stage.dir().join(command);
        let mut mkfifo = tool("mkfifo");
        mkfifo.arg(&path);
        run(mkfifo).await?.ok()?;
        let end = Program::start(&[command, "--config", &path.display().to_string()])?;
        let mut pipe = None;
        until("it reads the pipe", async || {
            pipe = pipe::OpenOptions::new().open_sender(&path).ok();
            Ok(pipe.is_some())
        })
        .await?;
        end.signal(Signal::SIGHUP)?;
        pipe.take().ok_or("a pipe")?.write_all(text.as_bytes()).await?;
        end.line(starts, |line| line["message"] == starts)?;
        let refused = "SIGHUP: the file is not taken over, all stays as it was";
        let line = end.line(refused, |line| line["message"] == refused)?;
        assert!(line["error"].as_str().is_some_and(|error| error.contains("no regular file")), "{line}");

        // Nor does a pipe keep it from reading what comes later.
        std::fs::copy(stage.file(), stage.dir().join("next"))?;
        std::fs::rename(stage.dir().join("next"), &path)?;
        reload(&end, "the file is in force", 1)?;
        ends.push(end);
    }
    Ok(())
}
