//! The same loads over every tunnel, in turns, and one table; at its end what takes more than loopback and one client.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::Result;
use crate::line;
use crate::load::{Field, Figures, Load, Readers};
use crate::peers::{self, Definition, Kind, Surroundings, Tunnel};
use crate::program::{Program, certificates, free_addr};
use crate::usage::Watched;
use crate::way::Way;

/// How the comparison runs.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often each tunnel is started and put through all loads; medians are told
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that a load is watched
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Only these tunnels, by name
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only loads whose name begins so
    #[arg(long, value_delimiter = ',')]
    loads: Vec<String>,
    /// Definitions instead of those this program knows
    #[arg(long)]
    peers: Option<PathBuf>,
}

/// Before a load is watched.
const WARM: Duration = Duration::from_millis(700);
const MIB: f64 = (1 << 20) as f64;

/// Which way in a load takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    Stream,
    Http,
    Udp,
}

/// Name, load, way in, and its figures worth a row: field, unit, and whether more is better.
type Workload = (&'static str, Load, Entry, &'static [Row]);
type Row = (&'static str, &'static str, bool);

const BULK: &[Row] = &[("gib_s", "GiB/s", true), ("cpu_s_per_gib", "CPU s/GiB", false)];
const BULK_MANY: &[Row] =
    &[("gib_s", "GiB/s", true), ("cpu_s_per_gib", "CPU s/GiB", false), ("least_share", "least share", true)];
const ONE: &[Row] = &[("p50_us", "p50 µs", false), ("p99_us", "p99 µs", false)];
const MANY: &[Row] = &[
    ("ops_s", "per second", true),
    ("p50_us", "p50 µs", false),
    ("p99_us", "p99 µs", false),
    ("cpu_ms_per_1k", "CPU ms/1,000", false),
];
const BESIDE: &[Row] =
    &[("p50_us", "p50 µs", false), ("p99_us", "p99 µs", false), ("gib_s", "bulk GiB/s", true)];

const fn bulk(down: usize, up: usize) -> Load {
    Load::Bulk { down, up }
}

const fn requests(users: usize) -> Load {
    Load::Requests { users, beside: None }
}

const fn beside(streams: usize, readers: Readers) -> Load {
    Load::Requests { users: 1, beside: Some((streams, readers)) }
}

const WORKLOADS: [Workload; 20] = [
    // First: memory is what a process grows by, and later loads would find it grown.
    (
        "idle 10,000",
        Load::Idle { streams: 10_000 },
        Entry::Stream,
        &[("kib_per_stream", "KiB/stream", false), ("idle_cpu_s_per_s", "CPU s/s", false)],
    ),
    ("bulk 1 down", bulk(1, 0), Entry::Stream, BULK),
    ("bulk 16 down", bulk(16, 0), Entry::Stream, BULK_MANY),
    ("bulk 128 down", bulk(128, 0), Entry::Stream, BULK_MANY),
    ("bulk 1 up", bulk(0, 1), Entry::Stream, BULK),
    ("bulk 16 up", bulk(0, 16), Entry::Stream, BULK_MANY),
    ("bulk 128 up", bulk(0, 128), Entry::Stream, BULK_MANY),
    ("bulk 1 + 1 both", bulk(1, 1), Entry::Stream, BULK),
    ("bulk 16 + 16 both", bulk(16, 16), Entry::Stream, BULK_MANY),
    ("bulk 128 + 128 both", bulk(128, 128), Entry::Stream, BULK_MANY),
    ("requests 1", requests(1), Entry::Stream, ONE),
    ("requests 64", requests(64), Entry::Stream, MANY),
    ("requests 512", requests(512), Entry::Stream, MANY),
    ("requests 1 beside 4 bulk", beside(4, Readers::Fast), Entry::Stream, BESIDE),
    ("requests 1 beside 16 bulk", beside(16, Readers::Fast), Entry::Stream, BESIDE),
    ("requests 1 beside 4 at 25 MiB/s", beside(4, Readers::Slow(25.0 * MIB)), Entry::Stream, BESIDE),
    ("requests 1 beside 4 stopped", beside(4, Readers::Stopped), Entry::Stream, ONE),
    ("connections 32", Load::Connections { users: 32 }, Entry::Stream, MANY),
    ("http 16 keep-alive, 1 KiB", Load::Http { users: 16 }, Entry::Http, MANY),
    (
        "udp 4, 512 B",
        Load::Datagrams { users: 4 },
        Entry::Udp,
        &[("ops_s", "per second", true), ("p99_us", "p99 µs", false), ("loss_pct", "lost %", false)],
    ),
];

/// With how many clients a tunnel is started, if its definition takes more than one, and what is asked of it then.
const BY_CLIENTS: [(usize, &[Workload]); 3] = [
    (1, &WORKLOADS),
    (
        10,
        &[
            ("requests 64, 10 clients", requests(64), Entry::Stream, MANY),
            ("bulk 16 down, 10 clients", bulk(16, 0), Entry::Stream, BULK_MANY),
        ],
    ),
    (
        100,
        &[
            ("requests 64, 100 clients", requests(64), Entry::Stream, MANY),
            ("bulk 16 down, 100 clients", bulk(16, 0), Entry::Stream, BULK_MANY),
        ],
    ),
];

/// Long lines that lose packets: where nothing but the line counts, one bare TLS connection is what is ideal.
const LINES: [(&str, u32); 2] = [("line of 20 ms, 0.1 % lost", 20), ("line of 100 ms, 0.1 % lost", 100)];
const LINE_ROWS: &[Row] = &[("mib_s", "MiB/s", true)];

/// What was seen: by load and tunnel, one for each round.
type Seen = BTreeMap<(&'static str, String), Vec<Figures>>;

pub(crate) async fn run(options: Options, anyproxy: PathBuf) -> Result {
    let folder = tempfile::tempdir()?;
    certificates(folder.path())?;
    let target = free_addr()?;
    let bench = std::env::current_exe()?;
    let far_end = Program::start("target", &format!("{} target {target}", bench.display()), folder.path())?;
    peers::listening(target).await?;
    let around = Surroundings { work: folder.path().to_owned(), target, anyproxy };

    let mut tunnels = Vec::new();
    for tunnel in peers::read(options.peers.as_deref())? {
        if !options.only.is_empty() && !options.only.contains(&tunnel.name) {
            continue;
        }
        match tunnel.missing() {
            Some(program) => eprintln!("{}: no {program} on this machine", tunnel.name),
            None => tunnels.push(tunnel),
        }
    }
    let mut seen = Seen::new();
    for round in 0..options.rounds {
        // Each round begins with another one: none always runs on a warm or a tired machine.
        let turn = round % tunnels.len().max(1);
        for tunnel in tunnels[turn..].iter().chain(&tunnels[..turn]) {
            for (clients, loads) in BY_CLIENTS {
                let loads: Vec<&Workload> = loads
                    .iter()
                    .filter(|(name, ..)| options.wants(name) && !tunnel.skip.iter().any(|skip| skip == name))
                    .collect();
                if loads.is_empty() || (clients > 1 && !tunnel.takes_clients()) {
                    continue;
                }
                eprintln!("round {}: {}, clients: {clients}", round + 1, tunnel.name);
                match tunnel.start(&around, clients).await {
                    Ok(running) => {
                        let name = &tunnel.name;
                        measure(name, &loads, &running, &around, far_end.id(), &options, &mut seen).await?;
                        running.stop().await;
                    }
                    Err(error) => eprintln!("{}: {error}", tunnel.name),
                }
            }
        }
    }
    play_lines(&tunnels, &around, &options, &mut seen).await;
    print(&tunnels, &seen);
    Ok(())
}

impl Options {
    fn wants(&self, load: &str) -> bool {
        self.loads.is_empty() || self.loads.iter().any(|begin| load.starts_with(begin.as_str()))
    }
}

async fn measure(
    tunnel: &str,
    loads: &[&Workload],
    running: &Tunnel,
    around: &Surroundings,
    far_end: u32,
    options: &Options,
    seen: &mut Seen,
) -> Result {
    let watched = Watched { tunnel: running.ids(), target: vec![far_end] };
    let window = Duration::from_secs_f64(options.seconds);
    for &&(name, load, entry, _) in loads {
        let way: Option<Way> = match entry {
            Entry::Stream => Some(running.entry.clone()),
            Entry::Http => running.http.clone(),
            Entry::Udp => running.udp.clone(),
        };
        let Some(way) = way else { continue };
        let field = Field { way, target: around.target, watched: watched.clone(), warm: WARM, window };
        let figures = field.run(load).await?;
        if let Some(failure) = &figures.failure {
            eprintln!("  {name}: {} failed: {failure}", figures.failed);
        }
        seen.entry((name, tunnel.to_owned())).or_default().push(figures);
        // What the load has left behind has a moment to go.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

/// Our own over each long line, and bare TLS over the same in the ideal's place.
async fn play_lines(tunnels: &[Definition], around: &Surroundings, options: &Options, seen: &mut Seen) {
    let name_of = |kind| Some(tunnels.iter().find(|tunnel| tunnel.kind == kind)?.name.clone());
    let (ours, ideal) = (name_of(Kind::Ours), name_of(Kind::Ideal));
    for (name, rtt) in LINES {
        if !options.wants(name) {
            continue;
        }
        let (Some(ours), Some(ideal)) = (&ours, &ideal) else {
            eprintln!("{name}: left out: it takes our own and an ideal");
            continue;
        };
        eprintln!("{name}");
        match line::play(&around.anyproxy, rtt, options.rounds, options.seconds).await {
            Ok(paces) => {
                for (tunnel, paces) in [(ours, paces.anyproxy), (ideal, paces.bare)] {
                    let figures = |pace| Figures { values: [("mib_s", pace)].into(), ..Figures::default() };
                    seen.insert((name, tunnel.clone()), paces.into_iter().map(figures).collect());
                }
            }
            Err(error) => eprintln!("{name}: left out: {error}"),
        }
    }
}

// === the table ===

fn print(tunnels: &[Definition], seen: &Seen) {
    let names: Vec<&str> = tunnels.iter().map(|tunnel| tunnel.name.as_str()).collect();
    let of = |kind: Kind| {
        tunnels.iter().filter(move |tunnel| tunnel.kind == kind).map(|tunnel| tunnel.name.as_str())
    };
    let ours = of(Kind::Ours).next();
    let ideal = of(Kind::Ideal).next();
    println!("| load | figure | {} | spread | / ideal | / best peer |", names.join(" | "));
    println!("|---|---|{}---:|---:|---:|", "---:|".repeat(names.len()));
    let loads = BY_CLIENTS.iter().flat_map(|(_, loads)| *loads).map(|(load, _, _, rows)| (*load, *rows));
    for (load, rows) in loads.chain(LINES.map(|(line, _)| (line, LINE_ROWS))) {
        for &(field, unit, more_is_better) in rows {
            let value = |name: &str| median(&values(seen, load, name, field));
            if names.iter().all(|name| value(name).is_none()) {
                continue;
            }
            let cells: Vec<String> = names.iter().map(|name| cell(value(name))).collect();
            let mine = ours.and_then(value);
            let best = of(Kind::Peer).filter_map(value).reduce(|one, other| match more_is_better {
                true => one.max(other),
                false => one.min(other),
            });
            let ratio = |to: Option<f64>| match (mine, to) {
                (Some(mine), Some(to)) if to > 0.0 => format!("{:.2}", mine / to),
                _ => "–".to_owned(),
            };
            let spread = ours.map_or_else(|| "–".to_owned(), |ours| spread(&values(seen, load, ours, field)));
            let cells = cells.join(" | ");
            println!(
                "| {load} | {unit} | {cells} | {spread} | {} | {} |",
                ratio(ideal.and_then(value)),
                ratio(best)
            );
        }
    }
    let mut foreign: Vec<f64> = seen
        .values()
        .flatten()
        .filter_map(|figures| Some(figures.values.get("foreign_s")? / figures.values.get("cpu_s")?.max(0.01)))
        .collect();
    foreign.sort_unstable_by(f64::total_cmp);
    println!(
        "\nCPU of others while a load was watched, by that of the tunnel: median {}.",
        cell(median(&foreign))
    );
}

/// Of the rounds in which the load got through.
fn values(seen: &Seen, load: &'static str, tunnel: &str, field: &str) -> Vec<f64> {
    let figures = seen.get(&(load, tunnel.to_owned())).map_or(&[][..], Vec::as_slice);
    figures
        .iter()
        .filter(|figures| figures.failed == 0)
        .filter_map(|figures| figures.values.get(field).copied())
        .collect()
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.get(sorted.len() / 2)?;
    match sorted.len() % 2 {
        0 => Some((sorted[sorted.len() / 2 - 1] + middle) / 2.0),
        _ => Some(*middle),
    }
}

/// From the smallest to the largest, by the median.
fn spread(values: &[f64]) -> String {
    let (least, most) =
        values.iter().fold((f64::MAX, f64::MIN), |(least, most), &v| (least.min(v), most.max(v)));
    match median(values) {
        Some(median) if values.len() > 1 && median > 0.0 => {
            format!("{:.0} %", (most - least) / median * 100.0)
        }
        _ => "–".to_owned(),
    }
}

/// Three digits that matter.
pub(crate) fn cell(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}
