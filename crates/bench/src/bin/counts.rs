//! Counts the instructions of the cores, and holds them against `budget.toml`.
//!
//! Nanoseconds on a shared machine wobble by a fifth; instructions do not. Each core is run under callgrind twice,
//! with few and with more repetitions, and the difference divided: what it takes to make a core ready drops out.
//!
//! ```text
//! cargo run --release -p anyproxy-bench --bin counts             # a table; exit 1 if a core is over its budget
//! cargo run --release -p anyproxy-bench --bin counts -- dial_stock
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::process::{Command, ExitCode};

use anyproxy_bench::cores;

/// Repetitions that are taken off, and repetitions that are counted.
const WARM: u64 = 200;
const COUNTED: u64 = 2_000;
/// Bulk cores move a MiB or more each time.
const COUNTED_BULK: u64 = 40;

/// A core this far under its budget could have a smaller one.
const ROOM: f64 = 0.85;

type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["repeat", name, times] => repeat(name, times).map(|()| true),
        ref wanted => check(wanted),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What runs under callgrind.
fn repeat(name: &str, times: &str) -> Result {
    cores::named(name).ok_or("no such core")?.repeat(times.parse()?);
    Ok(())
}

/// Whether all of the wanted cores keep to their budget; none wanted: all.
fn check(wanted: &[&str]) -> Result<bool> {
    let budget: BTreeMap<String, u64> = toml::from_str(include_str!("../../budget.toml"))?;
    let mut all_kept = true;
    println!("{:<20} {:>12} {:>12}", "core", "instructions", "budget");
    for name in cores::names().filter(|name| wanted.is_empty() || wanted.contains(name)) {
        let more = if name.contains("bulk") { COUNTED_BULK } else { COUNTED };
        let counted =
            (instructions(name, WARM.min(more) + more)? - instructions(name, WARM.min(more))?) / more;
        let Some(&most) = budget.get(name) else {
            return Err(format!("budget.toml: {name} is missing").into());
        };
        let verdict = match counted {
            _ if counted > most => "OVER",
            #[expect(clippy::cast_precision_loss, reason = "none of these reaches 2^52")]
            _ if (counted as f64) < most as f64 * ROOM => "could be lower",
            _ => "",
        };
        all_kept &= counted <= most;
        println!("{name:<20} {counted:>12} {most:>12} {verdict}");
    }
    Ok(all_kept)
}

/// Of a whole process that repeats the core so many times.
fn instructions(name: &str, times: u64) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["repeat", name, &times.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error} (.ci/setup installs what is not ours)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find_map(|line| line.split_once("Collected : "));
    match line {
        Some((_, count)) if output.status.success() => Ok(count.trim().parse()?),
        _ => Err(format!("valgrind {name}: {}\n{said}", output.status).into()),
    }
}
