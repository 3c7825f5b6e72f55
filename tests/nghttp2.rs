//! nghttp and h2load: HTTP/2 to a front with a certificate, the target named as HTTP/2 names targets of a proxy
//! (RFC 9113 section 8.3.1).

use anyproxy_tests::{HttpTarget, Options, Result, Stage, run, tool};

const LOGIN: &str = "proxy-authorization: Basic dXNlcjpwYXNzOncwcmQ=";

fn stage() -> Result<Stage> {
    let tls = ", tls_cert: '{dir}/server.crt', tls_key: '{dir}/server.key'".to_owned();
    Stage::with(&Options { http: tls, ..Options::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_over_http_2_is_answered_by_its_target() -> Result {
    let (stage, target) = (stage()?, HttpTarget::start().await?);
    let mut nghttp = tool("nghttp");
    nghttp.args(["--no-verify-peer", "-H", &format!(":authority: {}", target.addr()), "-H", ":scheme: http"]);
    nghttp.args(["-H", LOGIN, &format!("https://{}/hello", stage.http_addr())]);
    assert_eq!(run(nghttp).await?.ok()?, "hello from inside\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_on_few_connections_all_succeed_and_refused_ones_are_told_so() -> Result {
    let (stage, target) = (stage()?, HttpTarget::start().await?);
    let load = |login: &'static str| {
        let mut h2load = tool("h2load");
        h2load.args(["-n", "2000", "-c", "4", "-m", "16"]);
        h2load.args(["-H", &format!(":authority: {}", target.addr()), "-H", ":scheme: http", "-H", login]);
        h2load.arg(format!("https://{}/hello", stage.http_addr()));
        run(h2load)
    };
    let said = load(LOGIN).await?.ok()?;
    assert!(said.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
    let said = load("proxy-authorization: Basic dXNlcjp3cm9uZw==").await?.ok()?;
    assert!(said.contains("0 2xx, 0 3xx, 2000 4xx, 0 5xx"), "{said}");
    Ok(())
}
