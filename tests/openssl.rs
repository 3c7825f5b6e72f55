//! Certificates by openssl, good and bad, at both ends of the tunnel.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyproxy_tests::{PATIENCE, Program, Result, run, tool, until};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::ChildStderr;
use tokio::time::timeout;

/// What openssl makes, in a folder of its own.
struct Authority {
    dir: tempfile::TempDir,
}

/// From long ago until tomorrow's tomorrow, and until long ago.
const VALID: (&str, &str) = ("20200101000000Z", "20991231000000Z");
const EXPIRED: (&str, &str) = ("20200101000000Z", "20200102000000Z");

const SERVER: &str = "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n";
const CLIENT: &str = "extendedKeyUsage=clientAuth\n";

impl Authority {
    /// Makes `ca.crt`.
    async fn new() -> Result<Self> {
        let authority = Self { dir: tempfile::tempdir()? };
        authority.self_signed("ca", "/CN=An authority", "basicConstraints=critical,CA:TRUE").await?;
        let dir = authority.dir.path().display();
        let config = format!(
            "[ca]\ndefault_ca = d\n[d]\ndatabase = {dir}/index\nnew_certs_dir = {dir}\nrand_serial = yes\n\
             unique_subject = no\ndefault_md = sha256\npolicy = p\n[p]\ncommonName = supplied\n"
        );
        std::fs::write(authority.path("ca.cnf"), config)?;
        std::fs::write(authority.path("index"), "")?;
        Ok(authority)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn openssl(&self, arguments: &str) -> Command {
        let mut openssl = tool("openssl");
        openssl.current_dir(self.dir.path()).args(arguments.split(' '));
        openssl
    }

    /// `NAME.crt` and `NAME.key`: what `openssl req -x509` makes, a CA's certificate unless told otherwise.
    async fn self_signed(&self, name: &str, subject: &str, extension: &str) -> Result {
        let mut req = self.openssl("req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:P-256");
        req.args(["-subj", subject, "-addext", extension]);
        req.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")]);
        run(req).await?.ok().map(drop)
    }

    /// `NAME.crt` and `NAME.key`, signed by this authority.
    async fn issue(&self, name: &str, extensions: &str, (start, end): (&str, &str)) -> Result {
        let mut req =
            self.openssl("req -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=someone");
        req.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.csr")]);
        run(req).await?.ok()?;
        std::fs::write(self.path("extensions"), extensions)?;
        let mut ca = self.openssl("ca -batch -notext -config ca.cnf -cert ca.crt -keyfile ca.key");
        ca.args(["-extfile", "extensions", "-startdate", start, "-enddate", end]);
        ca.args(["-in", &format!("{name}.csr"), "-out", &format!("{name}.crt")]);
        run(ca).await?.ok().map(drop)
    }
}

/// Starts a gateway that shows `dir/cert.crt`, and says on which port it is.
fn gateway(dir: &Path, cert: &str, more: &str) -> Result<(Program, u16)> {
    let (file, at) = (dir.join(format!("gateway-{cert}.yaml")), dir.display());
    let text = format!(
        "log: {{ format: json, level: debug }}
gateway:
  listen_addr: 127.0.0.1:0
  tls_cert: {at}/{cert}.crt
  tls_key: {at}/{cert}.key
  auth_username: gateway_user
  auth_password: gateway_password
{more}
"
    );
    std::fs::write(&file, text)?;
    let gateway = Program::start(&["gateway", "--config", &file.display().to_string()])?;
    let port = gateway.listening("gateway")?.port();
    Ok((gateway, port))
}

/// Starts a client of `address` that trusts `dir/trusted.crt`.
fn client(dir: &Path, address: &str, trusted: &str, more: &str) -> Result<Program> {
    let (file, at) = (dir.join("client.yaml"), dir.display());
    let text = format!(
        "log: {{ format: json }}
client:
  gateway_addr: {address}
  gateway_tls_cert: {at}/{trusted}.crt
  client_id: client-1
  auth_username: gateway_user
  auth_password: gateway_password
{more}
"
    );
    std::fs::write(&file, text)?;
    Program::start(&["client", "--config", &file.display().to_string()])
}

#[tokio::test(flavor = "multi_thread")]
async fn w9_a_certificate_that_does_not_prove_the_gateway_gets_no_credentials() -> Result {
    let authority = Authority::new().await?;
    let dir = authority.dir.path();
    authority.issue("good", SERVER, VALID).await?;
    authority.issue("expired", SERVER, EXPIRED).await?;
    authority.issue("other-name", "subjectAltName=DNS:other.example\n", VALID).await?;
    authority.issue("by-address", "subjectAltName=IP:127.0.0.1\n", VALID).await?;
    authority.issue("for-clients", &format!("subjectAltName=DNS:localhost\n{CLIENT}"), VALID).await?;
    authority.self_signed("stranger", "/CN=localhost", "subjectAltName=DNS:localhost").await?;
    for (cert, trusted) in [
        ("expired", "ca"),
        ("other-name", "ca"),
        ("by-address", "ca"),
        ("for-clients", "ca"),
        ("good", "stranger"),
        ("stranger", "ca"),
        // Pinned, and yet not believed.
        ("expired", "expired"),
        ("other-name", "other-name"),
    ] {
        let (gateway, port) = gateway(dir, cert, "")?;
        let client = client(dir, &format!("localhost:{port}"), trusted, "")?;
        let line = client.line("a refusal", |line| line["message"] == "no tunnel")?;
        assert_eq!(line["error"], "TLS with the gateway failed", "{cert} by {trusted}: {line}");
        assert_eq!(line["level"], "ERROR", "{cert} by {trusted}: {line}");
        assert!(line["wait_ms"].as_u64().is_some(), "{cert} by {trusted}: {line}");
        // It tries again, and has nothing better to say.
        let lines = || client.lines().iter().filter(|line| line.contains("no tunnel")).count();
        until("another try", async || Ok(lines() > 1)).await?;
        let said = gateway.lines().join("\n");
        assert!(!said.contains("gateway_user") && !said.contains("client connected"), "{cert}: {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_an_authority_and_pinned_ones_prove_the_gateway() -> Result {
    let authority = Authority::new().await?;
    let dir = authority.dir.path();
    authority.issue("good", SERVER, VALID).await?;
    authority.issue("by-address", "subjectAltName=IP:127.0.0.1\n", VALID).await?;
    authority.self_signed("self", "/CN=gateway", "subjectAltName=DNS:localhost,IP:127.0.0.1").await?;
    for (cert, host, trusted) in [
        ("good", "localhost", "ca"),
        ("good", "localhost", "good"),
        ("by-address", "127.0.0.1", "ca"),
        // `openssl req -x509` makes a CA's certificate, which is no server's: it is pinned.
        ("self", "localhost", "self"),
        ("self", "127.0.0.1", "self"),
    ] {
        let (gateway, port) = gateway(dir, cert, "")?;
        let client = client(dir, &format!("{host}:{port}"), trusted, "")?;
        client.connected()?;
        gateway.line("the client", |line| line["message"] == "client connected")?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn w10_where_clients_need_a_certificate_only_the_right_one_lets_them_in() -> Result {
    let (authority, other) = (Authority::new().await?, Authority::new().await?);
    let dir = authority.dir.path();
    authority.issue("server", SERVER, VALID).await?;
    authority.issue("client", CLIENT, VALID).await?;
    authority.issue("expired", CLIENT, EXPIRED).await?;
    authority.issue("for-servers", "extendedKeyUsage=serverAuth\n", VALID).await?;
    other.issue("foreign", CLIENT, VALID).await?;
    for name in ["foreign.crt", "foreign.key"] {
        std::fs::copy(other.path(name), authority.path(name))?;
    }
    let (gateway, port) = gateway(dir, "server", &format!("  tls_client_ca: {}/ca.crt", dir.display()))?;
    let address = format!("localhost:{port}");
    let shows = |cert: &str| format!("  tls_cert: {0}/{cert}.crt\n  tls_key: {0}/{cert}.key", dir.display());
    for more in [String::new(), shows("expired"), shows("for-servers"), shows("foreign")] {
        let client = client(dir, &address, "ca", &more)?;
        client.line("a refusal", |line| line["message"] == "no tunnel")?;
    }
    assert!(!gateway.lines().iter().any(|line| line.contains("client connected")));
    client(dir, &address, "ca", &shows("client"))?.connected()
}

#[tokio::test(flavor = "multi_thread")]
async fn w10_without_authorities_to_trust_the_gateway_does_not_start() -> Result {
    let authority = Authority::new().await?;
    authority.issue("server", SERVER, VALID).await?;
    std::fs::write(authority.path("empty.crt"), "")?;
    for ca in ["empty.crt", "missing.crt", "server.key"] {
        let dir = authority.dir.path();
        let more = format!("  tls_client_ca: {}", authority.path(ca).display());
        let refused = gateway(dir, "server", &more).map(drop).expect_err("it started").to_string();
        assert!(refused.contains(ca), "{refused}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn w12_nothing_is_compressed_renegotiated_or_said_early() -> Result {
    let authority = Authority::new().await?;
    authority.issue("server", SERVER, VALID).await?;
    let (_gateway, port) = gateway(authority.dir.path(), "server", "")?;
    for (version, said) in [("-tls1_2", "Compression: NONE"), ("-tls1_3", "Max Early Data: 0")] {
        let mut hello = authority.openssl("s_client -CAfile ca.crt -verify_return_error -comp");
        hello.args(["-connect", &format!("localhost:{port}"), version]);
        let shaken = run(hello).await?;
        assert!(
            shaken.out.contains(said) || shaken.out.contains("Compression: NONE"),
            "{version}: {shaken:?}"
        );
        let early = shaken.out.lines().filter_map(|line| line.trim().strip_prefix("Max Early Data: "));
        assert!(early.into_iter().all(|most| most == "0"), "{shaken:?}");
    }
    // `R` asks for another handshake in the same connection, which the gateway declines.
    let file = authority.dir.path().join("renegotiate");
    std::fs::write(&file, "R\n")?;
    let mut hello = authority.openssl("s_client -CAfile ca.crt -verify_return_error -tls1_2");
    hello.args(["-connect", &format!("localhost:{port}")]).stdin(std::fs::File::open(&file)?);
    let shaken = run(hello).await?;
    assert!(shaken.err.contains("no_renegotiation") || shaken.err.contains("no renegotiation"), "{shaken:?}");
    Ok(())
}

async fn until_said(what: &str, lines: &mut Lines<BufReader<ChildStderr>>) -> Result {
    while let Some(line) = lines.next_line().await? {
        if line == what {
            return Ok(());
        }
    }
    Err(format!("an end instead of {what}").into())
}

/// `K` sends a key update that asks for the gateway's (RFC 8446 section 4.6.3).
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_changed_when_the_peer_asks_in_each_suite() -> Result {
    let authority = Authority::new().await?;
    authority.issue("server", SERVER, VALID).await?;
    let (_gateway, port) = gateway(authority.dir.path(), "server", "")?;
    for suite in ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"] {
        let mut client = authority.openssl("s_client -CAfile ca.crt -verify_return_error -tls1_3");
        client.args(["-ciphersuites", suite, "-connect", &format!("localhost:{port}")]);
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = tokio::process::Command::from(client).kill_on_drop(true).spawn()?;
        let mut say = client.stdin.take().expect("piped");
        let mut told = BufReader::new(client.stderr.take().expect("piped")).lines();
        say.write_all(b"K\n").await?;
        timeout(PATIENCE, until_said("KEYUPDATE", &mut told)).await??;
        say.write_all(b"GET /ws HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n").await?;
        let heard = timeout(PATIENCE, client.wait_with_output()).await??;
        let heard = String::from_utf8_lossy(&heard.stdout).into_owned();
        assert!(heard.contains(&format!("Cipher is {suite}")), "{heard}");
        assert!(heard.contains("HTTP/1.1 4"), "{suite}: {heard}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_older_than_1_2_is_not_spoken() -> Result {
    let authority = Authority::new().await?;
    authority.issue("server", SERVER, VALID).await?;
    let (_gateway, port) = gateway(authority.dir.path(), "server", "")?;
    for (version, cipher, speaks) in
        [("-tls1_1", "DEFAULT@SECLEVEL=0", false), ("-tls1_2", "DEFAULT", true), ("-tls1_3", "DEFAULT", true)]
    {
        let mut hello = authority.openssl("s_client -CAfile ca.crt -verify_return_error -brief");
        hello.args(["-connect", &format!("localhost:{port}"), version, "-cipher", cipher]);
        let shaken = run(hello).await?;
        assert_eq!(shaken.code == 0, speaks, "{version}: {shaken:?}");
    }
    Ok(())
}
