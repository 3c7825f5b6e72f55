//! Programs that are started here, and ended here: none outlives the value that holds it.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Resource, Rlimit, Signal, getrlimit, kill_process, kill_process_group, setrlimit,
};

use crate::Result;

/// How long a program has to end after it was asked to.
const PATIENCE: Duration = Duration::from_secs(2);

/// A running program with its children, in a process group of its own. Ended when dropped.
pub(crate) struct Program {
    child: Child,
    output: PathBuf,
}

impl Program {
    /// Starts `line`, a program and its arguments separated by blanks, in `folder`, its output in `name.log` there.
    pub(crate) fn start(name: &str, line: &str, folder: &Path) -> Result<Self> {
        let mut words = line.split_whitespace();
        let program = words.next().ok_or("a command")?;
        let output = folder.join(format!("{name}.log"));
        let log = File::create(&output)?;
        let child = Command::new(program)
            .args(words)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        Ok(Self { child, output })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far, line by line.
    pub(crate) fn lines(&self) -> Result<impl Iterator<Item = String> + use<>> {
        Ok(BufReader::new(File::open(&self.output)?).lines().map_while(std::io::Result::ok))
    }

    /// The last lines it has said, for a message.
    pub(crate) fn last_words(&self) -> String {
        let lines: Vec<String> = self.lines().map(Iterator::collect).unwrap_or_default();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()).ok()?)
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }

    /// SIGTERM, if it still runs: afterwards its number may be another's.
    pub(crate) fn ask_to_end(&mut self) {
        if let Some(pid) = self.pid().filter(|_| !self.has_ended()) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// SIGTERM, and its end.
    pub(crate) async fn stop(mut self) {
        self.ask_to_end();
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE && !self.has_ended() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program built beside this one.
pub(crate) fn beside(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    match path.exists() {
        true => Ok(path),
        false => Err(format!("{} is missing: cargo build --release first", path.display()).into()),
    }
}

/// Ports that were free a moment ago, all at once, so that none is given twice.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0"));
    let listeners = listeners.collect::<std::io::Result<Vec<_>>>()?;
    Ok(listeners
        .iter()
        .map(|listener| listener.local_addr().map(|addr| addr.port()))
        .collect::<Result<_, _>>()?)
}

/// A free port of this machine.
pub(crate) fn free_addr() -> Result<SocketAddr> {
    Ok(([127, 0, 0, 1], free_ports(1)?[0]).into())
}

/// As many files as this process may open at all: a load of 16,000 streams needs them.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// A throw-away authority and a server's certificate by it, for localhost: `ca.crt`, `server.crt`, `server.key`.
pub(crate) fn certificates(folder: &Path) -> Result {
    let authority_key = rcgen::KeyPair::generate()?;
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new())?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "bench");
    let authority_cert = authority.self_signed(&authority_key)?;
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate()?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let server = rcgen::CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    std::fs::write(folder.join("ca.crt"), authority_cert.pem())?;
    std::fs::write(folder.join("server.crt"), server.pem())?;
    std::fs::write(folder.join("server.key"), key.serialize_pem())?;
    Ok(())
}
