//! How memory and CPU grow with streams, clients, rules and accounts: tables, and a plot of each.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Result;
use crate::compare::cell;
use crate::load::Load;
use crate::program::Program;
use crate::stage::{Setting, Stage};
use crate::usage::Watched;

/// What of it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these: streams, clients, rules, accounts
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Write the tables between the marks of this file, and plots beside it
    #[arg(long)]
    readme: Option<PathBuf>,
}

const STREAMS: [usize; 7] = [1, 16, 128, 1_000, 4_000, 8_000, 16_000];
const TUNNELS: [usize; 6] = [1, 10, 50, 200, 800, 2_000];
const RULES: [usize; 5] = [0, 100, 1_000, 10_000, 100_000];
const ACCOUNTS: [usize; 4] = [1, 100, 1_000, 10_000];

/// Processes of clients at most; beyond it each has several tunnels, or there would be no memory left to measure.
const PROCESSES: usize = 50;

/// How long something is watched.
const WINDOW: Duration = Duration::from_secs(3);

/// A table: how many, and for each what was seen.
struct Table {
    title: &'static str,
    about: &'static str,
    columns: Vec<&'static str>,
    rows: Vec<(usize, Vec<f64>)>,
}

pub(crate) async fn run(options: Options, anyproxy: PathBuf) -> Result {
    let mut text = String::new();
    for title in ["streams", "clients", "rules", "accounts"] {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == title) {
            continue;
        }
        let table = match title {
            "streams" => streams(&anyproxy).await?,
            "clients" => clients(&anyproxy).await?,
            "rules" => rules(&anyproxy).await?,
            _ => accounts(&anyproxy).await?,
        };
        let part = table.markdown()?;
        print!("{part}");
        text.push_str(&part);
        if let Some(readme) = &options.readme {
            let plot = format!("growth-{title}.svg");
            std::fs::write(readme.with_file_name(&plot), table.plot()?)?;
            writeln!(text, "![{title}]({plot})\n")?;
        }
    }
    match &options.readme {
        Some(readme) => put_between_marks(readme, &text),
        None => Ok(()),
    }
}

async fn streams(anyproxy: &Path) -> Result<Table> {
    let mut rows = Vec::new();
    for count in STREAMS {
        let stage = Stage::start(anyproxy, &Setting::default()).await?;
        let figures = stage.field("alice", WINDOW).run(Load::Idle { streams: count }).await?;
        let value = |name: &str| figures.values.get(name).copied().unwrap_or(f64::NAN);
        if figures.failed > 0 {
            eprintln!("{count} streams: {} failed: {:?}", figures.failed, figures.failure);
        }
        let cells = [value("kib_per_stream"), value("cpu_ms_per_1k"), value("idle_cpu_s_per_s") * 1e3];
        rows.push((count, cells.to_vec()));
    }
    Ok(Table {
        title: "streams",
        about: "Idle streams of one client: gateway and client together. A handful of them shows the first pages that \
                a process touches, not what a stream costs.",
        columns: vec!["KiB a stream", "CPU ms to open 1,000", "CPU ms a second, at rest"],
        rows,
    })
}

async fn clients(anyproxy: &Path) -> Result<Table> {
    let mut rows = Vec::new();
    let mut alone = 0.0;
    for count in TUNNELS {
        let processes = count.min(PROCESSES);
        let setting = Setting {
            clients: vec![0; processes],
            replicas: count / processes,
            level: "info",
            ..Setting::default()
        };
        let stage = Stage::start(anyproxy, &setting).await?;
        let gateway = Watched { tunnel: vec![stage.gateway.id()], target: Vec::new() };
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = gateway.sample();
        tokio::time::sleep(WINDOW).await;
        let after = gateway.sample();
        let mib = mib(after.tunnel.resident);
        if count == 1 {
            alone = mib;
        }
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let each = if count == 1 { f64::NAN } else { (mib - alone) * 1024.0 / (count - 1) as f64 };
        let at_rest = after.cpu_since(&before) * 1e3 / WINDOW.as_secs_f64();
        let load = stage.field("alice", WINDOW).run(Load::Requests { users: 64, beside: None }).await?;
        let value = |name: &str| load.values.get(name).copied().unwrap_or(f64::NAN);
        rows.push((count, vec![each, at_rest, value("ops_s"), value("cpu_ms_per_1k")]));
    }
    Ok(Table {
        title: "clients",
        about: "Clients of one group, a tunnel each, in up to 50 processes; memory and rest are the gateway's, requests \
                those of 64 users of 64 bytes over all of them.",
        columns: vec![
            "KiB a client",
            "CPU ms a second, at rest",
            "requests a second",
            "CPU ms for 1,000 requests, all processes",
        ],
        rows,
    })
}

async fn rules(anyproxy: &Path) -> Result<Table> {
    let mut rows = Vec::new();
    for count in RULES {
        let mut gateway = "  access:\n    default: allow\n    rules:\n".to_owned();
        for rule in 0..count {
            writeln!(gateway, "      - {{ deny: [\"*.zone-{rule}.example:443\"] }}")?;
        }
        let gateway = if count == 0 { String::new() } else { gateway };
        rows.push((count, decided(anyproxy, &Setting { gateway, ..Setting::default() }).await?));
    }
    Ok(Table {
        title: "rules",
        about: "Rules of the gateway, a pattern each; connections of 32 users at a time.",
        columns: vec!["MiB of the gateway", "connections a second", "CPU ms for 1,000"],
        rows,
    })
}

async fn accounts(anyproxy: &Path) -> Result<Table> {
    let mut rows = Vec::new();
    for count in ACCOUNTS {
        let users = (0..count).map(|user| format!("user-{user}")).rev().collect();
        rows.push((count, decided(anyproxy, &Setting { users, ..Setting::default() }).await?));
    }
    Ok(Table {
        title: "accounts",
        about: "Accounts of a front; connections of the one that is listed first, 32 at a time.",
        columns: vec!["MiB of the gateway", "connections a second", "CPU ms for 1,000"],
        rows,
    })
}

/// The gateway's memory, and what a connection costs under its file.
async fn decided(anyproxy: &Path, setting: &Setting) -> Result<Vec<f64>> {
    let stage = Stage::start(anyproxy, setting).await?;
    let gateway = Watched { tunnel: vec![Program::id(&stage.gateway)], target: Vec::new() };
    let resident = mib(gateway.sample().tunnel.resident);
    let load = stage.field(&setting.users[0], WINDOW).run(Load::Connections { users: 32 }).await?;
    let value = |name: &str| load.values.get(name).copied().unwrap_or(f64::NAN);
    Ok(vec![resident, value("ops_s"), value("cpu_ms_per_1k")])
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory are below 2^52")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Table {
    fn markdown(&self) -> Result<String> {
        let mut text = format!("#### {}\n\n{}\n\n", capitalised(self.title), self.about);
        writeln!(text, "| {} | {} |", self.title, self.columns.join(" | "))?;
        writeln!(text, "|---:|{}", "---:|".repeat(self.columns.len()))?;
        for (count, cells) in &self.rows {
            let cells: Vec<String> =
                cells.iter().map(|&value| cell(Some(value).filter(|v| v.is_finite()))).collect();
            writeln!(text, "| {count} | {} |", cells.join(" | "))?;
        }
        text.push('\n');
        Ok(text)
    }

    /// A line for each column, the counts on a scale of powers, each column scaled to its largest value.
    fn plot(&self) -> Result<String> {
        const WIDTH: f64 = 640.0;
        const HEIGHT: f64 = 240.0;
        const MARGIN: f64 = 40.0;
        const COLOURS: [&str; 4] = ["#0b6", "#06c", "#c60", "#909"];
        #[expect(clippy::cast_precision_loss, reason = "counts are small")]
        let scale = |count: usize| (count as f64 + 1.0).ln();
        let most = self.rows.iter().map(|(count, _)| scale(*count)).fold(0.0, f64::max);
        let x = |count: usize| MARGIN + (WIDTH - 2.0 * MARGIN) * scale(count) / most;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" font-family=\"sans-serif\" font-size=\"11\">\n",
            HEIGHT + 16.0 * COLOURS.len() as f64
        );
        for (count, _) in &self.rows {
            writeln!(
                svg,
                "<text x=\"{:.0}\" y=\"{}\" text-anchor=\"middle\">{count}</text>",
                x(*count),
                HEIGHT - 20.0
            )?;
        }
        for (at, (column, colour)) in self.columns.iter().zip(COLOURS).enumerate() {
            let values = || self.rows.iter().filter(|(_, cells)| cells[at].is_finite());
            let top = values().map(|(_, cells)| cells[at]).fold(f64::MIN_POSITIVE, f64::max);
            let y = |value: f64| HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * (value / top).max(0.0);
            let points: Vec<String> =
                values().map(|(count, cells)| format!("{:.1},{:.1}", x(*count), y(cells[at]))).collect();
            writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
                points.join(" ")
            )?;
            let line = HEIGHT + 14.0 * at as f64;
            writeln!(
                svg,
                "<text x=\"{MARGIN}\" y=\"{line}\" fill=\"{colour}\">{column} (top: {})</text>",
                cell(Some(top))
            )?;
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }
}

fn capitalised(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

/// Replaces what stands between the marks.
fn put_between_marks(readme: &Path, text: &str) -> Result {
    const MARKS: [&str; 2] = ["<!-- growth -->", "<!-- /growth -->"];
    let whole = std::fs::read_to_string(readme)?;
    let (before, rest) = whole.split_once(MARKS[0]).ok_or("the file lacks the mark <!-- growth -->")?;
    let (_, after) = rest.split_once(MARKS[1]).ok_or("the file lacks the mark <!-- /growth -->")?;
    Ok(std::fs::write(readme, format!("{before}{}\n\n{}\n{}{after}", MARKS[0], text.trim_end(), MARKS[1]))?)
}
