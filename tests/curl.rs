//! curl: every way in, and what it is told when there is no way.

use anyproxy_tests::{
    HttpTarget, Options, Output, RefusingTarget, Result, SilentTarget, Stage, USER, run, tool,
};
use nix::sys::signal::Signal;

/// Runs curl through `proxy` and returns what it printed.
async fn curl(proxy: &str, arguments: &[&str]) -> Result<Output> {
    let mut curl = tool("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--proxy", proxy]).args(arguments);
    run(curl).await
}

/// The code of the answer, and that of the proxy's answer to CONNECT where there is one.
const CODE: [&str; 4] = ["--output", "/dev/null", "--write-out", "%{http_code} %{http_connect}"];

/// What curl says of a proxy that gave no stream: CURLE_RECV_ERROR of a CONNECT, CURLE_PROXY of SOCKS5.
const NO_TUNNEL: i32 = 56;
const NO_SOCKS: i32 = 97;

/// A request that is refused: the code of the answer and its `Proxy-Status` and `Retry-After`, as they are for
/// absolute-form; the same is asserted of CONNECT.
async fn refusal(stage: &Stage, url: &str) -> Result<(String, String, String)> {
    let all = "%{http_code}%{http_connect}|%header{proxy-status}|%header{retry-after}";
    let plain = ["--output", "/dev/null", "--write-out", all, url];
    let plain = curl(&stage.http(), &plain).await?.ok()?;
    let connect = curl(&stage.http(), &["--proxytunnel", "--write-out", "%{http_connect}", url]).await?;
    assert_eq!(connect.code, NO_TUNNEL, "{connect:?}");
    assert_eq!(plain.split('|').next(), Some(format!("{}000", connect.out).as_str()), "{plain}");
    let mut parts = plain.split('|').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    Ok((part().trim_end_matches("000").to_owned(), part(), part()))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_in_reaches_a_private_service() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let six = HttpTarget::start_on("[::1]:0").await?;
    let by_name = format!("http://localhost:{}/hello", target.addr().port());
    for url in [&target.url("/hello"), &six.url("/hello"), &by_name] {
        for (proxy, tunnel) in [
            (stage.http(), "--no-proxytunnel"),
            (stage.http(), "--proxytunnel"),
            (stage.socks5(), "--no-proxytunnel"),
            (stage.socks5().replace("socks5h", "socks5"), "--no-proxytunnel"),
        ] {
            let answer = curl(&proxy, &[tunnel, url]).await?.ok()?;
            assert_eq!(answer, "hello from inside\n", "{url} {proxy} {tunnel}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_told_apart_from_everything_else() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let url = target.url("/hello");
    let wrong = [
        format!("http://{USER}:wrong@{}", stage.http_addr()),
        format!("http://nobody:pass%3Aw0rd@{}", stage.http_addr()),
        // A client's account is none for users.
        format!("http://gateway_user:gateway_password@{}", stage.http_addr()),
        format!("http://{}", stage.http_addr()),
    ];
    for http in wrong {
        assert_eq!(curl(&http, &[&CODE[..], &[&url]].concat()).await?.ok()?, "407 000", "{http}");
        let tunnel = curl(&http, &[&CODE[..], &["--proxytunnel", &url]].concat()).await?;
        assert_eq!((tunnel.code, &*tunnel.out), (NO_TUNNEL, "000 407"), "{http}");
    }
    for login in [&format!("{USER}:wrong@"), ""] {
        let socks5 = format!("socks5h://{login}{}", stage.socks5_addr());
        assert_eq!(curl(&socks5, &[&url]).await?.code, NO_SOCKS, "{socks5}");
    }
    // The right login in the field for the target is none for the proxy (P3).
    let http = format!("http://{}", stage.http_addr());
    let misplaced = [&CODE[..], &["--user", "user:pass:w0rd", &url]].concat();
    assert_eq!(curl(&http, &misplaced).await?.ok()?, "407 000");
    assert_eq!(curl(&stage.http(), &[&url]).await?.ok()?, "hello from inside\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_a_source_of_wrong_logins_is_locked_out_of_that_front_alone() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let url = target.url("/hello");
    let wrong = format!("http://{USER}:wrong@{}", stage.http_addr());
    let mut wrong_logins = vec!["--write-out", "%{http_code} "];
    (0..11).for_each(|_| wrong_logins.extend(["--output", "/dev/null", &url]));
    let codes = curl(&wrong, &wrong_logins).await?.ok()?;
    assert!(codes.starts_with(&"407 ".repeat(10)), "{codes}");
    let (code, _, retry_after) = refusal(&stage, &url).await?;
    assert_eq!(code, "429");
    assert!(retry_after.parse::<u32>()? > 0);
    assert_eq!(curl(&stage.socks5(), &[&url]).await?.ok()?, "hello from inside\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_who_refused_and_why() -> Result {
    let stage = Stage::with(&Options {
        client: "  connect_timeout: 1s\n  forbidden_hosts: ['localhost:22']".to_owned(),
        gateway: "  forbidden_hosts: ['127.0.0.1:25', '*.internal']".to_owned(),
        ..Options::default()
    })?;
    let refusing = RefusingTarget::start()?;
    let silent = SilentTarget::start().await?;
    let cases = [
        (refusing.addr().to_string(), "502", "connection_refused"),
        ("does-not-exist.invalid:80".to_owned(), "502", "dns_error"),
        ("169.254.169.254:80".to_owned(), "403", "http_request_denied"),
        ("127.0.0.1:25".to_owned(), "403", "http_request_denied"),
        ("wiki.INTERNAL.:80".to_owned(), "403", "http_request_denied"),
        // The gateway's rule on an address holds for names as well: the client enforces it.
        ("localhost:25".to_owned(), "403", "http_request_denied"),
        ("localhost:22".to_owned(), "403", "http_request_denied"),
        (silent.addr().to_string(), "504", "connection_timeout"),
    ];
    for (host, code, error) in cases {
        let url = format!("http://{host}/");
        let (told, status, retry_after) = refusal(&stage, &url).await?;
        assert_eq!((&*told, &*retry_after), (code, ""), "{host}");
        assert!(status.contains(&format!("; error={error}; next-hop=")), "{host}: {status}");
        assert_eq!(curl(&stage.socks5(), &[&url]).await?.code, NO_SOCKS, "{host}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_client_users_are_told_so_and_with_one_they_are_served_again() -> Result {
    let mut stage = Stage::with(&Options {
        gateway: "  limits: { wait_for_client: 100ms }".to_owned(),
        ..Options::default()
    })?;
    let target = HttpTarget::start().await?;
    stage.client.signal(Signal::SIGTERM)?;
    assert!(stage.client.wait()?.success());
    let (code, status, _) = refusal(&stage, &target.url("/hello")).await?;
    assert_eq!(code, "503");
    assert!(status.contains("error=destination_unavailable"), "{status}");
    stage.restart_client()?;
    assert_eq!(curl(&stage.http(), &[&target.url("/hello")]).await?.ok()?, "hello from inside\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_over_their_rate_is_told_when_to_come_back() -> Result {
    let stage = Stage::with(&Options {
        gateway: "  limits: { rate: { per_second: 1, burst: 2 } }".to_owned(),
        ..Options::default()
    })?;
    let target = HttpTarget::start().await?;
    let url = target.url("/hello");
    // Requests of one connection to the proxy count as dials, though they share one to the target.
    let thrice = ["--write-out", "%{http_code} %header{retry-after},", "--output", "/dev/null", &url];
    let thrice = [&thrice[..], &thrice[2..], &thrice[2..]].concat();
    let codes = curl(&stage.http(), &thrice).await?.ok()?;
    assert!(codes.starts_with("200 ,200 ,429 1,"), "{codes}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_takes_the_proxy_for_a_web_server_is_told_what_it_is() -> Result {
    let stage = Stage::start()?;
    let mut curl = tool("curl");
    curl.args(["--silent", "--write-out", "%{http_code}", &format!("http://{}/", stage.http_addr())]);
    let answer = run(curl).await?.ok()?;
    assert!(answer.contains("This is an HTTP proxy") && answer.ends_with("400"), "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_arrive_whole_each_way_in_and_each_direction() -> Result {
    const LENGTH: usize = 8 << 20;
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let hash = HttpTarget::hash(LENGTH);
    let (up, down) = (stage.dir().join("up"), stage.dir().join("down").display().to_string());
    std::fs::write(&up, HttpTarget::bytes(LENGTH))?;
    let up = format!("@{}", up.display());
    for (proxy, tunnel) in [
        (stage.http(), "--no-proxytunnel"),
        (stage.http(), "--proxytunnel"),
        (stage.socks5(), "--no-proxytunnel"),
    ] {
        for field in ["Content-Type: a/b", "Transfer-Encoding: chunked", "Expect: 100-continue"] {
            let body = [tunnel, "--header", field, "--data-binary", &up, &target.url("/hash")];
            let answer = curl(&proxy, &body).await?.ok()?;
            assert_eq!(answer, format!("{hash} {LENGTH}\n"), "{proxy} {tunnel} {field}");
        }
        curl(&proxy, &[tunnel, "--output", &down, &target.url(&format!("/bytes/{LENGTH}"))]).await?.ok()?;
        assert_eq!(HttpTarget::hash_of(&std::fs::read(&down)?), hash, "{proxy} {tunnel}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_sees_the_users_request_and_nothing_of_the_proxy() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let hop = ["--header", "Connection: X-Secret", "--header", "X-Secret: 1", "--header", "X-Kept: 2"];
    let url = target.url("/headers");
    let seen = curl(&stage.http(), &[&hop[..], &["--header", "TE: trailers", &url]].concat()).await?.ok()?;
    let seen = seen.to_lowercase();
    assert!(seen.starts_with("get /headers http/1.1\n"), "{seen}");
    assert!(seen.contains(&format!("\nhost: {}\n", target.addr())), "{seen}");
    assert!(seen.contains("\nvia: 1.1 ") && seen.contains("\nx-kept: 2\n"), "{seen}");
    assert!(!seen.contains("x-secret") && !seen.contains("\nproxy-"), "{seen}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_serves_many_requests() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let other = HttpTarget::start().await?;
    let urls = [target.url("/hello"), other.url("/hello"), target.url("/hello")];
    let mut arguments = vec!["--write-out", "%{num_connects} %{http_code},"];
    urls.iter().for_each(|url| arguments.extend(["--output", "/dev/null", url]));
    assert_eq!(curl(&stage.http(), &arguments).await?.ok()?, "1 200,0 200,0 200,");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fronts_speak_tls_where_they_have_a_certificate() -> Result {
    let tls = ", tls_cert: '{dir}/server.crt', tls_key: '{dir}/server.key'".to_owned();
    let options = Options { http: tls, ..Options::default() };
    let (stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    let proxy = stage.http().replace("http://", "https://");
    let trusted = stage.dir().join("server.crt").display().to_string();
    let url = target.url("/hello");
    for tunnel in ["--no-proxytunnel", "--proxytunnel"] {
        let answer = curl(&proxy, &["--proxy-cacert", &trusted, tunnel, &url]).await?.ok()?;
        assert_eq!(answer, "hello from inside\n", "{tunnel}");
    }
    assert_eq!(curl(&proxy, &[&url]).await?.code, 60, "a certificate nobody trusts");
    // curl speaks HTTP/2 to proxies since 8.1. Where it is older, python.rs does.
    let help = run({
        let mut help = tool("curl");
        help.args(["--help", "proxy"]);
        help
    });
    if help.await?.ok()?.contains("--proxy-http2") {
        let http2 = ["--proxy-http2", "--proxytunnel", "--proxy-cacert", &trusted, &url];
        assert_eq!(curl(&proxy, &http2).await?.ok()?, "hello from inside\n");
    } else {
        println!("this curl does not speak HTTP/2 to proxies");
    }
    Ok(())
}
