//! From the file as it is written to what the libraries take: every default is applied here, and whatever makes no
//! sense is refused here, so that `check` and a start say the same.

mod accounts;
mod client;
mod front;
mod gateway;
mod rules;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyproxy_config::{ConfigError, File, Place};
use anyproxy_tunnel::Memory;

pub(crate) use client::Client;
pub(crate) use front::{Front, Protocol};
pub(crate) use gateway::{Gateway, associations, users};
pub(crate) use rules::Route;

use crate::failure::Failure;
use crate::process;

/// The longest a handshake, or a request's head, may take.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest a stream may be silent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// The longest a half-closed stream may make no progress.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// How long living streams have to finish.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The least that streams may hold: a window or two.
const LEAST_MEMORY: u64 = 1024 * 1024;
/// The least between two pings: whoever gets more of them takes that for a flood, and ends the tunnel.
const LEAST_PING_INTERVAL: Duration = Duration::from_secs(1);

/// How long a thread looks for work before it sleeps: twice what waking one costs on a virtual machine. With 50 µs
/// threads hardly look where other machines use its processors, with 200 µs bulk and HTTP take a tenth more CPU time.
const BUSY_POLL: Duration = Duration::from_micros(100);
/// The longest that makes any sense: a core would do little else.
const MOST_BUSY_POLL: Duration = Duration::from_millis(1);

/// A file, and what its mistakes are reported under.
pub(crate) struct Source {
    pub(crate) file: File,
    pub(crate) name: Arc<str>,
    /// Where it can be read again; none if all comes from the environment.
    pub(crate) path: Option<PathBuf>,
}

impl Source {
    /// Reads the file at `path`, and lays the environment over it.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, Failure> {
        let environment = environment()?;
        let name = path.map_or_else(|| "environment".to_owned(), |path| path.display().to_string());
        let file = File::load(path, environment)?;
        Ok(Self { file, name: name.into(), path: path.map(Path::to_owned) })
    }

    /// Reads the same file again. A start may be given a pipe; who waits for one to be written to once more waits for ever.
    pub(crate) fn reload(&self) -> Result<Self, Failure> {
        if let Some(path) = &self.path
            && std::fs::metadata(path).is_ok_and(|file| !file.is_file())
        {
            return Err(self.wrong("this is no regular file, which alone can be read again"));
        }
        Self::load(self.path.as_deref())
    }

    /// A mistake at a place of the file.
    pub(crate) fn mistake(&self, place: impl Into<Place>, what: impl Into<String>) -> Failure {
        ConfigError::at(&*self.name, place, what).into()
    }

    /// A mistake whose key tells its place.
    pub(crate) fn wrong(&self, what: impl Into<String>) -> Failure {
        ConfigError::new(&*self.name, what).into()
    }

    /// The value of a key that cannot be left out.
    pub(crate) fn required<'a, T>(&self, key: &str, value: Option<&'a T>) -> Result<&'a T, Failure> {
        value.ok_or_else(|| self.wrong(format!("the key \"{key}\" is missing")))
    }
}

/// The variables that may lie over the file.
fn environment() -> Result<Vec<(String, String)>, Failure> {
    let named = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    // Those that are no text belong to others, unless their names say otherwise.
    named
        .filter(|(name, value)| value.to_str().is_some() || anyproxy_config::is_variable(name))
        .map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(_) => Err(Failure::of(name, "its value is not UTF-8")),
        })
        .collect()
}

/// A key's duration, or its default.
fn duration(value: Option<anyproxy_config::Duration>, default: Duration) -> Duration {
    value.map_or(default, |value| value.0)
}

/// The same where 0 would leave no time at all, which is a mistake.
fn positive(
    key: &str,
    value: Option<anyproxy_config::Duration>,
    default: Duration,
    mistake: impl FnOnce(String) -> Failure,
) -> Result<Duration, Failure> {
    let value = duration(value, default);
    if value.is_zero() { Err(mistake(format!("{key} is 0, which leaves no time at all"))) } else { Ok(value) }
}

/// The same where 0 means for ever.
fn unless_zero(value: Option<anyproxy_config::Duration>, default: Duration) -> Option<Duration> {
    Some(duration(value, default)).filter(|value| !value.is_zero())
}

/// How long threads look for work before they sleep.
fn busy_poll(
    value: Option<anyproxy_config::Duration>,
    mistake: impl FnOnce(String) -> Failure,
) -> Result<Duration, Failure> {
    let value = match value {
        Some(value) => value.0,
        // Who has a quota would spend on looking what work needs, and is stopped for tens of ms once it is spent.
        None if process::has_cpu_quota() => Duration::ZERO,
        None => BUSY_POLL,
    };
    if value > MOST_BUSY_POLL {
        return Err(mistake("busy_poll is above 1ms: threads would do little else".to_owned()));
    }
    Ok(value)
}

/// The limits of a tunnel, from the keys both ends have.
fn tunnel(
    wrong: impl Fn(String) -> Failure,
    ping_interval: Option<anyproxy_config::Duration>,
    ping_timeout: Option<anyproxy_config::Duration>,
    memory_limit: Option<anyproxy_config::Bytes>,
) -> Result<anyproxy_tunnel::Config, Failure> {
    let mut config = anyproxy_tunnel::Config::default();
    config.mux.ping_interval = duration(ping_interval, config.mux.ping_interval);
    if config.mux.ping_interval < LEAST_PING_INTERVAL {
        return Err(wrong("ping_interval is below 1s, which the other end takes for a flood".to_owned()));
    }
    config.mux.ping_timeout = positive("ping_timeout", ping_timeout, config.mux.ping_timeout, &wrong)?;
    let limit = memory_limit.map_or_else(|| process::memory() / 2, |limit| limit.0);
    if limit < LEAST_MEMORY {
        return Err(wrong("memory_limit is below 1MiB: hardly a stream would move".to_owned()));
    }
    config.memory = Memory::new(limit);
    Ok(config)
}

/// Files for tests.
#[cfg(test)]
pub(crate) mod fixture {
    use std::time::Duration;

    use anyproxy_config::File;
    use tempfile::TempDir;

    use super::Source;
    use crate::cert;

    /// A gateway's section that is complete.
    pub(crate) const GATEWAY: &str = "gateway:
  listen_addr: 127.0.0.1:0
  tls_cert: '{dir}/server.crt'
  tls_key: '{dir}/server.key'
  auth_username: gateway_user
  auth_password: gateway_password
";

    /// A client's.
    pub(crate) const CLIENT: &str = "client:
  gateway_addr: localhost:1
  gateway_tls_cert: '{dir}/server.crt'
  client_id: office
  auth_username: gateway_user
  auth_password: gateway_password
";

    /// The file `f.yaml` of this text, in which `{dir}` stands for a folder with a certificate and its key. It is gone
    /// with what is returned beside.
    pub(crate) fn source(text: &str) -> (Source, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let pair = cert::self_signed(&["localhost".to_owned()], Duration::from_secs(3_600)).unwrap();
        cert::write(dir.path(), &pair).unwrap();
        let text = text.replace("{dir}", dir.path().to_str().unwrap());
        let file = File::parse("f.yaml", &text).unwrap();
        (Source { file, name: "f.yaml".into(), path: None }, dir)
    }
}
