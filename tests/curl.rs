//! curl: every way in, and what it is told when there is no way.

use anyproxy_tests::{HttpTarget, Output, PASSWORD, Result, Stage, Target, USER, run, tool};

/// Runs curl through `proxy` and returns what it printed.
async fn curl(proxy: &str, arguments: &[&str]) -> Result<Output> {
    let mut curl = tool("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--proxy", proxy]).args(arguments);
    run(curl).await
}

/// Only the status line's code, of the proxy's answer to CONNECT where there is one.
const CODE: [&str; 4] = ["--output", "/dev/null", "--write-out", "%{http_code} %{http_connect}"];

#[tokio::test(flavor = "multi_thread")]
async fn every_way_in_reaches_a_private_service() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let url = target.url("/hello");
    let by_name = format!("http://localhost:{}/hello", target.addr().port());
    for url in [&url, &by_name] {
        assert_eq!(curl(&stage.http(), &[url]).await?.ok()?, "hello from inside\n");
        assert_eq!(curl(&stage.http(), &["--proxytunnel", url]).await?.ok()?, "hello from inside\n");
        assert_eq!(curl(&stage.socks5(), &[url]).await?.ok()?, "hello from inside\n");
    }
    let socks5 = stage.socks5().replace("socks5h", "socks5");
    assert_eq!(curl(&socks5, &[&url]).await?.ok()?, "hello from inside\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_told_apart_from_everything_else() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let url = target.url("/hello");
    let http = format!("http://{USER}:wrong@{}", stage.http_addr());
    assert_eq!(curl(&http, &[&CODE[..], &[&url]].concat()).await?.ok()?, "407 000");
    assert!(curl(&http, &[&CODE[..], &["--proxytunnel", &url]].concat()).await?.out.ends_with("407"));
    let open = format!("http://{}", stage.http_addr());
    assert_eq!(curl(&open, &[&CODE[..], &[&url]].concat()).await?.ok()?, "407 000");
    let socks5 = format!("socks5h://{USER}:wrong@{}", stage.socks5_addr());
    assert_eq!(curl(&socks5, &[&url]).await?.code, 97);
    // The account is none for the gateway, and the other way round.
    let gateway = format!("http://gateway_user:gateway_password@{}", stage.http_addr());
    assert_eq!(curl(&gateway, &[&CODE[..], &[&url]].concat()).await?.ok()?, "407 000");
    let _ = PASSWORD;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_far_end_s_refusals_have_their_own_answers() -> Result {
    let stage = Stage::start()?;
    let refused = {
        let gone = Target::echo().await?;
        format!("http://{}/", gone.addr())
    };
    let cases = [
        (refused.as_str(), "502 000", "502"),
        ("http://does-not-exist.invalid/", "502 000", "502"),
        ("http://169.254.169.254/latest/meta-data", "403 000", "403"),
    ];
    for (url, plain, connect) in cases {
        assert_eq!(curl(&stage.http(), &[&CODE[..], &[url]].concat()).await?.ok()?, plain, "{url}");
        let tunnelled = curl(&stage.http(), &[&CODE[..], &["--proxytunnel", url]].concat()).await?;
        assert!(tunnelled.out.ends_with(connect), "{url}: {tunnelled:?}");
        assert_eq!(curl(&stage.socks5(), &[url]).await?.code, 97, "{url}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_arrive_whole_each_way_in_and_each_direction() -> Result {
    const LENGTH: usize = 16 << 20;
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let bytes = HttpTarget::bytes(LENGTH);
    let hash = HttpTarget::hash(&bytes);
    let (up, down) = (stage.dir().join("up"), stage.dir().join("down"));
    std::fs::write(&up, &bytes)?;
    let up = format!("@{}", up.display());
    for (proxy, tunnel) in [
        (stage.http(), "--no-proxytunnel"),
        (stage.http(), "--proxytunnel"),
        (stage.socks5(), "--no-proxytunnel"),
    ] {
        let answer = curl(&proxy, &[tunnel, "--data-binary", &up, &target.url("/hash")]).await?.ok()?;
        assert_eq!(answer, format!("{hash} {LENGTH}\n"), "{proxy} {tunnel}");
        let chunked = ["--header", "Transfer-Encoding: chunked", "--data-binary", &up];
        let answer =
            curl(&proxy, &[&[tunnel], &chunked[..], &[&target.url("/hash")]].concat()).await?.ok()?;
        assert_eq!(answer, format!("{hash} {LENGTH}\n"), "{proxy} {tunnel}, chunked");
        let to = down.display().to_string();
        curl(&proxy, &[tunnel, "--output", &to, &target.url(&format!("/bytes/{LENGTH}"))]).await?.ok()?;
        assert_eq!(HttpTarget::hash(&std::fs::read(&down)?), hash, "{proxy} {tunnel}");
    }
    Ok(())
}
