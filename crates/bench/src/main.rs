//! Measures whole gateways from outside: `cargo run --release -p anyproxy-bench -- help`.

mod compare;
mod growth;
mod ideal;
mod line;
mod link;
mod load;
mod peers;
mod program;
mod scenario;
mod stage;
mod target;
mod usage;
mod way;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Whatever went wrong, in words.
type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Measures AnyProxy, an ideal relay and every other tunnel found on this machine, over loopback only.
#[derive(Parser)]
struct Arguments {
    /// The program to measure [default: `anyproxy` beside this one]
    #[arg(long, global = true)]
    anyproxy: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The same loads over every tunnel, in turns, and one table
    Compare(compare::Options),
    /// What happens to users when clients differ, die, restart, or another user crowds in
    Scenario {
        #[arg(value_enum)]
        scenarios: Vec<scenario::Name>,
    },
    /// How memory and CPU grow with streams, clients, rules and accounts
    Growth(growth::Options),
    /// The far end: echo, source, sink and HTTP on one port
    #[command(hide = true)]
    Target { listen: SocketAddr },
    /// The ideal relay's end at the users
    #[command(hide = true)]
    IdealGateway { users: SocketAddr, tunnels: SocketAddr, certificate: PathBuf, key: PathBuf },
    /// The ideal relay's end at the target
    #[command(hide = true)]
    IdealClient { tunnels: SocketAddr, target: SocketAddr, roots: PathBuf },
    /// A link on which every byte takes so many milliseconds
    #[command(hide = true)]
    Link { listen: SocketAddr, to: SocketAddr, milliseconds: u64 },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result {
    program::raise_open_files();
    let anyproxy = || match arguments.anyproxy.clone() {
        // Programs are started in folders of their own.
        Some(path) => Ok(path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?),
        None => program::beside("anyproxy"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.command {
        Command::Target { listen } => target::serve(listen),
        Command::IdealGateway { users, tunnels, certificate, key } => {
            runtime.block_on(ideal::gateway(users, tunnels, &certificate, &key))
        }
        Command::IdealClient { tunnels, target, roots } => {
            runtime.block_on(ideal::client(tunnels, target, &roots))
        }
        Command::Link { listen, to, milliseconds } => {
            runtime.block_on(link::serve(listen, to, Duration::from_millis(milliseconds)))
        }
        Command::Compare(options) => until_signal(&runtime, compare::run(options, anyproxy()?)),
        Command::Scenario { scenarios } => until_signal(&runtime, scenario::run(scenarios, anyproxy()?)),
        Command::Growth(options) => until_signal(&runtime, growth::run(options, anyproxy()?)),
    }
}

/// Runs `work` unless a signal comes first; either way its drop ends what it has started.
fn until_signal(runtime: &tokio::runtime::Runtime, work: impl Future<Output = Result>) -> Result {
    runtime.block_on(async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            done = work => done,
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
            _ = term.recv() => Err("terminated".into()),
        }
    })
}
