//! How a decision grows with the number of rules: `cargo bench -p anyproxy-acl`.
//!
//! Targets are random, half of them made the way the rules are, so that about a third meets one; they are enough
//! to leave the processor's caches.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyproxy_acl::{Action, Pattern, Policy, Question, Rule, Rules};
use anyproxy_core::{Account, Host, Identity, Network, Target};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const SIZES: [u32; 4] = [100, 1_000, 10_000, 100_000];
const TARGETS: usize = 1 << 16;

fn decide(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    for size in SIZES {
        let mut random = Random(1);
        let rules = (0..size).map(|_| rule(&mut random, size));
        let policy = Policy::new([Rules::new("rules", Action::Deny, rules)]);
        let users: Vec<_> =
            (0..16).map(|n| Identity::from(Account::new(format!("user-{n}"), ["blue"]))).collect();
        for (what, target) in [
            ("names", name_target as fn(&mut Random, u32) -> Target),
            ("addresses", address_target),
            ("mixed", mixed_target),
        ] {
            let targets: Vec<Target> = (0..TARGETS).map(|_| target(&mut random, size)).collect();
            let mut at = 0;
            group.bench_function(BenchmarkId::new(what, size), |b| {
                b.iter(|| {
                    at = (at + 1) % TARGETS;
                    let identity = &users[at % users.len()];
                    let question =
                        Question { target: &targets[at], network: Network::Tcp, identity, front: "http" };
                    black_box(policy.check(&question))
                });
            });
        }
    }
    group.finish();
}

/// The worst that a file may hold: every rule on the same host, for another user.
fn crowded(c: &mut Criterion) {
    let mut group = c.benchmark_group("one host, a user each");
    for size in SIZES {
        let rules = (0..size).map(|n| Rule::allow([Pattern::ANY]).users([format!("user-{n}")]));
        let policy = Policy::new([Rules::new("rules", Action::Deny, rules)]);
        let target = Target::parse("db.lan:22").expect("a target");
        let identity = Identity::from(Account::new(format!("user-{}", size - 1), ["blue"]));
        let question =
            Question { target: &target, network: Network::Tcp, identity: &identity, front: "http" };
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| black_box(policy.check(black_box(&question))));
        });
    }
    group.finish();
}

fn rule(random: &mut Random, size: u32) -> Rule {
    let action = if random.below(2) == 0 { Action::Allow } else { Action::Deny };
    let host = match random.below(8) {
        0..3 => name(random, size),
        3..5 => format!("*.{}", name(random, size)),
        5 => Ipv4Addr::from(random.four()).to_string(),
        6 => format!("{}/{}", Ipv4Addr::from(random.four()), 12 + random.below(20)),
        _ => format!("[{}]/{}", Ipv6Addr::from(random.six()), 32 + random.below(96)),
    };
    let ports = ["", ":443", ":1-1024", ":*"][random.below(4) as usize];
    let rule = Rule::new(action, [Pattern::parse(&format!("{host}{ports}")).expect("a pattern")]);
    if random.below(4) == 0 { rule.users([format!("user-{}", random.below(64))]) } else { rule }
}

fn name(random: &mut Random, size: u32) -> String {
    let (host, zone) = (random.below(size), random.below(size / 10 + 1));
    format!("host-{host}.zone-{zone}.{}", ["lan", "example", "corp.internal"][random.below(3) as usize])
}

fn name_target(random: &mut Random, size: u32) -> Target {
    let host = match random.below(2) {
        0 => format!("www.{}", name(random, size)),
        _ => format!("www-{}.site-{}.com", random.below(1 << 20), random.below(1 << 20)),
    };
    target(Host::parse(&host).expect("a name"), random)
}

fn address_target(random: &mut Random, _: u32) -> Target {
    let address = match random.below(4) {
        0 => IpAddr::V6(random.six().into()),
        _ => IpAddr::V4(random.four().into()),
    };
    target(address.into(), random)
}

fn mixed_target(random: &mut Random, size: u32) -> Target {
    if random.below(2) == 0 { name_target(random, size) } else { address_target(random, size) }
}

fn target(host: Host, random: &mut Random) -> Target {
    Target::new(host, [22, 80, 443, 8080][random.below(4) as usize]).expect("a port")
}

/// SplitMix64: the same figures on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.next() >> 32).unwrap_or_default() % end
    }

    /// An address of 10.0.0.0/8: rules and targets are to meet.
    fn four(&mut self) -> u32 {
        0x0a00_0000 | self.below(1 << 24)
    }

    /// An address of 2001:db8::/32, its networks in the next 16 bits.
    fn six(&mut self) -> u128 {
        (0x2001_0db8 << 96) | (u128::from(self.below(1 << 16)) << 80) | u128::from(self.next())
    }
}

criterion_group!(benches, decide, crowded);
criterion_main!(benches);
