//! TLS passed through by its server name: curl, which knows of no proxy here, and a TLS server of OpenSSL's.

use std::net::SocketAddr;
use std::path::Path;

use anyproxy_tests::{Options, Output, Program, Result, Stage, run, tool};
use serde_json::json;
use tempfile::TempDir;

/// What curl says of a handshake that failed.
const NO_TLS: i32 = 35;

/// A page of OpenSSL's test server, with a certificate of its own for `localhost`. The gateway has no part in it.
struct Page {
    address: SocketAddr,
    dir: TempDir,
    _server: Program,
}

impl Page {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().display().to_string();
        if !Program::start(&["cert", "--out", &path, "localhost"])?.wait()?.success() {
            return Err("anyproxy cert failed".into());
        }
        let mut server = tool("openssl");
        server.current_dir(&dir).args(["s_server", "-accept", "127.0.0.1:0", "-www"]);
        let server = Program::spawn(server.args(["-cert", "server.crt", "-key", "server.key"]))?;
        let address = server.text("a listener", |line| line.strip_prefix("ACCEPT ")?.trim().parse().ok())?;
        Ok(Self { address, dir, _server: server })
    }

    fn cert(&self) -> &Path {
        self.dir.path()
    }

    /// A gateway that passes `hosts` through to the page's port.
    fn gateway(&self, hosts: &str, rules: &str) -> Result<(Stage, SocketAddr)> {
        let stage = Stage::with(&Options {
            proxy: format!(
                "  sni: {{ listen_addr: '127.0.0.1:0', hosts: [{hosts}], port: {} }}",
                self.address.port()
            ),
            gateway: rules.to_owned(),
            ..Options::default()
        })?;
        let address = stage.gateway.listening("sni")?;
        Ok((stage, address))
    }

    /// curl to `https://localhost/`, which is said to be at `sni`; it trusts the page's certificate alone.
    async fn curl(&self, sni: SocketAddr) -> Result<Output> {
        let mut curl = tool("curl");
        curl.args(["--silent", "--show-error", "--max-time", "60", "--cacert"]);
        curl.arg(self.cert().join("server.crt"));
        curl.args(["--connect-to", &format!("localhost:443:{sni}"), "https://localhost/"]);
        run(curl).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_user_without_a_proxy_reaches_the_server_behind_its_name() -> Result {
    let page = Page::start()?;
    let (stage, sni) = page.gateway("localhost", "")?;
    let answer = page.curl(sni).await?.ok()?;
    assert!(answer.contains("TLSv1.3"), "{answer}");
    let fields = [("front", json!("sni")), ("target", json!(format!("localhost:{}", page.address.port())))];
    let (there, here) = (stage.gateway.access(&fields)?, stage.client.access(&fields)?);
    assert_eq!((&there["outcome"], &there["group"]), (&json!("ok"), &json!("default")));
    assert_eq!(there["stream"], here["stream"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_listed_is_told_so_in_tls() -> Result {
    let page = Page::start()?;
    let (_stage, sni) = page.gateway("'*.example.com'", "")?;
    let answer = page.curl(sni).await?;
    assert_eq!(answer.code, NO_TLS, "{answer:?}");
    assert!(answer.err.contains("unrecognized name"), "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_of_the_gateway_hold_for_passed_through_tls() -> Result {
    let page = Page::start()?;
    let (_stage, sni) = page.gateway("localhost", "  forbidden_hosts: ['127.0.0.0/8']\n")?;
    let answer = page.curl(sni).await?;
    assert_eq!(answer.code, NO_TLS, "{answer:?}");
    assert!(answer.err.contains("access denied"), "{answer:?}");
    Ok(())
}

#[test]
fn names_that_would_pass_everybody_on_are_refused_with_their_place() -> Result {
    let dir = tempfile::tempdir()?;
    let path = dir.path().display().to_string();
    assert!(Program::start(&["cert", "--out", &path, "localhost"])?.wait()?.success());
    let file = dir.path().join("anyproxy.yaml");
    for (hosts, says) in [
        ("'*'", ":2:39: this would pass everybody on to every name"),
        ("'*:443'", ":2:39: this would pass everybody on to every name"),
        ("10.0.0.0/8", ":2:39: a server name is never an address"),
        ("", ":2:8: proxy.sni needs hosts"),
    ] {
        std::fs::write(
            &file,
            format!(
                "proxy:\n  sni: {{ listen_addr: ':443', hosts: [{hosts}] }}\n\
                 gateway:\n  listen_addr: ':1'\n  tls_cert: '{path}/server.crt'\n  tls_key: '{path}/server.key'\n  \
                 auth_username: client\n  auth_password: secret\n"
            ),
        )?;
        let mut check = Program::start(&["check", "--config", &file.display().to_string()])?;
        assert_eq!(check.wait()?.code(), Some(1));
        let lines = check.lines().join("\n");
        assert!(lines.contains(says), "{hosts}: {lines}");
    }
    Ok(())
}
