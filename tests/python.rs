//! Python's HTTP and SOCKS libraries.

use std::process::Command;

use anyproxy_tests::{HttpTarget, Options, PASSWORD, Program, Result, Stage, Target, USER, python, run};

const LENGTH: usize = 3_000_000;

/// Runs a script that asserts, and says so when it has come through.
async fn passes(mut script: Command, arguments: &[&str]) -> Result {
    script.args(arguments);
    assert_eq!(run(script).await?.ok()?, "ok\n");
    Ok(())
}

/// The arguments of the scripts that get and post: where, how much, and its hash.
fn bodies(target: &HttpTarget) -> [String; 3] {
    [target.url(""), LENGTH.to_string(), HttpTarget::hash(LENGTH)]
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_gets_and_posts_through_both_fronts() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let [url, length, hash] = bodies(&target);
    for proxy in [stage.http(), stage.socks5()] {
        passes(python("requests_get.py")?, &[&proxy, &url, &length, &hash]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn httpx_gets_and_posts_through_both_fronts() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let [url, length, hash] = bodies(&target);
    for proxy in [stage.http(), stage.socks5().replace("socks5h", "socks5")] {
        passes(python("httpx_get.py")?, &[&proxy, &url, &length, &hash]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn aiohttp_gets_and_posts_through_the_http_front() -> Result {
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let [url, length, hash] = bodies(&target);
    let proxy = format!("http://{}", stage.http_addr());
    passes(python("aiohttp_get.py")?, &[&proxy, USER, PASSWORD, &url, &length, &hash]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pysocks_and_python_socks_connect_through_both_fronts() -> Result {
    let (stage, target) = (Stage::start()?, Target::echo().await?);
    let addresses = [stage.socks5_addr(), stage.http_addr(), target.addr()];
    let parts: Vec<_> = addresses.iter().flat_map(|a| [a.ip().to_string(), a.port().to_string()]).collect();
    let mut arguments: Vec<_> = parts.iter().map(String::as_str).collect();
    arguments.extend([USER, PASSWORD]);
    passes(python("socks_connect.py")?, &arguments).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_reached_by_connect_by_socks5_and_by_an_upgrade_in_absolute_form() -> Result {
    let stage = Stage::start()?;
    let server = Program::spawn(&mut python("websocket_server.py")?)?;
    let port = server.text("its port", |line| line.strip_prefix("port ").map(str::to_owned))?;
    passes(python("websocket_client.py")?, &[&stage.http(), &stage.socks5(), &port]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_connects_many_streams_in_one_connection() -> Result {
    let tls = ", tls_cert: '{dir}/server.crt', tls_key: '{dir}/server.key'".to_owned();
    let stage = Stage::with(&Options { http: tls, ..Options::default() })?;
    let target = Target::echo().await?;
    let (host, port) = (stage.http_addr().ip().to_string(), stage.http_addr().port().to_string());
    let (certificate, login) = (stage.dir().join("server.crt"), format!("{USER}:{PASSWORD}"));
    let certificate = certificate.display().to_string();
    passes(python("http2_connect.py")?, &[&host, &port, &certificate, &target.addr().to_string(), &login])
        .await
}
