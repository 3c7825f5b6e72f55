//! Node's undici.

use anyproxy_tests::{HttpTarget, Program, Result, Stage, node, python, run};

#[tokio::test(flavor = "multi_thread")]
async fn undici_fetches_and_opens_a_websocket_through_its_proxy_agent() -> Result {
    const LENGTH: usize = 3_000_000;
    let (stage, target) = (Stage::start()?, HttpTarget::start().await?);
    let server = Program::spawn(&mut python("websocket_server.py")?)?;
    let port = server.text("its port", |line| line.strip_prefix("port ").map(str::to_owned))?;
    let mut script = node("undici_get.cjs")?;
    script.args([stage.http(), target.url(""), LENGTH.to_string(), HttpTarget::hash(LENGTH)]);
    script.arg(format!("ws://127.0.0.1:{port}/"));
    assert_eq!(run(script).await?.ok()?, "ok\n");
    Ok(())
}
