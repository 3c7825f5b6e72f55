//! The command line. Secrets are never part of it: they come from the file, from files it names, or from the
//! environment.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::cert;
use crate::explain::Asked;

/// Expose services inside private networks to users outside, without opening a port.
#[derive(Debug, Parser)]
#[command(name = "anyproxy", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a gateway, a client and a small target on loopback, and print commands to try.
    Demo,
    /// Run the gateway: users connect to it from outside, clients from inside.
    Gateway(Config),
    /// Run the client: dials out to gateways, and to targets on their behalf.
    Client(Config),
    /// Read a file as gateway and client would, and say what is wrong with it.
    Check(RequiredConfig),
    /// Say which rule, limit and group decide about a dial, and why.
    Explain {
        #[command(flatten)]
        config: RequiredConfig,
        /// The user who dials.
        #[arg(long)]
        user: Option<String>,
        /// What they speak to the gateway. Default: the first of these that knows the user and carries the dial.
        #[arg(long, value_parser = ["http", "socks5", "sni"])]
        front: Option<String>,
        /// What they dial, as in tcp://host:port.
        #[arg(value_parser = Asked::parse)]
        target: Asked,
    },
    /// Make a self-signed certificate: server.crt and server.key.
    Cert {
        /// The folder they are written to. Files that exist are not replaced.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// How long the certificate is valid.
        #[arg(long, default_value_t = 825, value_parser = clap::value_parser!(u16).range(1..=3650))]
        days: u16,
        /// The names and addresses that clients will dial.
        #[arg(required = true, value_name = "NAME", value_parser = cert::name)]
        names: Vec<String>,
    },
    /// Read a password, one line, from standard input and print its hash.
    HashPassword,
    /// Print a completion script.
    Completions {
        /// The shell it is for.
        shell: Shell,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Config {
    /// The YAML file. Without one, everything comes from variables such as ANYPROXY_GATEWAY__LISTEN_ADDR.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct RequiredConfig {
    /// The YAML file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
