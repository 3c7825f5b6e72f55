//! A gateway, its clients, links between them and a target: each a process of its own, all gone when dropped.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Result;
use crate::load::Field;
use crate::peers::listening;
use crate::program::{Program, certificates, free_ports};
use crate::usage::Watched;
use crate::way::Way;

/// How long clients have to connect, and a gateway to read its file.
const PATIENCE: Duration = Duration::from_secs(180);

/// What differs from the usual stage.
pub(crate) struct Setting {
    /// One-way delay of each client's link in milliseconds; 0 = no link between.
    pub(crate) clients: Vec<u64>,
    /// Tunnels of each client.
    pub(crate) replicas: usize,
    /// Users of the front: names; the password is `secret`.
    pub(crate) users: Vec<String>,
    /// Keys of the gateway's section, in YAML, each line indented by two spaces.
    pub(crate) gateway: String,
    /// The log's level. At `info` there is an access line for each stream.
    pub(crate) level: &'static str,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            clients: vec![0],
            replicas: 1,
            users: vec!["alice".to_owned()],
            gateway: String::new(),
            level: "error",
        }
    }
}

/// The processes.
pub(crate) struct Stage {
    pub(crate) gateway: Program,
    pub(crate) clients: Vec<Program>,
    target: Program,
    _links: Vec<Program>,
    anyproxy: PathBuf,
    front: SocketAddr,
    far_end: SocketAddr,
    folder: TempDir,
}

impl Stage {
    /// Starts everything, and waits until all clients are there.
    pub(crate) async fn start(anyproxy: &Path, setting: &Setting) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        certificates(folder.path())?;
        let bench = std::env::current_exe()?.display().to_string();
        let ports = free_ports(3 + setting.clients.len())?;
        let addr = |at: usize| SocketAddr::from(([127, 0, 0, 1], ports[at]));
        let (far_end, front, gateway_addr) = (addr(0), addr(1), addr(2));
        let target = Program::start("target", &format!("{bench} target {far_end}"), folder.path())?;
        listening(far_end).await?;

        std::fs::write(folder.path().join("gateway.yaml"), gateway_file(setting, front, gateway_addr)?)?;
        let mut gateway = run(anyproxy, "gateway", "gateway", folder.path())?;
        comes_up(&mut gateway, front).await?;

        let mut links = Vec::new();
        let mut clients = Vec::new();
        for (at, &delay) in setting.clients.iter().enumerate() {
            let mut leads = gateway_addr;
            if delay > 0 {
                leads = addr(3 + at);
                let line = format!("{bench} link {leads} {gateway_addr} {delay}");
                links.push(Program::start(&format!("link-{at}"), &line, folder.path())?);
                listening(leads).await?;
            }
            let name = client_name(at);
            std::fs::write(folder.path().join(format!("{name}.yaml")), client_file(setting, &name, leads))?;
            clients.push(run(anyproxy, "client", &name, folder.path())?);
        }
        let stage = Self {
            gateway,
            clients,
            target,
            _links: links,
            anyproxy: anyproxy.to_owned(),
            front,
            far_end,
            folder,
        };
        match setting.level {
            "info" => stage.all_connected(setting.replicas).await?,
            _ => stage.lets_through(&setting.users[0]).await?,
        }
        Ok(stage)
    }

    /// Where `user` comes in, and who is watched.
    pub(crate) fn field(&self, user: &str, window: Duration) -> Field {
        let tunnel = self.clients.iter().chain([&self.gateway]).map(Program::id).collect();
        Field {
            way: Way::Socks5(self.front, Some((user.to_owned(), "secret".to_owned()))),
            target: self.far_end,
            watched: Watched { tunnel, target: vec![self.target.id()] },
            warm: Duration::from_millis(700),
            window,
        }
    }

    /// Starts a client again, beside the old one or after its end.
    pub(crate) fn again(&self, client: usize) -> Result<Program> {
        run(&self.anyproxy, "client", &client_name(client), self.folder.path())
    }

    /// How many streams each client served, by the gateway's access lines.
    pub(crate) fn served(&self) -> Result<Vec<usize>> {
        let mut served = vec![0; self.clients.len()];
        for line in self.gateway.lines()? {
            let client = line.split_once("\"client\":\"client-").and_then(|(_, rest)| rest.split('"').next());
            let at = client.and_then(|number| number.parse::<usize>().ok());
            if let Some(count) = at.and_then(|number| served.get_mut(number - 1)) {
                *count += 1;
            }
        }
        Ok(served)
    }

    async fn all_connected(&self, replicas: usize) -> Result {
        let asked = Instant::now();
        for client in &self.clients {
            let stands = |line: &String| line.contains("a tunnel to the gateway stands");
            while client.lines()?.filter(stands).count() < replicas {
                if asked.elapsed() > PATIENCE {
                    return Err(format!("a client does not connect:\n{}", client.last_words()).into());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    async fn lets_through(&self, user: &str) -> Result {
        let field = self.field(user, Duration::ZERO);
        let asked = Instant::now();
        while let Err(error) = field.echo_once().await {
            if asked.elapsed() > PATIENCE {
                return Err(format!("lets nothing through: {error}\n{}", self.gateway.last_words()).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

fn client_name(at: usize) -> String {
    format!("client-{}", at + 1)
}

fn run(anyproxy: &Path, role: &str, name: &str, folder: &Path) -> Result<Program> {
    Program::start(name, &format!("{} {role} --config {name}.yaml", anyproxy.display()), folder)
}

/// Waits until `gateway` listens on `front`; a large file takes it a while.
async fn comes_up(gateway: &mut Program, front: SocketAddr) -> Result {
    let asked = Instant::now();
    while tokio::net::TcpStream::connect(front).await.is_err() {
        if gateway.has_ended() || asked.elapsed() > PATIENCE {
            return Err(format!("the gateway does not come up:\n{}", gateway.last_words()).into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn gateway_file(setting: &Setting, front: SocketAddr, gateway: SocketAddr) -> Result<String> {
    let mut users = String::new();
    for user in &setting.users {
        writeln!(users, "      - {{ username: {user}, password: secret }}")?;
    }
    Ok(format!(
        "log: {{ level: {}, format: json }}
proxy:
  socks5:
    listen_addr: '{front}'
    users:
{users}gateway:
  listen_addr: '{gateway}'
  tls_cert: server.crt
  tls_key: server.key
  auth_username: gateway_user
  auth_password: gateway_password
{}",
        setting.level, setting.gateway
    ))
}

fn client_file(setting: &Setting, name: &str, gateway: SocketAddr) -> String {
    format!(
        "log: {{ level: {}, format: json }}
client:
  gateway_addr: 'localhost:{}'
  gateway_tls_cert: ca.crt
  client_id: {name}
  replicas: {}
  auth_username: gateway_user
  auth_password: gateway_password
",
        setting.level,
        gateway.port(),
        setting.replicas
    )
}
