use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{Program, Result};

/// The user both fronts know.
pub const USER: &str = "user";
/// Their password.
pub const PASSWORD: &str = "pass:w0rd";

/// A gateway and a client of it, each in a process of its own.
pub struct Stage {
    /// The gateway's process.
    pub gateway: Program,
    /// The client's process.
    pub client: Program,
    http: SocketAddr,
    socks5: SocketAddr,
    dir: TempDir,
}

/// What differs from the usual file. `{dir}` in it stands for the stage's folder.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Fronts without accounts.
    pub open: bool,
    /// For `proxy.http`: further keys in flow style, as in `, tls_cert: '{dir}/server.crt'`.
    pub http: String,
    /// For `proxy.socks5`: the same.
    pub socks5: String,
    /// For `proxy`: further fronts, as YAML lines, each indented by two spaces.
    pub proxy: String,
    /// For `gateway`: the same.
    pub gateway: String,
    /// For `client`: the same.
    pub client: String,
    /// For the top: YAML lines. A section `log` stands there already.
    pub top: String,
    /// For `log.level`; empty = `info`.
    pub level: String,
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
        let file = dir.path().join("anyproxy.yaml");
        std::fs::write(&file, text(free_port()?, options).replace("{dir}", path(dir.path())?))?;
        let gateway = Program::start(&["gateway", "--config", path(&file)?])?;
        let http = gateway.listening("http")?;
        let socks5 = gateway.listening("socks5")?;
        gateway.listening("gateway")?;
        let client = Program::start(&["client", "--config", path(&file)?])?;
        client.connected()?;
        Ok(Self { gateway, client, http, socks5, dir })
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

    /// Starts the client again, after its end, and waits until it is connected.
    pub fn restart_client(&mut self) -> Result {
        self.client = Program::start(&["client", "--config", path(&self.file())?])?;
        self.client.connected()
    }

    /// Starts one more client, whose keys of the section `client` differ: `("CLIENT_ID", "client-2")`.
    pub fn another_client(&self, keys: &[(&str, &str)]) -> Result<Program> {
        let mut client = Program::command(&["client", "--config", path(&self.file())?])?;
        client.envs(keys.iter().map(|(key, value)| (format!("ANYPROXY_CLIENT__{key}"), value)));
        let client = Program::spawn(&mut client)?;
        client.connected()?;
        Ok(client)
    }

    /// Starts the gateway again, after its end. Clients find it where it was; the fronts have other ports.
    pub fn restart_gateway(&mut self) -> Result {
        self.gateway = Program::start(&["gateway", "--config", path(&self.file())?])?;
        self.http = self.gateway.listening("http")?;
        self.socks5 = self.gateway.listening("socks5")?;
        self.gateway.listening("gateway").map(drop)
    }
}

fn text(gateway_port: u16, options: &Options) -> String {
    let Options { open, http, socks5, proxy, gateway, client, top, level } = options;
    let level = if level.is_empty() { "info" } else { level };
    let account =
        if *open { String::new() } else { format!(", auth_username: {USER}, auth_password: '{PASSWORD}'") };
    format!(
        "log: {{ level: {level}, format: json }}
{top}
proxy:
  http: {{ listen_addr: '127.0.0.1:0'{account}{http} }}
  socks5: {{ listen_addr: '127.0.0.1:0'{account}{socks5} }}
{proxy}
gateway:
  listen_addr: 127.0.0.1:{gateway_port}
  tls_cert: '{{dir}}/server.crt'
  tls_key: '{{dir}}/server.key'
  auth_username: gateway_user
  auth_password: gateway_password
{gateway}
client:
  gateway_addr: localhost:{gateway_port}
  gateway_tls_cert: '{{dir}}/server.crt'
  client_id: client-1
  auth_username: gateway_user
  auth_password: gateway_password
{client}
"
    )
}

/// A port that was free a moment ago, for what must come back to the same one or cannot say which it took.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| "a path in Unicode".into())
}
