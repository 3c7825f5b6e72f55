//! The `anyproxy` program: the stock gateway and client.
//!
//! [`stack`] is the assembly, the only place that knows the order of layers; everything else turns the file into
//! what the libraries take, and runs it.

mod admin;
mod cert;
mod cli;
mod client;
mod demo;
mod explain;
mod failure;
mod front;
mod gateway;
mod listen;
mod logging;
mod mixed;
mod process;
mod reload;
mod runtime;
mod secrets;
mod settings;
mod signals;
mod stack;
mod tls;
mod traces;

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyproxy_auth::MAX_PASSWORD;
use clap::{CommandFactory as _, Parser as _};

use crate::cli::{Cli, Command};
use crate::failure::Failure;
use crate::settings::Source;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(failure) => {
            // Nobody there to hear it changes nothing about the end.
            let _ = writeln!(io::stderr(), "anyproxy: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Demo => demo::run(),
        Command::Gateway(config) => gateway::run(config.config.as_deref()),
        Command::Client(config) => client::run(config.config.as_deref()),
        Command::Check(config) => check(&config.config),
        Command::Explain { config, user, front, target } => {
            explain::run(&config.config, user.as_deref(), front.as_deref(), &target)
        }
        Command::Cert { out, days, names } => {
            let lifetime = Duration::from_secs(u64::from(days) * 86_400);
            let pair =
                cert::self_signed(&names, lifetime).map_err(|error| Failure::of("certificate", error))?;
            cert::write(&out, &pair).map_err(|error| Failure::of("certificate", error))?;
            done()
        }
        Command::HashPassword => hash_password(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "anyproxy", &mut script);
            say(|out| out.write_all(&script))
        }
    }
}

/// Everything `gateway` and `client` would refuse to start with, short of the network.
fn check(path: &Path) -> Result<ExitCode, Failure> {
    logging::warnings();
    let source = Source::load(Some(path))?;
    settings::Front::all(&source)?;
    if let Some(gateway) = &source.file.gateway {
        settings::Gateway::new(&source, gateway)?;
    }
    if let Some(client) = &source.file.client {
        settings::Client::new(&source, client)?;
    }
    if source.file.gateway.is_none() && source.file.client.is_none() {
        return Err(
            source.wrong("neither \"gateway\" nor \"client\" is in it: no command would start with it")
        );
    }
    say(|out| writeln!(out, "{}: ok", path.display()))
}

fn hash_password() -> Result<ExitCode, Failure> {
    let mut input = io::stdin().lock();
    let line = if input.is_terminal() {
        let _ = writeln!(io::stderr(), "password, one line:");
        let mut line = String::new();
        input.read_line(&mut line).map(|_| line)
    } else {
        secrets::read(input)
    };
    let line = line.map_err(|error| Failure::of("standard input", error))?;
    let password = secrets::one_line("standard input", line)?;
    if password.expose_secret().len() > MAX_PASSWORD {
        let what = format!("a password has at most {MAX_PASSWORD} bytes: nobody could log in with this one");
        return Err(Failure::of("standard input", what));
    }
    let hash = anyproxy_auth::hash_password(&password);
    say(|out| writeln!(out, "{hash}"))
}

/// What a command has to say. Nobody there to hear it is a failure like any other.
fn say(what: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    what(&mut out).and_then(|()| out.flush()).map_err(|error| Failure::of("standard output", error))?;
    done()
}

#[expect(clippy::unnecessary_wraps, reason = "the end of every command that returns")]
fn done() -> Result<ExitCode, Failure> {
    Ok(ExitCode::SUCCESS)
}
