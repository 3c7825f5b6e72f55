use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{Program, Result};

/// The user both fronts know.
pub const USER: &str = "user";
/// Their password.
pub const PASSWORD: &str = "pass:w0rd";

/// A gateway and a client of it, each in a process of its own.
pub struct Stage {
    dir: TempDir,
    /// The gateway's process.
    pub gateway: Program,
    /// The client's process.
    pub client: Program,
    http: SocketAddr,
    socks5: SocketAddr,
}

/// What differs from the usual file: YAML lines, each indented by two spaces, added to a section.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Fronts without accounts.
    pub open: bool,
    /// For `proxy`: further fronts.
    pub proxy: String,
    /// For `gateway`.
    pub gateway: String,
    /// For `client`.
    pub client: String,
    /// For the top.
    pub top: String,
}

impl Stage {
    /// The usual one: an account at both fronts, a client that may reach everything not forbidden.
    pub fn start() -> Result<Self> {
        Self::with(&Options::default())
    }

    /// One with a difference.
    pub fn with(options: &Options) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let certs =
            Program::start(&["cert", "--out", path(dir.path())?, "localhost", "127.0.0.1"])?.wait()?;
        if !certs.success() {
            return Err("anyproxy cert failed".into());
        }
        let gateway_port = free_port()?;
        std::fs::write(dir.path().join("anyproxy.yaml"), file(dir.path(), gateway_port, options))?;
        let gateway = Program::start(&["gateway", "--config", path(&dir.path().join("anyproxy.yaml"))?])?;
        let http = listening(&gateway, "http")?;
        let socks5 = listening(&gateway, "socks5")?;
        listening(&gateway, "gateway")?;
        let client = Program::start(&["client", "--config", path(&dir.path().join("anyproxy.yaml"))?])?;
        connected(&client)?;
        Ok(Self { dir, gateway, client, http, socks5 })
    }

    /// The file both processes were started with.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("anyproxy.yaml")
    }

    /// A folder for the test's own files, gone with the stage.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The HTTP front.
    #[must_use]
    pub const fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// The SOCKS5 front.
    #[must_use]
    pub const fn socks5_addr(&self) -> SocketAddr {
        self.socks5
    }

    /// The HTTP front as a proxy URL with credentials.
    #[must_use]
    pub fn http(&self) -> String {
        format!("http://{USER}:{}@{}", PASSWORD.replace(':', "%3A"), self.http)
    }

    /// The SOCKS5 front as a proxy URL with credentials; names are resolved at the far end.
    #[must_use]
    pub fn socks5(&self) -> String {
        format!("socks5h://{USER}:{}@{}", PASSWORD.replace(':', "%3A"), self.socks5)
    }

    /// The address of another front, by its name in the log.
    pub fn front(&self, name: &str) -> Result<SocketAddr> {
        listening(&self.gateway, name)
    }

    /// Starts the client again, after its end, and waits until it is connected.
    pub fn restart_client(&mut self) -> Result {
        self.client = Program::start(&["client", "--config", path(&self.file())?])?;
        connected(&self.client)
    }

    /// Starts the gateway again, after its end. Its ports are the same.
    pub fn restart_gateway(&mut self) -> Result {
        self.gateway = Program::start(&["gateway", "--config", path(&self.file())?])?;
        self.http = listening(&self.gateway, "http")?;
        self.socks5 = listening(&self.gateway, "socks5")?;
        listening(&self.gateway, "gateway").map(drop)
    }

    /// SIGTERM to the gateway.
    pub fn drain_gateway(&self) -> Result {
        self.gateway.signal(Signal::SIGTERM)
    }
}

/// Where a front listens, from its log line.
fn listening(gateway: &Program, front: &str) -> Result<SocketAddr> {
    let line = gateway
        .line(&format!("front {front}"), |line| line["message"] == "listening" && line["front"] == front)?;
    Ok(line["address"].as_str().ok_or("an address")?.parse()?)
}

fn connected(client: &Program) -> Result {
    client.line("a tunnel", |line| line["message"] == "connected").map(drop)
}

fn file(dir: &Path, gateway_port: u16, options: &Options) -> String {
    let Options { open, proxy, gateway, client, top } = options;
    let account = if *open {
        "allow_anonymous: true".to_owned()
    } else {
        format!("auth_username: {USER}, auth_password: '{PASSWORD}'")
    };
    let dir = dir.display();
    format!(
        "log: {{ level: info, format: json }}
{top}
proxy:
  http: {{ listen_addr: '127.0.0.1:0', {account} }}
  socks5: {{ listen_addr: '127.0.0.1:0', {account} }}
{proxy}
gateway:
  listen_addr: 127.0.0.1:{gateway_port}
  tls_cert: {dir}/server.crt
  tls_key: {dir}/server.key
  auth_username: gateway_user
  auth_password: gateway_password
{gateway}
client:
  gateway_addr: localhost:{gateway_port}
  gateway_tls_cert: {dir}/server.crt
  client_id: client-1
  auth_username: gateway_user
  auth_password: gateway_password
{client}
"
    )
}

/// A port that was free a moment ago: the gateway must come back to the same one after a restart.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| "a path in Unicode".into())
}
