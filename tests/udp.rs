//! Datagrams through UDP ASSOCIATE: PySocks, dig, and QUIC by aioquic.

use anyproxy_tests::{Options, PASSWORD, Program, Result, Stage, USER, python, run, tool};

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
async fn one_association_reaches_what_routes_send_to_two_groups() -> Result {
    let options = Options {
        open: true,
        socks5: format!(
            ", users: [ {{ username: {USER}, password: '{PASSWORD}', groups: [default, green] }} ]"
        ),
        gateway: "  clients: [ { username: green, password: g, groups: [green] } ]
  routes: [ { targets: ['127.0.0.9'], group: green } ]"
            .to_owned(),
        ..Options::default()
    };
    let stage = Stage::with(&options)?;
    let green =
        [("CLIENT_ID", "green"), ("AUTH_USERNAME", "green"), ("AUTH_PASSWORD", "g"), ("GROUP_ID", "green")];
    let _green = stage.another_client(&green)?;
    let front = stage.socks5_addr();
    let mut script = python("udp_groups.py")?;
    script.args([&front.ip().to_string(), &front.port().to_string(), USER, PASSWORD]);
    let said = run(script).await?.ok()?;
    for target in said.split_whitespace() {
        let client = if target.starts_with("127.0.0.9:") { "green" } else { "client-1" };
        let line = [("network", "udp".into()), ("target", target.into()), ("outcome", "ok".into())];
        assert_eq!(stage.gateway.access(&line)?["client"], client, "{target}");
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn dig_is_answered_from_inside() -> Result {
    let stage = Stage::start()?;
    let front = stage.socks5_addr();
    let mut relay = python("udp_relay.py")?;
    relay.args([&front.ip().to_string(), &front.port().to_string(), USER, PASSWORD]);
    let relay = Program::spawn(&mut relay)?;
    let port = relay.text("its port", |line| line.strip_prefix("port ").map(str::to_owned))?;
    for _ in 0..5 {
        let mut dig = tool("dig");
        dig.args(["@127.0.0.1", "-p", &port, "+short", "+ignore", "+bufsize=4096", "TXT", "wiki.internal"]);
        let answer = run(dig).await?.ok()?;
        assert_eq!(answer.lines().count(), 40, "{answer}");
        assert!(answer.contains("\"record 39\""), "{answer}");
    }
    Ok(())
}
