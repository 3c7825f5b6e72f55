//! The stage for end-to-end tests: the real `anyproxy` program as gateway and client, targets to reach through it,
//! and other people's programs as users.
//!
//! A [`Stage`] starts a gateway and a client on free loopback ports, from a file like anybody's, and waits until
//! the client is connected. Nothing here sleeps: everything waits for a log line, a port, a fact or an end, and
//! gives up after [`PATIENCE`].

mod admin;
mod program;
mod stage;
mod target;
mod tool;
mod user;

use std::time::{Duration, Instant};

pub use admin::{metric, metric_at};
pub use program::Program;
pub use stage::{Options, PASSWORD, Stage, USER, free_port};
pub use target::{HttpTarget, RefusingTarget, SilentTarget, Target};
pub use tool::{Output, node, python, run, script, tool, tools_dir};
pub use user::{Way, head, socks5_reply, socks5_request, tunnel};

/// How long anything may take that should take moments.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What every test returns: the first thing that went wrong.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Waits until `fact` holds, for facts that nobody announces; how long that took.
pub async fn until(what: &str, mut fact: impl AsyncFnMut() -> Result<bool>) -> Result<Duration> {
    let begun = Instant::now();
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    while !fact().await? {
        if begun.elapsed() > PATIENCE {
            return Err(format!("still not: {what}").into());
        }
        looks.tick().await;
    }
    Ok(begun.elapsed())
}
