//! What happens to users when something happens: requests come at a given rate whatever becomes of those before, and
//! each is timed from when it was due.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use crate::Result;
use crate::load::{Field, quantile};
use crate::stage::{Setting, Stage};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Name {
    /// Four clients at different distances, by strategy: who serves how much, and how long users wait
    Shares,
    /// One of three clients is killed under 200 requests a second
    KillOne,
    /// The only client is restarted under 200 requests a second
    Restart,
    /// One user asks for 100 times as much as another
    Crowd,
}

pub(crate) async fn run(scenarios: Vec<Name>, anyproxy: PathBuf) -> Result {
    let all = [Name::Shares, Name::KillOne, Name::Restart, Name::Crowd];
    let wanted = if scenarios.is_empty() { all.to_vec() } else { scenarios };
    for scenario in wanted {
        match scenario {
            Name::Shares => shares(&anyproxy).await?,
            Name::KillOne => kill_one(&anyproxy).await?,
            Name::Restart => restart(&anyproxy).await?,
            Name::Crowd => crowd(&anyproxy).await?,
        }
        println!();
    }
    Ok(())
}

// === what is seen ===

/// One request: when it was due after the start, how long it took from then, and how it ended.
struct Asked {
    due: Duration,
    took: Duration,
    failure: Option<String>,
}

/// So many requests a second for so long, each answered by the target after `hold` milliseconds.
async fn requests(field: Field, rate: u32, lasting: Duration, hold: u64) -> Vec<Asked> {
    let mut asked = JoinSet::new();
    let start = tokio::time::Instant::now();
    let mut due = Duration::ZERO;
    while due < lasting {
        sleep_until(start + due).await;
        let field = field.clone();
        asked.spawn(async move {
            let answer = timeout(PATIENCE, ask(&field, hold)).await;
            let took = (start + due).elapsed();
            let failure = match answer {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("no answer".to_owned()),
            };
            Asked { due, took, failure }
        });
        due += Duration::from_secs(1) / rate;
    }
    asked.join_all().await
}

async fn ask(field: &Field, hold: u64) -> io::Result<()> {
    let mut stream = field.way.connect(field.target).await?;
    let mut request = [b'L', 0, 0, 0, 0, 0, 0, 0, 0];
    request[1..].copy_from_slice(&hold.to_be_bytes());
    stream.write_all(&request).await?;
    stream.read_u8().await.map(drop)
}

/// Milliseconds below which so large a part of the requests in `window` lay; the failed ones count too.
fn millis(asked: &[Asked], part: f64) -> f64 {
    let mut times: Vec<f64> = asked.iter().map(|asked| asked.took.as_secs_f64() * 1e3).collect();
    times.sort_unstable_by(f64::total_cmp);
    quantile(&times, part)
}

/// How many failed, and what the first was told.
fn failures(asked: &[Asked]) -> String {
    let failed: Vec<&Asked> = asked.iter().filter(|asked| asked.failure.is_some()).collect();
    match failed.first() {
        None => "0".to_owned(),
        Some(first) => format!(
            "{} (the first due at {:.1} s: {})",
            failed.len(),
            first.due.as_secs_f64(),
            first.failure.as_deref().unwrap_or_default()
        ),
    }
}

// === the scenarios ===

async fn shares(anyproxy: &Path) -> Result {
    const DELAYS: [u64; 4] = [1, 5, 20, 60];
    println!("Four clients {DELAYS:?} ms away, each way; 200 requests a second, held for 50 ms; 10 s.\n");
    println!("| strategy | share of each client, % | p50 ms | p90 ms | p99 ms | failed |");
    println!("|---|---|---:|---:|---:|---:|");
    for strategy in ["round_robin", "least_loaded", "p2c_ewma"] {
        let setting = Setting {
            clients: DELAYS.to_vec(),
            gateway: format!("  balance: {{ strategy: {strategy} }}\n"),
            level: "info",
            ..Setting::default()
        };
        let stage = Stage::start(anyproxy, &setting).await?;
        let asked = requests(stage.field("alice", Duration::ZERO), 200, Duration::from_secs(10), 50).await;
        // Access lines are written by a thread of their own.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let served = stage.served()?;
        let all: usize = served.iter().sum();
        let shares: Vec<String> =
            served.iter().map(|served| (100 * served / all.max(1)).to_string()).collect();
        println!(
            "| {strategy} | {} | {:.0} | {:.0} | {:.0} | {} |",
            shares.join(" / "),
            millis(&asked, 0.5),
            millis(&asked, 0.9),
            millis(&asked, 0.99),
            failures(&asked)
        );
    }
    Ok(())
}

async fn kill_one(anyproxy: &Path) -> Result {
    println!("One of three clients killed after 4 s of 10 s; 200 requests a second, held for 20 ms.\n");
    let setting = Setting { clients: vec![0; 3], level: "info", ..Setting::default() };
    let mut stage = Stage::start(anyproxy, &setting).await?;
    let asking =
        tokio::spawn(requests(stage.field("alice", Duration::ZERO), 200, Duration::from_secs(10), 20));
    tokio::time::sleep(Duration::from_secs(4)).await;
    stage.clients[0].kill();
    let asked = asking.await?;
    println!("- requests: {}, failed: {}", asked.len(), failures(&asked));
    println!("- in flight on it when it died, by Little's law: {:.1}", 200.0 * 0.020 / 3.0);
    println!("- p50 {:.1} ms, p99 {:.1} ms", millis(&asked, 0.5), millis(&asked, 0.99));
    Ok(())
}

async fn restart(anyproxy: &Path) -> Result {
    println!(
        "The only client restarted after 3 s of 10 s; 200 requests a second, held for 20 ms; wait_for_client 3 s.\n"
    );
    for kills in [false, true] {
        let setting = Setting {
            gateway: "  limits: { wait_for_client: 3s }\n".to_owned(),
            level: "info",
            ..Setting::default()
        };
        let mut stage = Stage::start(anyproxy, &setting).await?;
        let asking =
            tokio::spawn(requests(stage.field("alice", Duration::ZERO), 200, Duration::from_secs(10), 20));
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut old = stage.clients.remove(0);
        let told = Instant::now();
        if kills {
            old.kill();
        } else {
            old.stop().await;
        }
        let gone = told.elapsed();
        stage.clients.push(stage.again(0)?);
        let asked = asking.await?;
        println!(
            "- {}: gone after {:.0} ms; requests: {}, failed: {}; p50 {:.1} ms, p99 {:.0} ms, longest {:.0} ms",
            if kills { "killed" } else { "stopped" },
            gone.as_secs_f64() * 1e3,
            asked.len(),
            failures(&asked),
            millis(&asked, 0.5),
            millis(&asked, 0.99),
            millis(&asked, 1.0)
        );
    }
    Ok(())
}

async fn crowd(anyproxy: &Path) -> Result {
    const BOB: u32 = 20;
    const SEATS: u32 = 32;
    println!(
        "Bob asks {BOB} times a second, alice {} times; each request is held for 20 ms and there are {SEATS} seats, \
         so that alice alone wants more than there is; 8 s.\n",
        100 * BOB
    );
    let setting = || Setting {
        users: vec!["alice".to_owned(), "bob".to_owned()],
        gateway: format!("  limits: {{ max_connections: {SEATS} }}\n"),
        ..Setting::default()
    };
    let lasting = Duration::from_secs(8);
    for crowded in [false, true] {
        let stage = Stage::start(anyproxy, &setting()).await?;
        let alice = if crowded { 100 * BOB } else { 0 };
        let bob = requests(stage.field("bob", Duration::ZERO), BOB, lasting, 20);
        let alice = async {
            match alice {
                0 => Vec::new(),
                rate => requests(stage.field("alice", Duration::ZERO), rate, lasting, 20).await,
            }
        };
        let (bob, alice) = tokio::join!(bob, alice);
        println!(
            "- bob {}: p50 {:.1} ms, p99 {:.1} ms, failed: {}",
            if crowded { "beside the crowd" } else { "alone" },
            millis(&bob, 0.5),
            millis(&bob, 0.99),
            failures(&bob)
        );
        if crowded {
            println!(
                "- alice: p50 {:.0} ms, p99 {:.0} ms, failed: {} of {}",
                millis(&alice, 0.5),
                millis(&alice, 0.99),
                failures(&alice),
                alice.len()
            );
        }
    }
    Ok(())
}
