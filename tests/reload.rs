//! What SIGHUP changes of a gateway and a client that run, and what it leaves alone.

use std::cell::Cell;
use std::sync::Arc;

use anyproxy_tests::{
    HttpTarget, Options, PASSWORD, Program, Result, Stage, Target, Way, run, tool, tunnel, until,
};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
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

#[tokio::test(flavor = "multi_thread")]
async fn r1_a_file_that_cannot_be_taken_over_changes_nothing() -> Result {
    let options = Options { top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(), ..Options::default() };
    let (stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    let (old, url) = (PASSWORD.replace(':', "%3A"), target.url("/hello"));
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
