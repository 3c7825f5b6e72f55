//! Chromium: an open SOCKS5 front on loopback, and a login at the HTTP front.

use anyproxy_tests::{HttpTarget, Options, Program, Result, Stage, node, python, run, tool};

/// Without a screen, a sandbox or errands of its own.
const FLAGS: [&str; 8] = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_page_and_its_script_come_through_an_open_socks5_front() -> Result {
    let options = Options { open: true, ..Options::default() };
    let (stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    let mut chromium = tool("chromium");
    chromium.arg("--headless").args(FLAGS);
    chromium.arg(format!("--user-data-dir={}", stage.dir().join("profile").display()));
    chromium.arg(format!("--proxy-server=socks5://{}", stage.socks5_addr()));
    // Chromium goes straight to loopback addresses unless told otherwise.
    chromium.args(["--proxy-bypass-list=<-loopback>", "--dump-dom", &target.url("/page")]);
    let page = run(chromium).await?.ok()?;
    assert!(page.contains("hello from inside"), "{page}");
    stage.gateway.access(&[("front", "socks5".into()), ("target", target.addr().to_string().into())])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_bodies_and_websockets_come_through_the_http_front_with_a_login() -> Result {
    const LENGTH: usize = 3_000_000;
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let server = Program::spawn(&mut python("websocket_server.py")?)?;
    let port = server.text("its port", |line| line.strip_prefix("port ").map(str::to_owned))?;
    let mut script = node("chromium.cjs")?;
    script.args([stage.http(), target.url(""), LENGTH.to_string(), HttpTarget::hash(LENGTH)]);
    script.args([format!("ws://127.0.0.1:{port}/"), FLAGS.join(" ")]);
    assert_eq!(run(script).await?.ok()?, "ok\n");
    Ok(())
}
