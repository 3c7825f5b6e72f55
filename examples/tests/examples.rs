//! Every example runs as it stands, serves a real request, refuses what it should, and ends on Ctrl-C.

use std::net::SocketAddr;

use anyproxy_tests::{HttpTarget, Output, Program, Result, SilentTarget, run, tool};
use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const HELLO: &str = "hello from inside\n";

#[tokio::test(flavor = "multi_thread")]
async fn minimal_gateway() -> Result {
    let (certs, target) = (Certs::new()?, HttpTarget::start().await?);
    let example = Example::start("minimal_gateway", &[&certs.path(), "0", "0", "0"])?;
    let _client = certs.client(&example, "default")?;
    let http = format!("http://user:password@{}", example.address("http")?);
    let socks5 = format!("socks5h://user:password@{}", example.address("socks5")?);
    assert_eq!(curl(&["-x", &http, &target.url("/hello")]).await?.out, HELLO);
    assert_eq!(curl(&["-p", "-x", &http, &target.url("/hello")]).await?.out, HELLO);
    assert_eq!(curl(&["-x", &socks5, &target.url("/hello")]).await?.out, HELLO);
    assert_eq!(code(&http, "http://127.0.0.1:25/").await?, "403");
    assert_eq!(code(&http.replace("password", "wrong"), &target.url("/hello")).await?, "407");
    example.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_layer() -> Result {
    let target = HttpTarget::start().await?;
    let always = Example::start("custom_layer", &["0", "24", "0"])?;
    let never = Example::start("custom_layer", &["0", "0", "0"])?;
    assert_eq!(code(&always.proxy()?, &target.url("/hello")).await?, "200");
    assert_eq!(code(&never.proxy()?, &target.url("/hello")).await?, "403");
    always.end()?;
    never.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_front() -> Result {
    let target = HttpTarget::start().await?;
    let example = Example::start("custom_front", &["0"])?;
    let front = example.address("line")?;
    let port = target.addr().port();

    // What follows the line at once belongs to the target, and the end of it ends the request.
    let said = format!("CONNECT 127.0.0.1 {port}\nGET /hello HTTP/1.0\r\n\r\n");
    let answer = say(front, &said).await?;
    assert!(answer.starts_with("OK\nHTTP/1.0 200 OK\r\n") && answer.ends_with(HELLO), "{answer}");

    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let refused = say(front, &format!("CONNECT 127.0.0.1 {closed}\n")).await?;
    assert_eq!(refused, "NO connection refused by the target\n");
    assert_eq!(say(front, "HELLO\n").await?, "NO command not supported\n");
    assert_eq!(say(front, &"x".repeat(400)).await?, "NO not a valid target\n");
    example.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn http_auth() -> Result {
    let target = HttpTarget::start().await?;
    let example = Example::start("http_auth", &["", "0"])?;
    let proxy = format!("http://alice:secret@{}", example.address("http")?);
    assert_eq!(curl(&["-x", &proxy, &target.url("/hello")]).await?.out, HELLO);
    example.says(&format!("alice of group blue dials {}", target.addr()))?;
    assert_eq!(code(&proxy.replace("secret", "wrong"), &target.url("/hello")).await?, "407");
    assert_eq!(code(&example.proxy()?, &target.url("/hello")).await?, "407");
    example.end()?;

    // A service of somebody else's, which does not know what it is asked.
    let service = HttpTarget::start().await?;
    let example = Example::start("http_auth", &[&service.url("/nothing"), "0"])?;
    let proxy = format!("http://alice:secret@{}", example.address("http")?);
    assert_eq!(code(&proxy, &target.url("/hello")).await?, "500");
    example.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn tower_parts() -> Result {
    let (target, silent) = (HttpTarget::start().await?, SilentTarget::start().await?);
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let example = Example::start("tower_parts", &["0"])?;
    let proxy = example.proxy()?;
    assert_eq!(code(&proxy, &target.url("/hello")).await?, "200");
    assert_eq!(code(&proxy, "http://127.0.0.1:25/").await?, "403");
    assert_eq!(code(&proxy, &format!("http://{}/", silent.addr())).await?, "504");
    assert_eq!(code(&proxy, &format!("http://{closed}/")).await?, "502");
    example.says(&format!("dial 3: {closed}"))?;
    example.says(&format!("dial 4: {closed}"))?;
    example.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_networks() -> Result {
    let (certs, target) = (Certs::new()?, HttpTarget::start().await?);
    let example = Example::start("two_networks", &[&certs.path(), "0", "0"])?;
    let (office, lab) = (certs.client(&example, "office")?, certs.client(&example, "lab")?);
    let alice = format!("http://alice:secret@{}", example.address("http")?);
    let bob = alice.replace("alice", "bob");
    let by_name = format!("http://localhost:{}/hello", target.addr().port());

    // The office reaches everything, the lab its names alone; each by its own client.
    assert_eq!(code(&alice, &target.url("/hello")).await?, "200");
    office.access(&[("user", json!("alice")), ("group", json!("office"))])?;
    assert_eq!(code(&bob, &target.url("/hello")).await?, "403");
    assert_eq!(code(&bob, &by_name).await?, "200");
    lab.access(&[("user", json!("bob")), ("group", json!("lab"))])?;
    example.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_axum() -> Result {
    let (certs, target) = (Certs::new()?, HttpTarget::start().await?);
    let example = Example::start("in_axum", &[&certs.path(), "0", "0"])?;
    let site = example.proxy()?;
    let proxy = site.replace("http://", "http://user:password@");
    assert_eq!(curl(&[&format!("{site}/")]).await?.out, "This is the site.\n");
    assert_eq!(curl(&[&format!("{site}/clients")]).await?.out, "");
    assert_eq!(connect(&proxy, &target.url("/hello")).await?, "503");

    let _client = certs.client(&example, "default")?;
    assert_eq!(curl(&[&format!("{site}/clients")]).await?.out, "default of default\n");
    assert_eq!(curl(&["-p", "-x", &proxy, &target.url("/hello")]).await?.out, HELLO);
    assert_eq!(connect(&proxy.replace("password", "wrong"), &target.url("/hello")).await?, "407");
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    assert_eq!(connect(&proxy, &format!("http://{closed}/")).await?, "502");
    example.end()
}

// === Examples and their clients ===

/// A running example.
struct Example(Program);

impl Example {
    fn start(name: &str, arguments: &[&str]) -> Result<Self> {
        let path = Program::path()?.with_file_name("examples").join(name);
        if !path.exists() {
            return Err(format!("{} is missing: cargo build --examples first", path.display()).into());
        }
        let mut command = tool(&path.display().to_string());
        command.args(arguments);
        Ok(Self(Program::spawn(&mut command)?))
    }

    /// Where it listens, as it says itself.
    fn address(&self, name: &str) -> Result<SocketAddr> {
        let begins = format!("{name}: ");
        self.0.text(name, |line| line.strip_prefix(&begins)?.parse().ok())
    }

    /// Its HTTP port as a URL.
    fn proxy(&self) -> Result<String> {
        Ok(format!("http://{}", self.address("http")?))
    }

    fn says(&self, what: &str) -> Result {
        self.0.text(what, |line| (line == what).then_some(()))
    }

    /// Ctrl-C, and a good end.
    fn end(mut self) -> Result {
        self.0.signal(Signal::SIGINT)?;
        let status = self.0.wait()?;
        if status.success() { Ok(()) } else { Err(format!("{status}: {:?}", self.0.lines()).into()) }
    }
}

/// A folder with the pair that `anyproxy cert` makes.
struct Certs(TempDir);

impl Certs {
    fn new() -> Result<Self> {
        let certs = Self(tempfile::tempdir()?);
        let made = Program::start(&["cert", "--out", &certs.path(), "localhost"])?.wait()?;
        if made.success() { Ok(certs) } else { Err("anyproxy cert failed".into()) }
    }

    fn path(&self) -> String {
        self.0.path().display().to_string()
    }

    /// A client of this group, from the file beside the examples, connected.
    fn client(&self, example: &Example, group: &str) -> Result<Program> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/client.yaml");
        let mut command = Program::command(&["client", "--config", file])?;
        let gateway = format!("localhost:{}", example.address("clients")?.port());
        command.env("ANYPROXY_CLIENT__GATEWAY_ADDR", gateway);
        command.env("ANYPROXY_CLIENT__GATEWAY_TLS_CERT", self.0.path().join("server.crt"));
        command.env("ANYPROXY_CLIENT__CLIENT_ID", group).env("ANYPROXY_CLIENT__GROUP_ID", group);
        command.env("ANYPROXY_LOG__FORMAT", "json");
        let client = Program::spawn(&mut command)?;
        client.connected()?;
        Ok(client)
    }
}

// === Users ===

async fn curl(arguments: &[&str]) -> Result<Output> {
    let mut curl = tool("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60"]).args(arguments);
    run(curl).await
}

/// The status of the answer to a request in absolute form.
async fn code(proxy: &str, url: &str) -> Result<String> {
    let arguments = ["--output", "/dev/null", "--write-out", "%{http_code}", "-x", proxy, url];
    curl(&arguments).await?.ok()
}

/// The status of the answer to CONNECT.
async fn connect(proxy: &str, url: &str) -> Result<String> {
    let arguments = ["--output", "/dev/null", "--write-out", "%{http_connect}", "-p", "-x", proxy, url];
    Ok(curl(&arguments).await?.out)
}

/// Says something, ends its side, and hears the rest.
async fn say(front: SocketAddr, text: &str) -> Result<String> {
    let mut user = TcpStream::connect(front).await?;
    user.write_all(text.as_bytes()).await?;
    user.shutdown().await?;
    let mut answer = String::new();
    user.read_to_string(&mut answer).await?;
    Ok(answer)
}
