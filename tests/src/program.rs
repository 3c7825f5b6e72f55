use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{PATIENCE, Result};

/// A running `anyproxy`, its log read line by line. Killed when dropped.
pub struct Program {
    child: Child,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
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

    /// Starts it with these arguments.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::spawn(Command::new(Self::path()?).args(arguments))
    }

    /// Starts `command`, whose standard output is a log.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let log = Arc::<Log>::default();
        let output = child.stdout.take().ok_or("the program's output is ours")?;
        std::thread::spawn({
            let log = log.clone();
            move || {
                for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
                    log.change(|lines, _| lines.push(line));
                }
                log.change(|_, ended| *ended = true);
            }
        });
        Ok(Self { child, log })
    }

    /// The first log line, an object, for which `wanted` says yes; waits for it.
    pub fn line(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.text(what, |line| serde_json::from_str(line).ok().filter(&wanted))
    }

    /// What `wanted` finds in the first line of output it finds anything in; waits for it.
    pub fn text<T>(&self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        let mut lines = self.log.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = lines.0[seen..].iter().find_map(|line| wanted(line)) {
                return Ok(found);
            }
            seen = lines.0.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.1 || left.is_zero() {
                return Err(format!("no sign of {what} in:\n{}", lines.0.join("\n")).into());
            }
            lines = self.log.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All lines until now.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.log.lines.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
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
        let deadline = Instant::now() + PATIENCE * 2;
        // The log ends with the process, so this wait is woken and does not poll.
        let mut lines = self.log.lines.lock().unwrap_or_else(PoisonError::into_inner);
        while !lines.1 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("the program does not end".into());
            }
            lines = self.log.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(lines);
        Ok(self.child.wait()?)
    }
}

impl Log {
    fn change(&self, change: impl FnOnce(&mut Vec<String>, &mut bool)) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let (text, ended) = &mut *lines;
        change(text, ended);
        self.grown.notify_all();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in self.lines().iter().rev().take(40).rev() {
                eprintln!("{line}");
            }
        }
        let _ = self.kill();
    }
}
