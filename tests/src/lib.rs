//! The stage for end-to-end tests: the real `anyproxy` program as gateway and client, targets to reach through it,
//! and other people's programs as users.
//!
//! A [`Stage`] starts a gateway and a client on free loopback ports, from a file like anybody's, and waits until
//! the client is connected. Nothing here sleeps: everything waits for a log line, a port or an end, and gives up
//! after [`PATIENCE`].

mod program;
mod stage;
mod target;
mod tool;

use std::time::Duration;

pub use program::Program;
pub use stage::{Options, PASSWORD, Stage, USER};
pub use target::{HttpTarget, Target};
pub use tool::{Output, python, run, tool, tools_dir};

/// How long anything may take that should take moments.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What every test returns: the first thing that went wrong.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
