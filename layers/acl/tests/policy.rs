//! What a policy decides, told by cases.

use std::net::IpAddr;

use anyproxy_acl::{
    Action, DecodeError, Denied, Limits, Lists, Networks, Origin, Pattern, Policy, Question, Rule, Rules,
    Verdict, dialable,
};
use anyproxy_core::{Account, Association, Identity, Network, Outcome, Target};

#[test]
fn a1_lists_and_rules_must_both_allow_and_forbidden_wins() {
    // Networks, forbidden, allowed, rules: what each says; `None` where it is not given.
    let choices = [None, Some(false), Some(true)];
    for networks in [None, Some(true)] {
        for forbidden in choices {
            for allowed in choices {
                for (rule, default) in [
                    (None, Action::Allow),
                    (None, Action::Deny),
                    (Some(Action::Allow), Action::Deny),
                    (Some(Action::Deny), Action::Allow),
                ] {
                    let listed = |matches| pattern(if matches { "db.lan:22" } else { "db.lan:23" }).into();
                    let lists = Lists {
                        forbidden: forbidden.map(listed).into_iter().collect(),
                        allowed: allowed.map(listed).into_iter().collect(),
                        networks: networks.map(|tcp| if tcp { Networks::TCP } else { Networks::UDP }),
                    };
                    let rules = rule.map(|action| Rule::new(action, [pattern("db.lan")]));
                    let rules = Rules::new("gateway.access", default, rules);
                    let policy = Policy::new(lists.into_rules("gateway").chain([rules]));
                    let expected = forbidden != Some(true)
                        && allowed != Some(false)
                        && rule.unwrap_or(default) == Action::Allow;
                    let verdict = ask(&policy, "db.lan:22");
                    let case = (networks, forbidden, allowed, rule, default);
                    assert_eq!(verdict == Verdict::Allow, expected, "{case:?}: {verdict:?}");
                }
            }
        }
    }
}

#[test]
fn a1_the_first_rule_that_matches_decides() {
    let rules = ["-db.lan:22", "+db.lan", "-*.lan", "+10.0.0.0/8:1-1024", "-10.0.0.0/8"];
    let policy = policy(Action::Allow, &rules);
    for (target, verdict) in [
        ("db.lan:22", false),
        ("db.lan:23", true),
        ("x.lan:23", false),
        ("10.1.1.1:1024", true),
        ("10.1.1.1:1025", false),
        ("11.1.1.1:1025", true),
    ] {
        assert_eq!(ask(&policy, target) == Verdict::Allow, verdict, "{target}");
    }
}

#[test]
fn a10_of_rules_with_overlapping_ports_the_first_decides() {
    let rules = ["-db.lan:1", "+db.lan:10-20", "-db.lan:15-30", "+*:22", "-db.lan:22-65535", "+db.lan:40"];
    let policy = policy(Action::Deny, &rules);
    for (port, allowed) in [
        (1, false),
        (9, false),
        (10, true),
        (15, true),
        (20, true),
        (21, false),
        (22, false),
        (30, false),
        (40, false),
        (65535, false),
    ] {
        assert_eq!(ask(&policy, &format!("db.lan:{port}")) == Verdict::Allow, allowed, "{port}");
    }
    let policy =
        self::policy(Action::Deny, &["-db.lan:1", "+*:22", "-db.lan:22", "+db.lan:23-24", "-db.lan:24"]);
    for (port, allowed) in [(1, false), (22, true), (23, true), (24, true), (25, false)] {
        assert_eq!(ask(&policy, &format!("db.lan:{port}")) == Verdict::Allow, allowed, "{port}");
    }
}

#[test]
fn a_name_depends_on_ranges_only_as_far_as_they_can_decide_otherwise() {
    for (rules, default, by_name, at_ten) in [
        (&["+db.lan", "-10.0.0.0/8"][..], Action::Allow, Verdict::Allow, true),
        (&["-10.0.0.0/8", "+db.lan"], Action::Allow, Verdict::Depends, false),
        (&["-10.0.0.0/8"], Action::Allow, Verdict::Depends, false),
        (&["+10.0.0.0/8"], Action::Deny, Verdict::Depends, true),
        (&["+10.0.0.0/8", "-172.16.0.0/12"], Action::Deny, Verdict::Depends, true),
        (&["+10.0.0.0/8"], Action::Allow, Verdict::Allow, true),
        (&["-10.0.0.0/8:23"], Action::Allow, Verdict::Allow, true),
    ] {
        let policy = policy(default, rules);
        assert_eq!(ask(&policy, "db.lan:22"), by_name, "{rules:?}");
        assert_eq!(resolved(&policy, "db.lan:22", "10.0.0.1") == Verdict::Allow, at_ten, "{rules:?}");
    }
    let denied = policy(Action::Allow, &["-db.lan", "+10.0.0.0/8"]);
    assert!(matches!(ask(&denied, "db.lan:22"), Verdict::Deny(_)));
    let for_bob = Rule::deny([pattern("10.0.0.0/8")]).users(["bob"]);
    let for_bob = Policy::new([Rules::new("rules", Action::Allow, [for_bob])]);
    assert_eq!(ask(&for_bob, "db.lan:22"), Verdict::Allow);
}

#[test]
fn a5_an_ipv4_rule_judges_every_spelling_of_the_address() {
    for action in [Action::Allow, Action::Deny] {
        let other = if action == Action::Allow { Action::Deny } else { Action::Allow };
        for rule in ["127.0.0.1", "::ffff:127.0.0.1"] {
            let policy = Policy::new([Rules::new("rules", other, [Rule::new(action, [pattern(rule)])])]);
            for target in ["127.0.0.1:80", "[::ffff:127.0.0.1]:80", "[::ffff:7f00:1]:80", "[::127.0.0.1]:80"]
            {
                let allowed = ask(&policy, target) == Verdict::Allow;
                assert_eq!(allowed, action == Action::Allow, "{action} {rule}: {target}");
            }
        }
    }
}

#[test]
fn a6_denied_ipv4_inside_ipv6_is_denied_and_allowed_ipv4_opens_nothing() {
    let forms = [
        "[64:ff9b::10.0.0.1]:80",
        "[64:ff9b:1::10.0.0.1]:80",
        "[64:ff9b:1:a00:0:100::]:80",
        "[2002:a00:1::1]:80",
        "[2001:0:a00:1::f5ff:fffe]:80",
        "[::ffff:0:10.0.0.1]:80",
    ];
    let denying = policy(Action::Allow, &["-10.0.0.0/8"]);
    let expressly =
        policy(Action::Deny, &["+64:ff9b::/32", "+2002::/16", "+2001::/32", "+::/32", "-10.0.0.0/8"]);
    let allowing = policy(Action::Deny, &["+10.0.0.0/8"]);
    for form in forms {
        for policy in [&denying, &expressly, &allowing] {
            assert!(matches!(ask(policy, form), Verdict::Deny(_)), "{form}");
        }
    }
    // A rule on everything is no rule on IPv4.
    let prefix = policy(Action::Deny, &["+64:ff9b::/96", "-*"]);
    assert_eq!(ask(&prefix, "[64:ff9b::10.0.0.1]:80"), Verdict::Allow);
    // A rule on both is.
    let both = Rule::deny([Pattern::ANY, pattern("10.0.0.0/8")]);
    let both =
        Policy::new([Rules::new("rules", Action::Allow, [Rule::allow([pattern("64:ff9b::/96")]), both])]);
    assert!(matches!(ask(&both, "[64:ff9b::10.0.0.1]:80"), Verdict::Deny(_)));
    assert_eq!(ask(&both, "[64:ff9b::192.0.2.1]:80"), Verdict::Allow);
    // What stands first for the address inside counts.
    let hole = policy(Action::Allow, &["+10.0.0.1", "-10.0.0.0/8"]);
    assert_eq!(ask(&hole, "[64:ff9b::10.0.0.1]:80"), Verdict::Allow);
    assert!(matches!(ask(&hole, "[64:ff9b::10.0.0.2]:80"), Verdict::Deny(_)));
}

#[test]
fn a7_guarded_addresses_stay_shut_under_everything_but_an_entry_inside() {
    let shut = [
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "255.255.255.255",
        "224.0.0.1",
        "ff02::1",
        "169.254.169.254",
        "fe80::1",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "64:ff9b::169.254.169.254",
        "2002:a9fe:a9fe::1",
    ];
    let open = ["127.0.0.1", "::1", "10.0.0.1", "192.0.2.1", "2001:db8::1", "fd00::1", "64:ff9b::192.0.2.1"];
    for rules in [&[][..], &["+*"], &["+0.0.0.0/0", "+::/0"], &["+db.lan", "+*:80"], &["+168.0.0.0/7", "+*"]]
    {
        let policy = policy(Action::Allow, rules).guarded();
        for address in shut {
            assert!(
                matches!(resolved(&policy, "db.lan:80", address), Verdict::Deny(_)),
                "{rules:?} {address}"
            );
        }
        for address in open {
            assert_eq!(resolved(&policy, "db.lan:80", address), Verdict::Allow, "{rules:?} {address}");
        }
        assert_eq!(ask(&policy, "db.lan:80"), Verdict::Depends);
    }
    let one = policy(Action::Allow, &["+169.254.169.254:80", "+fe80::/10", "+0.0.0.0/8"]).guarded();
    for (target, opened) in [
        ("169.254.169.254:80", true),
        ("169.254.169.254:81", false),
        ("169.254.169.253:80", false),
        ("[fe80::1]:80", true),
        ("0.0.0.0:80", true),
        ("[::]:80", false),
    ] {
        assert_eq!(ask(&one, target) == Verdict::Allow, opened, "{target}");
    }
    // An entry that forbids still wins, in the same list and in another.
    let again = policy(Action::Allow, &["+*", "-169.254.0.0/16", "+169.254.169.254"]).guarded();
    assert!(matches!(ask(&again, "169.254.169.254:80"), Verdict::Deny(_)));
    let lists = Lists {
        forbidden: vec![pattern("169.254.0.0/16").into()],
        allowed: vec![pattern("169.254.169.254").into()],
        networks: None,
    };
    let lists = Policy::new(lists.into_rules("client")).guarded();
    assert!(matches!(ask(&lists, "169.254.169.254:80"), Verdict::Deny(_)));
}

#[test]
fn a9_an_allowed_name_at_a_denied_address_is_denied() {
    let lists = Lists {
        forbidden: vec![pattern("10.0.0.0/8").into()],
        allowed: vec![pattern("*.example").into()],
        networks: None,
    };
    let policy = Policy::new(lists.into_rules("client")).guarded();
    let found =
        dial(&[&policy], "a.example:80", &["10.0.0.1", "::ffff:10.0.0.2", "169.254.1.1"]).unwrap_err();
    assert_eq!(found.to_string(), "a.example:80 is denied by rule 1 of client.forbidden_hosts");
    assert_eq!(Outcome::of(&found), Outcome::Denied);
    let found = dial(&[&policy], "a.example:80", &["10.0.0.1", "192.0.2.2", "2001:db8::1", "192.0.2.1"]);
    assert_eq!(found.unwrap(), addresses(&["192.0.2.2", "2001:db8::1", "192.0.2.1"]));
    assert!(dial(&[&policy], "a.example:80", &[]).unwrap().is_empty());
}

#[test]
fn a11_networks_that_are_not_allowed_are_denied_for_whom_they_are_not() {
    let only_tcp = Lists { networks: Some(Networks::TCP), ..Lists::default() };
    let only_tcp = Policy::new(only_tcp.into_rules("gateway"));
    let udp_for_bob = Rule::deny([Pattern::ANY]).users(["bob"]).networks(Networks::TCP);
    let udp_for_bob = Policy::new([Rules::new("gateway.access", Action::Allow, [udp_for_bob])]);
    let bob = Identity::from(Account::new("bob", ["blue"]));
    for (policy, tcp, udp) in [(&only_tcp, true, false), (&udp_for_bob, false, true)] {
        let target = target("192.0.2.1:53");
        let question = Question { target: &target, network: Network::Tcp, identity: &bob, front: "socks5" };
        assert_eq!(policy.check(&question) == Verdict::Allow, tcp);
        let question = Question { network: Network::Udp(Association::new()), ..question };
        assert_eq!(policy.check(&question) == Verdict::Allow, udp);
    }
}

#[test]
fn a11_an_association_is_denied_only_where_every_destination_is() {
    for (default, rules, allowed) in [
        (Action::Allow, &[][..], true),
        (Action::Deny, &[][..], false),
        (Action::Allow, &["-*:53", "-*.lan", "-10.0.0.0/8"][..], true),
        (Action::Allow, &["-*:53", "-*"][..], false),
        (Action::Deny, &["-*.lan", "+10.0.0.0/8:53"][..], true),
        (Action::Deny, &["-*", "+10.0.0.0/8:53"][..], false),
    ] {
        let policy = policy(default, rules);
        assert_eq!(associating(&policy) == Verdict::Allow, allowed, "{rules:?}");
    }
    let tcp = |rule: Rule| rule.networks(Networks::TCP);
    let any = || [Pattern::ANY];
    for (rules, allowed) in [
        (Rules::networks("networks", Networks::TCP), false),
        (Rules::networks("networks", Networks::UDP), true),
        (Rules::new("rules", Action::Allow, [tcp(Rule::deny(any()))]), true),
        (Rules::new("rules", Action::Deny, [tcp(Rule::allow(any()))]), false),
        (Rules::new("rules", Action::Deny, [Rule::allow(any()).users(["alice"])]), true),
        (Rules::new("rules", Action::Deny, [Rule::allow(any()).users(["bob"])]), false),
        (Rules::new("rules", Action::Deny, [Rule::allow(any()).groups(["blue"])]), true),
        (Rules::new("rules", Action::Deny, [Rule::allow(any()).fronts(["http"])]), false),
    ] {
        let shown = format!("{rules:?}");
        assert_eq!(associating(&Policy::new([rules]).guarded()) == Verdict::Allow, allowed, "{shown}");
    }
}

/// The verdict on an association of alice's, of the group blue.
fn associating(policy: &Policy) -> Verdict {
    let identity = Identity::from(Account::new("alice", ["blue"]));
    let network = Network::Udp(Association::new());
    let target = Target::UNSPECIFIED;
    policy.check(&Question { target: &target, network, identity: &identity, front: "socks5" })
}

#[test]
fn a12_no_policy_of_a_gateway_widens_that_of_a_client() {
    let own = policy(Action::Deny, &["+db.lan"]).guarded();
    let gateway = policy(Action::Allow, &["+*", "+169.254.169.254", "+10.0.0.0/8"]);
    assert!(dial(&[&own, &gateway], "x.lan:80", &["10.0.0.1"]).is_err());
    assert!(dial(&[&own, &gateway], "db.lan:80", &["169.254.169.254"]).is_err());
    assert_eq!(dial(&[&own, &gateway], "db.lan:80", &["10.0.0.1"]).unwrap(), addresses(&["10.0.0.1"]));
    let narrow = policy(Action::Allow, &["-10.0.0.0/8"]);
    assert!(dial(&[&own, &narrow], "db.lan:80", &["10.0.0.1"]).is_err());
}

#[test]
fn a_limit_lets_only_its_services_pass_over_their_network() {
    let services = [
        Rule::allow([Pattern::from(&target("127.0.0.1:3000"))]).networks(Networks::TCP),
        Rule::allow([Pattern::from(&target("ns.lan:53"))]).networks(Networks::UDP),
    ];
    let policy = Policy::new([Rules::new("client.limit", Action::Deny, services)]).guarded();
    assert_eq!(ask(&policy, "127.0.0.1:3000"), Verdict::Allow);
    assert!(matches!(ask(&policy, "127.0.0.1:3001"), Verdict::Deny(_)));
    assert!(matches!(resolved(&policy, "ns.lan:53", "10.0.0.1"), Verdict::Deny(_)));
    let target = target("ns.lan:53");
    let network = Network::Udp(Association::new());
    let question = Question { target: &target, network, identity: &Identity::ANONYMOUS, front: "socks5" };
    assert_eq!(policy.check_address(&question, "10.0.0.1".parse().unwrap()), Verdict::Allow);
}

#[test]
fn conditions_must_all_hold() {
    let rule = Rule::allow([pattern("db.lan")]).users(["alice", "bob"]).groups(["blue"]).fronts(["http"]);
    let policy = Policy::new([Rules::new("rules", Action::Deny, [rule])]);
    let target = target("db.lan:22");
    for (user, groups, front, allowed) in [
        ("alice", &["blue"][..], "http", true),
        ("alice", &["green", "blue"], "http", true),
        ("alice", &["green"], "http", false),
        ("carol", &["blue"], "http", false),
        ("alice", &["blue"], "socks5", false),
    ] {
        let identity = Identity::from(Account::new(user, groups.iter().copied()));
        let question = Question { target: &target, network: Network::Tcp, identity: &identity, front };
        assert_eq!(policy.check(&question) == Verdict::Allow, allowed, "{user} {groups:?} {front}");
    }
    let question =
        Question { target: &target, network: Network::Tcp, identity: &Identity::ANONYMOUS, front: "http" };
    assert!(matches!(policy.check(&question), Verdict::Deny(_)));
}

#[test]
fn many_rules_on_one_host_are_told_apart_by_user_group_and_port() {
    let alone = |n: u32| Rule::allow([pattern("*")]).users([format!("user-{n}")]);
    let rules: Vec<_> = (0..1000).map(alone).chain([Rule::deny([pattern("*")])]).collect();
    let rules = Rules::new("rules", Action::Allow, rules);
    let ports = (1..=2000).map(|port| Rule::deny([pattern(&format!("db.lan:{port}"))]));
    let ports = Rules::new("ports", Action::Allow, ports);
    let policy = Policy::new([rules, ports]);
    for (user, target, allowed) in [
        ("user-0", "a.lan:22", true),
        ("user-999", "a.lan:22", true),
        ("user-1000", "a.lan:22", false),
        ("user-999", "db.lan:2000", false),
        ("user-999", "db.lan:2001", true),
    ] {
        let (identity, target) = (Identity::from(Account::new(user, ["blue"])), self::target(target));
        let question =
            Question { target: &target, network: Network::Tcp, identity: &identity, front: "http" };
        assert_eq!(policy.check(&question) == Verdict::Allow, allowed, "{user} {target}");
    }
}

#[test]
fn an_explanation_names_the_rule_its_place_and_what_may_yet_decide() {
    let origin = |line| Origin { file: "gateway.yaml".into(), line, column: 9 };
    let rules = [
        Rule::deny([pattern("10.0.0.0/8:22")]).users(["alice", "bob"]).at(origin(20)),
        Rule::allow([pattern("*.lan")]).at(origin(21)),
    ];
    let lists = Lists { forbidden: vec![pattern("*:25").into()], ..Lists::default() };
    let policy =
        Policy::new(lists.into_rules("gateway").chain([Rules::new("gateway.access", Action::Deny, rules)]));
    let (alice, target) = (Identity::from(Account::new("alice", ["blue"])), target("db.lan:22"));
    let question = Question { target: &target, network: Network::Tcp, identity: &alice, front: "http" };
    assert_eq!(
        policy.explain(&question).to_string(),
        "tcp://db.lan:22 for alice by http: allowed, unless it resolves to an address that is not\n\
         - gateway.forbidden_hosts: no rule matches, and the default allows it\n\
         - gateway.access: rule 2 at gateway.yaml:21:9 allows it (allow *.lan), unless it resolves to an address \
         of rule 1 at gateway.yaml:20:9 (deny 10.0.0.0/8:22, for users alice or bob)"
    );
    let outside = self::target("10.0.0.1:22");
    let outside = Question { target: &outside, ..question };
    let Verdict::Deny(cause) = policy.check(&outside) else { panic!("{:?}", policy.check(&outside)) };
    assert_eq!(policy.reason(cause).to_string(), "rule 1 of gateway.access (gateway.yaml:20:9)");
    assert_eq!(policy.reason(cause).origin(), Some(&origin(20)));
}

#[test]
fn a_policy_survives_the_wire_and_keeps_its_version() {
    let rules = ["-*.lan:22", "+db.lan", "-10.0.0.0/8:1-1024", "+fe80::/10", "-*"];
    let sent = policy(Action::Allow, &rules);
    let got = Policy::decode(&sent.encode(), &Limits::default()).unwrap();
    assert_eq!(got.encode(), sent.encode());
    assert_eq!(got.version(), sent.version());
    assert_ne!(got.version(), policy(Action::Deny, &rules).version());
}

#[test]
fn the_encoded_form_is_as_written_down() {
    let rule = Rule::deny([pattern("*.lan:22"), pattern("10.0.0.0/8:1-1024"), pattern("*")]).users(["al"]);
    let policy = Policy::new([Rules::new("rules", Action::Allow, [rule])]);
    let hex: String = policy.encode().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        [
            "0100",
            "01", // format, flags; one list,
            "01",
            "01",
            "03",
            "0102616c",
            "00",
            "00", // allows, one condition: all networks, user al,
            "01",
            "00",
            "00",
            "03", // one rule: denies, condition 0, three patterns
            "0a036c616e0016",
            "13080a00010400",
            "00",
        ]
        .concat()
    );
}

#[test]
fn hostile_bytes_are_refused_with_the_reason() {
    let whole = policy(Action::Allow, &["-*.lan:22", "+10.0.0.0/8", "-[fe80::]/10:1-2"]).encode();
    for end in 0..whole.len() {
        assert_eq!(
            Policy::decode(&whole[..end], &Limits::default()).unwrap_err(),
            DecodeError::Truncated,
            "{end}"
        );
    }
    let limits = |bytes: &[u8]| Policy::decode(bytes, &Limits { words: 2, patterns: 2, ..Limits::default() });
    for (hex, error) in [
        ("", DecodeError::Truncated),
        ("02", DecodeError::Format(2)),
        ("0102", DecodeError::Unknown("flag")),
        ("010000ff", DecodeError::Surplus),
        ("010011", DecodeError::TooMany("lists")),
        ("0100ffffffff0f", DecodeError::TooMany("lists")),
        ("0100ffffffff1f", DecodeError::Number),
        ("01008000", DecodeError::Number),
        ("01000102", DecodeError::Unknown("action")),
        ("0100010001040000000000", DecodeError::Unknown("network")),
        ("010001000203000000030000000000", DecodeError::Unknown("condition")),
        ("010001000103030161016101610000", DecodeError::TooMany("words")),
        ("0100010001030101ff", DecodeError::Text),
        ("01000100010300000001010500", DecodeError::Unknown("condition")),
        ("0100010001030000000101", DecodeError::Truncated),
        ("01000100010300000001000003000000", DecodeError::TooMany("patterns")),
        ("010001000103000000010000010103414141", DecodeError::Name),
        ("0100010001030000000100000101033132372e", DecodeError::Name),
        ("0100010001030000000100000103070b", DecodeError::Range),
        ("0100010001030000000100000103210b0b0b0b0b", DecodeError::Range),
        ("01000100010300000001000001046000000000000000000000ffff", DecodeError::Range),
        ("0100010001030000000100000105", DecodeError::Unknown("pattern")),
        ("0100010001030000000100000118", DecodeError::Unknown("pattern")),
        ("01000100010300000001000001080000", DecodeError::Ports),
        ("0100010001030000000100000110000200010000", DecodeError::Ports),
    ] {
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        assert_eq!(limits(&bytes).unwrap_err(), error, "{hex}");
    }
}

fn policy(default: Action, rules: &[&str]) -> Policy {
    let rule = |text: &&str| match text.split_at(1) {
        ("+", text) => Rule::allow([pattern(text)]),
        (_, text) => Rule::deny([pattern(text)]),
    };
    Policy::new([Rules::new("rules", default, rules.iter().map(rule))])
}

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).expect("a pattern")
}

fn target(text: &str) -> Target {
    Target::parse(text).expect("a target")
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

fn ask(policy: &Policy, target: &str) -> Verdict {
    asking(target, |question| policy.check(question))
}

fn resolved(policy: &Policy, target: &str, address: &str) -> Verdict {
    asking(target, |question| policy.check_address(question, address.parse().expect("an address")))
}

fn dial(policies: &[&Policy], target: &str, found: &[&str]) -> Result<Vec<IpAddr>, Denied> {
    asking(target, |question| dialable(policies.iter().copied(), question, addresses(found)))
}

fn asking<T>(target: &str, ask: impl FnOnce(&Question<'_>) -> T) -> T {
    let (target, identity) = (self::target(target), Identity::from(Account::new("alice", ["blue"])));
    ask(&Question { target: &target, network: Network::Tcp, identity: &identity, front: "http" })
}
