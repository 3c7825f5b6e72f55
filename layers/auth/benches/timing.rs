//! Whether the time of a refused login tells anything: `cargo bench -p anyproxy-auth --bench timing`.
//!
//! 2,000 logins each of two users who do not exist, of one whose password is wrong from its first byte, and of one
//! whose password is wrong in its last, in random order; for plain passwords and for hashes. Medians may differ by 5 %,
//! and a rank test (Mann and Whitney) must not be significant at 0.001. Then 200 wrong logins a second against a slow hash:
//! what else runs on the same thread must go on. Ends with 1 if any of it does not hold. A crowded machine makes it
//! fail; it never makes it pass.

use std::future::Future as _;
use std::hint::black_box;
use std::process::ExitCode;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use anyproxy_auth::{Accounts, PasswordHash, User, Verify, hash_password};
use anyproxy_core::Credentials;

/// Logins of each kind.
const LOGINS: usize = 2_000;

/// Accounts of a table.
const ACCOUNTS: usize = 1_000;

/// As many of users who do not exist as of those who do: what is rarer is slower by the processor's own guesses.
const KINDS: [(&str, &str, &str); 4] = [
    ("unknown user", "nope7", "correct horse battery"),
    ("another unknown user", "nope8", "correct horse batterX"),
    ("wrong at the first byte", "user7", "Xorrect horse battery"),
    ("wrong at the last byte", "user7", "correct horse batterX"),
];

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let plain = (0..ACCOUNTS).map(|n| User::plain(format!("user{n}"), "correct horse battery"));
    // The cheapest hash there is: what is measured is what lies around it.
    let hash =
        PasswordHash::parse(&bcrypt::hash("correct horse battery", 5).expect("a hash")).expect("a hash");
    let hashed = (0..ACCOUNTS).map(|n| User::hashed(format!("user{n}"), hash.clone()));
    let plain = Verify::new(Accounts::new(plain).expect("valid users"));
    let hashed = Verify::new(Accounts::new(hashed).expect("valid users"));
    let mut holds = true;
    for (name, verify) in [("plain", &plain), ("hashed", &hashed)] {
        holds &= tells_nothing(name, |username, password| {
            let credentials = Credentials::new(username, password);
            let begun = Instant::now();
            assert!(runtime.block_on(verify.verify(black_box(credentials))).is_err());
            begun.elapsed()
        });
    }
    holds &= runtime.block_on(others_go_on());
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Times the kinds of wrong logins and compares each two.
fn tells_nothing(name: &str, login: impl Fn(&str, &str) -> Duration) -> bool {
    let mut times = [const { Vec::new() }; KINDS.len()];
    let mut order = Order(0x9e37_79b9_7f4a_7c15);
    for round in 0..LOGINS + LOGINS / 10 {
        let mut kinds: [usize; KINDS.len()] = std::array::from_fn(|kind| kind);
        for at in 0..kinds.len() {
            let other = at + order.below(kinds.len() - at);
            kinds.swap(at, other);
        }
        for kind in kinds {
            let (_, username, password) = KINDS[kind];
            let time = login(username, password);
            // The first tenth warms up.
            if round >= LOGINS / 10 {
                times[kind].push(time.as_nanos());
            }
        }
    }
    let medians: Vec<f64> = times.iter().map(|times| median(times)).collect();
    let mut holds = true;
    for (one, other) in [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
        let apart = (medians[one] / medians[other] - 1.0).abs();
        let z = rank_test(&times[one], &times[other]);
        // Two-sided at 0.001.
        let equal = apart <= 0.05 && z.abs() < 3.29;
        holds &= equal;
        println!(
            "{name}: {} {:.0} ns, {} {:.0} ns: {:.2} % apart, z = {z:.2}{}",
            KINDS[one].0,
            medians[one],
            KINDS[other].0,
            medians[other],
            apart * 100.0,
            if equal { "" } else { "  <-- TELLS" }
        );
    }
    holds
}

/// 200 wrong logins a second against argon2id as the program sets it, and the pauses that a neighbour on the same
/// thread sees: with and without.
async fn others_go_on() -> bool {
    let hash = PasswordHash::parse(&hash_password(&"secret".into())).expect("a hash made here");
    let verify = Verify::new(Accounts::new([User::hashed("bob", hash)]).expect("valid users"));
    let alone = pauses(&verify, None).await;
    let besieged = pauses(&verify, Some(Duration::from_millis(5))).await;
    let holds = besieged <= alone * 2 + Duration::from_millis(1);
    println!(
        "a neighbour's p99 pause: {alone:?} alone, {besieged:?} beside 200 wrong logins/s{}",
        if holds { "" } else { "  <-- IN THE WAY" }
    );
    holds
}

/// The 99th percentile of how late a timer of 1 ms fires within 5 s.
async fn pauses(verify: &Verify, every: Option<Duration>) -> Duration {
    let begun = tokio::time::Instant::now();
    let siege = async {
        let Some(every) = every else { return std::future::pending().await };
        let mut ticks = tokio::time::interval(every);
        let mut logins = Vec::new();
        loop {
            ticks.tick().await;
            logins.push(Box::pin(verify.verify(Credentials::new("bob", "wrong"))));
            // Refused at once, or in line for a hash.
            logins.retain_mut(|login| {
                login.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
            });
        }
    };
    let neighbour = async {
        let mut late = Vec::new();
        while begun.elapsed() < Duration::from_secs(5) {
            let asked = Instant::now();
            tokio::time::sleep(Duration::from_millis(1)).await;
            late.push(asked.elapsed());
        }
        late.sort_unstable();
        late[late.len() * 99 / 100]
    };
    tokio::select! {
        p99 = neighbour => p99,
        () = siege => unreachable!("it goes on for ever"),
    }
}

fn median(times: &[u128]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2] as f64
}

/// How far the rank sum lies from what equal distributions give, in standard deviations; ties share their ranks.
fn rank_test(one: &[u128], other: &[u128]) -> f64 {
    let mut all: Vec<(u128, bool)> =
        one.iter().map(|time| (*time, true)).chain(other.iter().map(|time| (*time, false))).collect();
    all.sort_unstable();
    let (mut ranks, mut at) = (0.0, 0);
    for tied in all.chunk_by(|one, other| one.0 == other.0) {
        let rank = at as f64 + (tied.len() as f64 + 1.0) / 2.0;
        ranks += rank * tied.iter().filter(|(_, is_one)| *is_one).count() as f64;
        at += tied.len();
    }
    let (n, m) = (one.len() as f64, other.len() as f64);
    let u = ranks - n * (n + 1.0) / 2.0;
    (u - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}

/// Numbers without a pattern (xorshift), the same in every run.
struct Order(u64);

impl Order {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}
