//! Tunnels by definition: what to start, and where its ways in are. The file beside the sources is `peers.toml`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::Result;
use crate::load::Field;
use crate::program::{Program, free_ports};
use crate::usage::Watched;
use crate::way::Way;

/// How long a tunnel has to let the first byte through.
const PATIENCE: Duration = Duration::from_secs(20);
/// Ports that a definition may name: `{p0}` to `{p9}`.
const PORTS: usize = 10;

/// What is compared.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tunnel: Vec<Definition>,
}

/// What a tunnel is to the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// What is measured.
    Ours,
    /// What the machine can do.
    Ideal,
    /// Another tunnel that encrypts.
    Peer,
    /// For comparison only: no tunnel, or none that encrypts.
    Bound,
}

/// One tunnel, with as many clients as are asked for. In all texts `{work}` is a scratch folder with `ca.crt`,
/// `server.crt` and `server.key`, `{target}` the far end, `{user}` who runs this, `{anyproxy}` and `{bench}` the programs
/// of that name. What is there for each client has the client's number for `{n}`, from 1; clients connect to `{p0}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Definition {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// The way in for streams, and for HTTP requests and datagrams where there is one.
    entry: String,
    http: Option<String>,
    udp: Option<String>,
    /// Loads that make no sense here.
    #[serde(default)]
    pub(crate) skip: Vec<String>,
    /// Files of the scratch folder, by name; one with `{n}` in its name is there for each client.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// Commands that run before, one after the other, and end.
    #[serde(default)]
    prepare: Vec<String>,
    /// Programs that run, one after the other.
    #[serde(default)]
    start: Vec<Start>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Start {
    command: String,
    /// A port it listens on before the next one starts.
    port: Option<String>,
    /// It is a client: started once for each. Without one in a definition there is always one client.
    #[serde(default)]
    each_client: bool,
}

/// A tunnel that runs.
pub(crate) struct Tunnel {
    programs: Vec<Program>,
    pub(crate) entry: Way,
    pub(crate) http: Option<Way>,
    pub(crate) udp: Option<Way>,
}

/// What the texts of a definition are filled with.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) work: PathBuf,
    pub(crate) target: SocketAddr,
    pub(crate) anyproxy: PathBuf,
}

/// All definitions of a file.
pub(crate) fn read(path: Option<&Path>) -> Result<Vec<Definition>> {
    let text = match path {
        Some(path) => std::fs::read_to_string(path)?,
        None => include_str!("../peers.toml").to_owned(),
    };
    Ok(toml::from_str::<File>(&text)?.tunnel)
}

impl Definition {
    /// The first program that it needs and this machine lacks.
    pub(crate) fn missing(&self) -> Option<&str> {
        let commands = self.prepare.iter().chain(self.start.iter().map(|start| &start.command));
        let programs = commands.filter_map(|command| command.split_whitespace().next());
        programs.filter(|program| !program.starts_with('{')).find(|program| find(program).is_none())
    }

    /// Whether it can be started with more clients than one.
    pub(crate) fn takes_clients(&self) -> bool {
        self.start.iter().any(|start| start.each_client)
    }

    /// Starts it, and waits until it lets a byte through.
    pub(crate) async fn start(&self, around: &Surroundings, clients: usize) -> Result<Tunnel> {
        let ports = free_ports(PORTS)?;
        let fill = |text: &str| -> Result<String> {
            let bench = std::env::current_exe()?;
            let mut text = text
                .replace("{work}", &around.work.display().to_string())
                .replace("{target}", &around.target.to_string())
                .replace("{anyproxy}", &around.anyproxy.display().to_string())
                .replace("{bench}", &bench.display().to_string())
                .replace("{user}", &std::env::var("USER").unwrap_or_else(|_| "root".to_owned()));
            for (at, port) in ports.iter().enumerate() {
                text = text.replace(&format!("{{p{at}}}"), &port.to_string());
            }
            Ok(text)
        };
        let copies = |each_client: bool| 1..=if each_client { clients } else { 1 };
        let for_client = |text: &str, client: usize| text.replace("{n}", &client.to_string());
        for (name, text) in &self.files {
            for client in copies(name.contains("{n}")) {
                let text = fill(&for_client(text, client))?;
                std::fs::write(around.work.join(for_client(name, client)), text)?;
            }
        }
        for command in &self.prepare {
            prepare(&fill(command)?, &around.work)?;
        }
        let way = |text: &Option<String>| -> Result<Option<Way>> {
            text.as_ref().map(|text| Way::parse(&fill(text)?)).transpose()
        };
        let mut tunnel = Tunnel {
            programs: Vec::new(),
            entry: Way::parse(&fill(&self.entry)?)?,
            http: way(&self.http)?,
            udp: way(&self.udp)?,
        };
        for (at, start) in self.start.iter().enumerate() {
            for client in copies(start.each_client) {
                let command = fill(&for_client(&start.command, client))?;
                let (program, rest) = command.split_once(' ').unwrap_or((&command, ""));
                let program = find(program).ok_or_else(|| format!("{program} is missing"))?;
                let name = format!("{}.{at}.{client}", self.name.replace(' ', "-"));
                let line = format!("{} {rest}", program.display());
                tunnel.programs.push(Program::start(&name, &line, &around.work)?);
            }
            if let Some(port) = &start.port {
                listening(([127, 0, 0, 1], fill(port)?.parse()?).into()).await?;
            }
        }
        // That one is there, its first byte will tell.
        if clients > 1 {
            connected(ports[0], clients).await?;
        }
        tunnel.lets_through(around.target).await?;
        Ok(tunnel)
    }
}

impl Tunnel {
    /// Its processes.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.programs.iter().map(Program::id).collect()
    }

    /// Ends it, the last started first.
    pub(crate) async fn stop(self) {
        for program in self.programs.into_iter().rev() {
            program.stop().await;
        }
    }

    async fn lets_through(&mut self, target: SocketAddr) -> Result {
        let field = Field {
            way: self.entry.clone(),
            target,
            watched: Watched::default(),
            warm: Duration::ZERO,
            window: Duration::ZERO,
        };
        let asked = Instant::now();
        loop {
            let Err(error) = field.echo_once().await else { return Ok(()) };
            if asked.elapsed() > PATIENCE || self.programs.iter_mut().any(Program::has_ended) {
                let said: Vec<String> = self.programs.iter().map(Program::last_words).collect();
                return Err(format!("lets nothing through: {error}\n{}", said.join("\n")).into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Waits until somebody listens there.
pub(crate) async fn listening(addr: SocketAddr) -> Result {
    let asked = Instant::now();
    while tokio::net::TcpStream::connect(addr).await.is_err() {
        if asked.elapsed() > PATIENCE {
            return Err(format!("nobody listens on {addr}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Waits until so many connections to this port stand, one or more for each client.
async fn connected(port: u16, clients: usize) -> Result {
    let asked = Instant::now();
    loop {
        // local_address is 0100007F:PORT, and 01 means established.
        let sockets = std::fs::read_to_string("/proc/net/tcp")?;
        let is_one = |line: &&str| {
            let mut columns = line.split_whitespace().skip(1);
            let local = columns.next().and_then(|local| local.rsplit(':').next());
            local.is_some_and(|local| u16::from_str_radix(local, 16) == Ok(port))
                && columns.nth(1) == Some("01")
        };
        let count = sockets.lines().filter(is_one).count();
        if count >= clients {
            return Ok(());
        }
        if asked.elapsed() > PATIENCE {
            return Err(format!("{count} of {clients} clients are connected").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs a command to its end; `''` stands for an argument without a byte.
fn prepare(command: &str, folder: &Path) -> Result {
    let mut words = command.split_whitespace().map(|word| if word == "''" { "" } else { word });
    let program = find(words.next().ok_or("a command")?).ok_or("a program")?;
    let output =
        std::process::Command::new(program).args(words).current_dir(folder).stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Where a program is: as it stands, in `PATH`, or where services live.
fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}
