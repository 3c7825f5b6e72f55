//! Datagrams: PySocks with DNS, and QUIC by aioquic, through UDP ASSOCIATE.

use anyproxy_tests::{PASSWORD, Result, Stage, USER, python, run};

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_pysocks_and_dns_come_back_through_an_association() -> Result {
    let stage = Stage::start()?;
    let front = stage.socks5_addr();
    let mut script = python("udp.py")?;
    script.args([&front.ip().to_string(), &front.port().to_string(), USER, PASSWORD]);
    assert_eq!(run(script).await?.ok()?, "ok\n");
    let line = [("network", "udp".into()), ("user", USER.into()), ("outcome", "ok".into())];
    stage.gateway.access(&line)?;
    stage.client.access(&line)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_runs_through_an_association() -> Result {
    let stage = Stage::start()?;
    let front = stage.socks5_addr();
    let mut script = python("quic.py")?;
    script.args([&front.ip().to_string(), &front.port().to_string(), USER, PASSWORD]);
    script.args([stage.dir().join("server.crt"), stage.dir().join("server.key")]);
    assert_eq!(run(script).await?.ok()?, "ok\n");
    Ok(())
}
