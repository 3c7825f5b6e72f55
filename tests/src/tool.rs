//! Other people's programs.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::{PATIENCE, Result};

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Output {
    /// The output of a program that succeeded.
    pub fn ok(self) -> Result<String> {
        if self.code == 0 {
            Ok(self.out)
        } else {
            Err(format!("exit code {}: {}{}", self.code, self.out, self.err).into())
        }
    }
}

/// A command with no input of its own.
#[must_use]
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.stdin(Stdio::null());
    // Proxies of the machine are none of ours.
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command
}

/// A script from `tests/scripts`, run by the Python of the tests' own environment, which `.ci/setup` makes.
pub fn python(name: &str) -> Result<Command> {
    let path = tools_dir()?.join("python/bin/python");
    if !path.exists() {
        return Err(".ci/setup has not made the Python environment".into());
    }
    let mut command = tool(&path.display().to_string());
    command.arg("-u").arg(script(name)?);
    Ok(command)
}

/// A script from `tests/scripts`, run by Node with the tests' own packages, which `.ci/setup` installs.
pub fn node(name: &str) -> Result<Command> {
    let packages = tools_dir()?.join("node/node_modules");
    if !packages.exists() {
        return Err(".ci/setup has not installed the Node packages".into());
    }
    let mut command = tool("node");
    command.env("NODE_PATH", packages).arg(script(name)?);
    Ok(command)
}

/// Where a script is.
pub fn script(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name);
    if path.exists() { Ok(path) } else { Err(format!("{} is missing", path.display()).into()) }
}

/// Where `.ci/setup` puts what is not a Debian package.
pub fn tools_dir() -> Result<PathBuf> {
    Ok(PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().ok_or("a workspace")?.join("target/tools"))
}

/// Runs a command to its end and reads what it says. A program that hangs is killed.
pub async fn run(command: Command) -> Result<Output> {
    let started = Instant::now();
    let name = command.get_program().to_string_lossy().into_owned();
    let mut command = tokio::process::Command::from(command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE * 4, command.output())
        .await
        .map_err(|_| format!("{name} still runs after {:?}", started.elapsed()))?
        .map_err(|error| format!("{name}: {error} (.ci/setup installs it)"))?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
