use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{PATIENCE, Result};

/// A running program, `anyproxy` most of the time, and what it says, line by line. Killed when dropped.
pub struct Program {
    child: Child,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    said: Mutex<Said>,
    grown: Condvar,
}

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    /// Of standard output and standard error, those that have ended.
    ended: usize,
}

impl Said {
    const fn is_all(&self) -> bool {
        self.ended == 2
    }
}

impl Program {
    /// The program under test, built beside the tests.
    pub fn path() -> Result<PathBuf> {
        let tests = std::env::current_exe()?;
        let path = tests.ancestors().nth(2).ok_or("tests run from target/PROFILE/deps")?.join("anyproxy");
        if path.exists() {
            Ok(path)
        } else {
            Err(format!("{} is missing: cargo build first", path.display()).into())
        }
    }

    /// `anyproxy` with these arguments, in an environment without settings of its own.
    pub fn command(arguments: &[&str]) -> Result<Command> {
        let mut command = crate::tool(&Self::path()?.display().to_string());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ANYPROXY_") {
                command.env_remove(name);
            }
        }
        command.args(arguments);
        Ok(command)
    }

    /// Starts `anyproxy` with these arguments.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::spawn(&mut Self::command(arguments)?)
    }

    /// Starts `command`, and reads what it says on standard output and standard error as one.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{name}: {error} (.ci/setup installs what is not ours)"))?;
        let log = Arc::<Log>::default();
        log.read(child.stdout.take().ok_or("the program's output is ours")?);
        log.read(child.stderr.take().ok_or("the program's errors are ours")?);
        Ok(Self { child, log })
    }

    /// The first log line, an object, for which `wanted` says yes; waits for it.
    pub fn line(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.text(what, |line| serde_json::from_str(line).ok().filter(&wanted))
    }

    /// The access line of a stream whose fields hold these values; waits for it.
    pub fn access(&self, fields: &[(&str, Value)]) -> Result<Value> {
        self.line(&format!("an access line with {fields:?}"), |line| {
            line.get("outcome").is_some() && fields.iter().all(|(name, value)| line[name] == *value)
        })
    }

    /// Where this gateway's listener of that name is; waits for it.
    pub fn listening(&self, name: &str) -> Result<SocketAddr> {
        let wanted = |line: &Value| line["message"] == "listening" && line["front"] == name;
        let line = self.line(&format!("listener {name}"), wanted)?;
        Ok(line["address"].as_str().ok_or("an address")?.parse()?)
    }

    /// Waits until this client is connected.
    pub fn connected(&self) -> Result {
        self.line("a tunnel", |line| line["message"] == "a tunnel to the gateway stands").map(drop)
    }

    /// What `wanted` finds in the first line it finds anything in; waits for it.
    pub fn text<T>(&self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        let mut said = self.log.lock();
        loop {
            if let Some(found) = said.lines[seen..].iter().find_map(|line| wanted(line)) {
                return Ok(found);
            }
            seen = said.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if said.is_all() || left.is_zero() {
                return Err(format!("no sign of {what} in:\n{}", said.lines.join("\n")).into());
            }
            said = self.log.grown.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All lines until now.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().lines.clone()
    }

    /// The process's number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Its open descriptors.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.id()))?.count())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result {
        Ok(kill(Pid::from_raw(i32::try_from(self.id())?), signal)?)
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) -> Result {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.wait_within(PATIENCE * 2)
    }

    /// Waits for its end, for so long.
    pub fn wait_within(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        // What it says ends with it, so this wait is woken and does not poll.
        let mut said = self.log.lock();
        while !said.is_all() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("it has not ended after {limit:?}").into());
            }
            said = self.log.grown.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(said);
        Ok(self.child.wait()?)
    }
}

impl Log {
    fn lock(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(self: &Arc<Self>, pipe: impl Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(std::io::Result::ok) {
                log.lock().lines.push(line);
                log.grown.notify_all();
            }
            log.lock().ended += 1;
            log.grown.notify_all();
        });
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.kill();
        if std::thread::panicking() {
            for line in self.lines().iter().rev().take(40).rev() {
                eprintln!("{line}");
            }
        }
    }
}
