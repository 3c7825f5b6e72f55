use std::net::IpAddr;

use anyproxy_core::{Account, Association, Host, Identity, Network, Target};

use crate::wire::Limits;
use crate::{Action, Networks, Pattern, Policy, Question, Rule, Rules, scan};

// Few words, so that they meet.
const NAMES: [&str; 8] = ["corp", "a.corp", "b.a.corp", "xcorp", "lan", "a.lan", "a.a.a.lan", "corp.lan"];
const ADDRESSES: [&str; 24] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "10.200.0.1",
    "192.0.2.1",
    "0.0.0.0",
    "169.254.169.254",
    "255.255.255.255",
    "::",
    "::1",
    "::10.0.0.1",
    "::169.254.169.254",
    "::ffff:10.0.0.1",
    "::ffff:0:10.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::192.0.2.1",
    "64:ff9b:1::10.0.0.1",
    "64:ff9b:1:a00:0:100::",
    "2002:a00:1::1",
    "2001:0:a00:1::f5ff:fffe",
    "2001:db8::1",
    "2001:db8::1:1",
    "fe80::1",
    "fd00:ec2::254",
];
const PORTS: [u16; 6] = [1, 22, 80, 443, 444, 65535];
const USERS: [&str; 4] = ["alice", "bob", "carol", "dan"];
const GROUPS: [&str; 4] = ["default", "blue", "green", "red"];
const FRONTS: [&str; 3] = ["http", "socks5", "sni"];

/// The body of the fuzz target: what is decoded survives a round trip, what is read is shown as it was read, and
/// compiled policies say what the slow reading of the same rules says.
pub fn fuzz(data: &[u8]) {
    match data.split_first() {
        Some((0, rest)) => round_trip(rest),
        Some((1, rest)) => read_pattern(&String::from_utf8_lossy(rest)),
        Some((_, rest)) => compare(&mut Tape(rest)),
        None => {}
    }
}

fn round_trip(bytes: &[u8]) {
    let limits = Limits { rules: 4096, patterns: 4096, words: 4096, ..Limits::default() };
    if let Ok(policy) = Policy::decode(bytes, &limits) {
        let encoded = policy.encode();
        let again = Policy::decode(&encoded, &limits).expect("what was decoded can be encoded");
        assert_eq!(again.encode(), encoded);
    }
}

fn read_pattern(text: &str) {
    match Pattern::parse(text) {
        Ok(pattern) => assert_eq!(Pattern::parse(&pattern.to_string()), Ok(pattern)),
        Err(error) => {
            if let Some(suggestion) = error.suggestion() {
                assert!(Pattern::parse(suggestion).is_ok(), "{suggestion:?} is offered for {text:?}");
            }
        }
    }
}

fn compare(tape: &mut Tape<'_>) {
    let policy = tape.policy();
    let encoded = policy.encode();
    let decoded = Policy::decode(&encoded, &Limits::default()).expect("what was encoded can be decoded");
    assert_eq!(decoded.encode(), encoded);
    for _ in 0..16 {
        let (target, identity, network) = (tape.target(), tape.identity(), tape.network());
        let front = tape.pick(&FRONTS);
        let question = Question { target: &target, network, identity: &identity, front };
        let verdict = policy.check(&question);
        assert_eq!(verdict, scan::check(&policy, &question), "{}", policy.explain(&question));
        assert_eq!(verdict, decoded.check(&question));
        for _ in 0..4 {
            let address = tape.address();
            let resolved = policy.check_address(&question, address);
            assert_eq!(resolved, scan::check_address(&policy, &question, address), "{question:?} {address}");
            assert_eq!(resolved, decoded.check_address(&question, address));
            // What the name decided, no address can undo.
            match (verdict, target.host()) {
                (crate::Verdict::Allow, Host::Name(_)) => {
                    assert_eq!(resolved, verdict, "{question:?} {address}")
                }
                (crate::Verdict::Deny(_), Host::Name(_)) => assert_ne!(resolved, crate::Verdict::Allow),
                _ => {}
            }
        }
    }
}

/// Choices, read off the bytes; all the first one when they are used up.
struct Tape<'a>(&'a [u8]);

impl Tape<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn up_to(&mut self, most: u8) -> u8 {
        self.byte() % (most + 1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }

    fn some<T: Copy>(&mut self, from: &[T]) -> Vec<T> {
        (0..self.up_to(2)).map(|_| self.pick(from)).collect()
    }

    fn policy(&mut self) -> Policy {
        let lists: Vec<Rules> = (0..=self.up_to(2)).map(|_| self.rules()).collect();
        let policy = Policy::new(lists);
        if self.byte() & 1 == 0 { policy } else { policy.guarded() }
    }

    fn rules(&mut self) -> Rules {
        let default = self.action();
        let rules: Vec<Rule> = (0..self.up_to(63)).map(|_| self.rule()).collect();
        Rules::new("rules", default, rules)
    }

    fn rule(&mut self) -> Rule {
        let patterns: Vec<Pattern> = (0..=self.up_to(2)).map(|_| self.pattern()).collect();
        let rule = Rule::new(self.action(), patterns);
        let rule = rule.users(self.some(&USERS)).groups(self.some(&GROUPS)).fronts(self.some(&FRONTS));
        rule.networks(self.pick(&[Networks::ALL, Networks::TCP, Networks::UDP]))
    }

    fn action(&mut self) -> Action {
        self.pick(&[Action::Allow, Action::Deny])
    }

    fn pattern(&mut self) -> Pattern {
        let address = self.address();
        let (host, most) = match address {
            IpAddr::V4(_) => (address.to_string(), 32),
            IpAddr::V6(_) => (format!("[{address}]"), 128),
        };
        let host = match self.byte() % 8 {
            0 => "*".to_owned(),
            1 | 2 => self.pick(&NAMES).to_owned(),
            3 | 4 => format!("*.{}", self.pick(&NAMES)),
            5 => host,
            _ => format!("{host}/{}", self.up_to(most)),
        };
        let (one, other) = (self.pick(&PORTS), self.pick(&PORTS));
        let text = match self.byte() % 4 {
            0 | 1 => host,
            2 => format!("{host}:{one}"),
            _ => format!("{host}:{}-{}", one.min(other), one.max(other)),
        };
        Pattern::parse(&text).expect("made of valid parts")
    }

    fn address(&mut self) -> IpAddr {
        let address: IpAddr = self.pick(&ADDRESSES).parse().expect("an address");
        address.to_canonical()
    }

    fn target(&mut self) -> Target {
        let host = match self.byte() % 2 {
            0 => Host::parse(self.pick(&NAMES)).expect("a name"),
            _ => self.address().into(),
        };
        Target::new(host, self.pick(&PORTS)).expect("a port")
    }

    fn identity(&mut self) -> Identity {
        match self.byte() % 4 {
            0 => Identity::ANONYMOUS,
            _ => Account::new(self.pick(&USERS), self.some(&GROUPS)).into(),
        }
    }

    fn network(&mut self) -> Network {
        if self.byte() & 1 == 0 { Network::Tcp } else { Network::Udp(Association::new()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_committed_corpus_holds() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/acl_rules");
        let mut files = std::fs::read_dir(corpus).unwrap().peekable();
        assert!(files.peek().is_some());
        for file in files {
            fuzz(&std::fs::read(file.unwrap().path()).unwrap());
        }
    }

    #[test]
    fn the_encoded_rules_of_the_corpus_are_read() {
        for name in ["encoded_rules", "encoded_guarded"] {
            let path = format!("{}/../../fuzz/corpus/acl_rules/{name}", env!("CARGO_MANIFEST_DIR"));
            assert!(Policy::decode(&std::fs::read(path).unwrap()[1..], &Limits::default()).is_ok(), "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn compiled_rules_say_what_a_slow_reading_says(bytes in vec(any::<u8>(), 0..1500)) {
            compare(&mut Tape(&bytes));
        }

        #[test]
        fn encoded_rules_with_a_broken_byte_are_read_or_refused(
            bytes in vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), with in any::<u8>(),
        ) {
            let mut encoded = Tape(&bytes).policy().encode().to_vec();
            let at = at.index(encoded.len());
            encoded[at] = with;
            round_trip(&encoded);
            round_trip(&encoded[..at]);
        }

        #[test]
        fn any_text_is_a_pattern_or_says_why_not(text in r"[a-c*.:/\[\]0-9x-]{0,16}") {
            read_pattern(&text);
        }
    }
}
