//! A long line that loses packets, played by `line.py`: root and Linux only.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::Result;
use crate::program::Program;

const SCRIPT: &str = include_str!("../line.py");

/// How long it has to put its network namespaces away.
const PATIENCE: Duration = Duration::from_secs(5);

/// MiB per second of one download, each round, once windows are tuned.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Paces {
    pub(crate) anyproxy: Vec<f64>,
    /// One bare TLS connection.
    pub(crate) bare: Vec<f64>,
}

/// A line that is being played; asked to put everything away when dropped.
struct Played(Program);

impl Drop for Played {
    fn drop(&mut self) {
        self.0.ask_to_end();
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE && !self.0.has_ended() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Plays a line of so many milliseconds that loses one packet of a thousand.
pub(crate) async fn play(anyproxy: &Path, rtt: u32, rounds: usize, seconds: f64) -> Result<Paces> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("line.py"), SCRIPT)?;
    let command = format!(
        "python3 line.py --anyproxy {} --rtt {rtt} --rounds {rounds} --seconds {seconds}",
        anyproxy.display()
    );
    let mut line = Played(Program::start("line", &command, folder.path())?);
    while !line.0.has_ended() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let paces = paces(line.0.lines()?);
    if paces.anyproxy.len() < rounds || paces.bare.len() < rounds {
        return Err(line.0.last_words().into());
    }
    Ok(paces)
}

/// Reads lines such as `bare: 8.9 MiB/s`.
fn paces(said: impl Iterator<Item = String>) -> Paces {
    let mut paces = Paces::default();
    for line in said {
        let Some((way, pace)) = line.split_once(": ") else { continue };
        let Some(Ok(pace)) = pace.strip_suffix(" MiB/s").map(str::parse) else { continue };
        match way {
            "anyproxy" => paces.anyproxy.push(pace),
            "bare" => paces.bare.push(pace),
            _ => {}
        }
    }
    paces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_read_and_the_sum_is_not() {
        let said = [
            "bare: 9.0 MiB/s",
            "anyproxy: 8.5 MiB/s",
            "anyproxy: 8.7 MiB/s",
            "bare: 9.2 MiB/s",
            "100 ms, 0.10% lost, 80 Mbit/s: anyproxy 8.6 MiB/s, bare TLS 9.1 MiB/s, ratio 0.95",
        ];
        assert_eq!(
            paces(said.map(str::to_owned).into_iter()),
            Paces { anyproxy: vec![8.5, 8.7], bare: vec![9.0, 9.2] }
        );
    }
}
