//! Prometheus: scrapes the gateway, and finds nothing wrong with what it reads.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyproxy_tests::{
    HttpTarget, Options, Program, RefusingTarget, Result, SilentTarget, Stage, Target, USER, Way, free_port,
    metric, run, tool, tunnel, until,
};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A stage whose gateway and client tell how they are.
fn watched() -> Result<Stage> {
    watched_with("")
}

fn watched_with(keys: &str) -> Result<Stage> {
    Stage::with(&Options {
        top: format!("admin: {{ listen_addr: '127.0.0.1:0'{keys} }}"),
        ..Options::default()
    })
}

/// The body of an admin page, and its status.
async fn page(admin: SocketAddr, path: &str) -> Result<(String, String)> {
    let mut curl = tool("curl");
    curl.args(["--silent", "--max-time", "10", "--write-out", "\n%{http_code}"])
        .arg(format!("http://{admin}{path}"));
    let text = run(curl).await?.ok()?;
    let (body, status) = text.rsplit_once('\n').ok_or("a status")?;
    Ok((status.to_owned(), body.to_owned()))
}

async fn used(stage: &Stage, target: &HttpTarget) -> Result {
    for (proxy, tunnel) in [
        (stage.http(), "--no-proxytunnel"),
        (stage.http(), "--proxytunnel"),
        (stage.socks5(), "--no-proxytunnel"),
    ] {
        let mut curl = tool("curl");
        curl.args(["--silent", "--max-time", "30", tunnel, "--proxy", &proxy, &target.url("/hello")]);
        run(curl).await?.ok()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_wrong_with_the_metrics_of_either_end() -> Result {
    let (stage, target) = (watched_with(", user_labels: 1")?, HttpTarget::start().await?);
    used(&stage, &target).await?;
    let gateway = page(stage.gateway.listening("admin")?, "/metrics").await?.1;
    let dials = format!("\nanyproxy_user_dials_total{{user=\"{USER}\",verdict=\"ok\"}} 3\n");
    assert!(gateway.contains(&dials), "{gateway}");
    for end in [&stage.gateway, &stage.client] {
        let (status, metrics) = page(end.listening("admin")?, "/metrics").await?;
        assert_eq!(status, "200");
        let file = stage.dir().join("metrics");
        std::fs::write(&file, &metrics)?;
        let mut promtool = tool("promtool");
        promtool.args(["check", "metrics"]).stdin(Stdio::from(std::fs::File::open(&file)?));
        let checked = run(promtool).await?;
        assert_eq!((checked.code, checked.out.as_str(), checked.err.as_str()), (0, "", ""), "{metrics}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_the_gateway_and_sees_its_streams() -> Result {
    let (stage, target) = (watched()?, HttpTarget::start().await?);
    used(&stage, &target).await?;
    let admin = stage.gateway.listening("admin")?;
    let (own, dir) = (free_port()?, stage.dir().display().to_string());
    std::fs::write(
        stage.dir().join("prometheus.yml"),
        format!(
            "global: {{ scrape_interval: 1s }}
scrape_configs: [ {{ job_name: anyproxy, static_configs: [ {{ targets: ['{admin}'] }} ] }} ]
"
        ),
    )?;
    let _prometheus = Program::spawn(tool("prometheus").args([
        format!("--config.file={dir}/prometheus.yml"),
        format!("--storage.tsdb.path={dir}/tsdb"),
        format!("--web.listen-address=127.0.0.1:{own}"),
    ]))?;
    let asked = SocketAddr::from(([127, 0, 0, 1], own));
    until("a stream in Prometheus", async || {
        let query = "/api/v1/query?query=sum(anyproxy_dials_total%7Boutcome%3D%22ok%22%7D)";
        // Until it listens, curl says so.
        let answer = page(asked, query).await.unwrap_or_default().1;
        Ok(answer.contains(r#","3"]"#))
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_counted_by_the_layer_that_said_no() -> Result {
    let stage = Stage::with(&Options {
        top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(),
        gateway:
            "  forbidden_hosts: ['*.internal']\n  limits: { rate: { key: user, per_second: 1, burst: 1 } }\n"
                .to_owned(),
        ..Options::default()
    })?;
    let target = HttpTarget::start().await?;
    let ask = async |proxy: &str, url: &str| {
        let mut curl = tool("curl");
        curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--max-time", "30"]);
        curl.args(["--proxy", proxy, url]);
        run(curl).await?.ok()
    };
    // Somebody else; a target that no rule allows; and more at once than the rate does.
    let stranger = format!("http://stranger:x@{}", stage.http_addr());
    assert_eq!(ask(&stranger, "http://files.internal/").await?, "407");
    assert_eq!(ask(&stage.http(), "http://files.internal/").await?, "403");
    while ask(&stage.http(), &target.url("/hello")).await? != "429" {}
    let metrics = page(stage.gateway.listening("admin")?, "/metrics").await?.1;
    for (layer, outcome) in [("auth", "login_required"), ("acl", "denied"), ("rate_limit", "limited")] {
        let line = format!("\nanyproxy_refusals_total{{layer=\"{layer}\",outcome=\"{outcome}\"}} 1\n");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_ready_while_a_client_is_there() -> Result {
    let mut stage = watched()?;
    let admin = stage.gateway.listening("admin")?;
    assert_eq!(page(admin, "/readyz").await?.0, "200");
    assert_eq!(page(admin, "/healthz").await?.0, "200");
    stage.client.kill()?;
    let took = until("not ready", async || Ok(page(admin, "/readyz").await?.0 == "503")).await?;
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(page(admin, "/healthz").await?.0, "200");
    Ok(())
}

/// The sum of a metric's series that have this label.
fn sum(page: &str, name: &str, label: &str) -> f64 {
    let series =
        page.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
    let values = series.filter(|line| line.contains(label)).filter_map(|line| line.rsplit_once(' '));
    values.filter_map(|(_, value)| value.parse::<f64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn o4_every_dial_is_counted_once_and_gauges_come_back() -> Result {
    const ROUNDS: usize = 100;
    let stage = watched()?;
    let (echo, silent, refusing) =
        (Target::echo().await?, SilentTarget::start().await?, RefusingTarget::start()?);
    let reset = Target::start(|mut connection| async move {
        connection.read_u8().await?;
        connection.set_zero_linger()
    });
    let reset = reset.await?;
    let admin = stage.gateway.listening("admin")?;
    let mut whole = 0;
    for round in 0..ROUNDS {
        // To the end, left, reset, refused, given up.
        let mut user = tunnel(&stage, Way::Socks5, echo.addr()).await?;
        user.write_all(&vec![7; 10 * round]).await?;
        user.shutdown().await?;
        whole += user.read_to_end(&mut Vec::new()).await?;
        let mut left = tunnel(&stage, Way::Connect, echo.addr()).await?;
        left.write_all(b"never read").await?;
        drop(left);
        let mut broken = tunnel(&stage, Way::Connect, reset.addr()).await?;
        broken.write_all(b"x").await?;
        assert!(broken.read_u8().await.is_err());
        assert!(tunnel(&stage, Way::Connect, refusing.addr()).await.is_err());
        if round % 10 == 0 {
            let given_up = tunnel(&stage, Way::Connect, silent.addr());
            assert!(tokio::time::timeout(Duration::from_millis(50), given_up).await.is_err());
        }
    }
    let settled = async || {
        let (_, now) = page(admin, "/metrics").await?;
        let ended = sum(&now, "anyproxy_streams_ended_total", "");
        let decided = sum(&now, "anyproxy_dials_total", "");
        Ok(sum(&now, "anyproxy_streams_open", "") == 0.0
            && ended == (3 * ROUNDS) as f64
            && decided == (4 * ROUNDS + ROUNDS / 10) as f64)
    };
    until("all is counted", settled).await?;
    let (_, now) = page(admin, "/metrics").await?;
    let dials = |outcome: &str| sum(&now, "anyproxy_dials_total", &format!("outcome=\"{outcome}\""));
    assert_eq!(dials("ok"), (3 * ROUNDS) as f64);
    assert_eq!(dials("refused"), ROUNDS as f64);
    assert_eq!(dials("cancelled"), (ROUNDS / 10) as f64);
    let way = |direction: &str| {
        let series = format!("anyproxy_bytes_total{{front=\"socks5\",direction=\"{direction}\"}}");
        now.lines().find_map(|line| line.strip_prefix(&series)?.trim().parse::<usize>().ok())
    };
    assert_eq!((way("up"), way("down")), (Some(whole), Some(whole)), "{now}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn o5_a_gateway_that_drains_tells_so_on_its_own_port_and_at_once() -> Result {
    const STREAMS: usize = 1_000;
    let options = Options {
        top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(),
        gateway: "  drain_timeout: 20s".to_owned(),
        ..Options::default()
    };
    let (stage, echo) = (Stage::with(&options)?, Target::echo().await?);
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        streams.push(tunnel(&stage, Way::ALL[number % 2], echo.addr()).await?);
    }
    let admin = stage.gateway.listening("admin")?;
    for public in [stage.http_addr(), stage.socks5_addr()] {
        let what = page(public, "/metrics").await;
        assert!(!what.is_ok_and(|(status, text)| status == "200" || text.contains("anyproxy_")), "{public}");
    }
    stage.gateway.signal(Signal::SIGTERM)?;
    let took = until("not ready", async || Ok(page(admin, "/readyz").await?.0 == "503")).await?;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let begun = Instant::now();
    let (status, text) = page(admin, "/metrics").await?;
    println!("a scrape while {STREAMS} streams drain: {:?}, curl and all", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!((status.as_str(), sum(&text, "anyproxy_streams_open", "")), ("200", STREAMS as f64));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_only_client_drains_is_not_ready() -> Result {
    let options = Options { top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(), ..Options::default() };
    let (stage, echo) = (Stage::with(&options)?, Target::echo().await?);
    let _living = tunnel(&stage, Way::Socks5, echo.addr()).await?;
    let admin = stage.gateway.listening("admin")?;
    assert_eq!(page(admin, "/readyz").await?.0, "200");
    stage.client.signal(Signal::SIGTERM)?;
    until("not ready", async || Ok(page(admin, "/readyz").await?.0 == "503")).await?;
    assert_eq!(metric(&stage.gateway, "anyproxy_clients").await?, 1.0, "it is still there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn o3_hosts_users_and_paths_make_no_series() -> Result {
    let users: Vec<_> = (1..=60).map(|number| format!("{{ username: u{number}, password: p }}")).collect();
    let stage = Stage::with(&Options {
        top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(),
        http: format!(", users: [ {} ]", users.join(", ")),
        ..Options::default()
    })?;
    let admin = stage.gateway.listening("admin")?;
    let ask = async |numbers: std::ops::RangeInclusive<usize>| {
        for number in numbers {
            let mut curl = tool("curl");
            curl.args("--silent --max-time 60 --output /dev/null --write-out %{http_code}".split(' '));
            curl.args(["--proxy", &format!("http://u{number}:p@{}", stage.http_addr())]);
            curl.arg(format!("http://host-{number}.invalid/path-{number}"));
            assert_eq!(run(curl).await?.ok()?, "502");
        }
        Result::Ok(page(admin, "/metrics").await?.1.lines().count())
    };
    let (before, after) = (ask(1..=2).await?, ask(3..=60).await?);
    assert!(after <= before && after < 500, "{before} lines, then {after}");
    Ok(())
}
