//! Who is connected, who takes whose place, and what dials see of it.

mod support;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyproxy_core::{
    Account, Association, Dial, DialService as _, Endpoint as _, Endpoints as _, Fault, Front, Judge,
    Network, Outcome, RulesMark, RulesVersion, Target, TraceParent,
};
use anyproxy_gateway::{Clients, Config, OnlyClient};
use anyproxy_tunnel::frame::{ClientHello, GoAwayCode, OpenErr, OpenErrClass, OpenOk};
use anyproxy_tunnel::{Request, TunnelError};
use bytes::Bytes;
use support::{House, Peer, dial};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, advance};

async fn refusal(house: &House, account: &str, hello: ClientHello) -> String {
    let (code, reason) = go_away(house, account, hello).await;
    assert_eq!(code, GoAwayCode::Refused);
    reason
}

async fn go_away(house: &House, account: &str, hello: ClientHello) -> (GoAwayCode, String) {
    match house.connect(account, "blue", hello).await {
        Err(TunnelError::Refused(go_away)) => (go_away.code, go_away.reason),
        other => panic!("not refused: {:?}", other.err()),
    }
}

/// The next open, unanswered.
async fn next_open(peer: &mut Peer) -> anyproxy_tunnel::OpenRequest {
    loop {
        match peer.requests.next().await.expect("a request") {
            Request::Open(request) => return request,
            _ => continue,
        }
    }
}

#[tokio::test]
async fn a_dial_becomes_a_stream_at_the_client_and_the_journal_knows_it() {
    let house = House::new(Config::default());
    let mut peer = house.client("room-1", 1).await;
    let mut dial = dial("blue");
    let trace = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
    dial.extensions.insert(trace.clone());
    dial.rules = RulesVersion::new(7).map(|version| RulesMark::new(version, Judge::new()));
    let (journal, source) = (dial.journal.clone(), dial.source);
    let dialing = tokio::spawn(house.serving("blue")[0].dial(dial));
    let request = next_open(&mut peer).await;
    assert_eq!(request.open().user, "alice");
    assert_eq!(request.open().groups, ["blue"]);
    assert_eq!(request.open().front, "http");
    assert_eq!(request.open().source, Some(source));
    assert_eq!(request.open().rules, 7);
    assert_eq!(request.open().traceparent.as_deref(), Some(trace.as_str()));
    assert_eq!(house.serving("blue")[0].load().streams, 1, "it counts before it is answered");
    let address = "10.0.0.9:631".parse().unwrap();
    let reference = request.stream_ref();
    // It says a minute, and was waited for less.
    let mut far =
        request.accept(OpenOk { address: Some(address), took_us: Some(60_000_000), ..OpenOk::default() });
    let mut near = dialing.await.unwrap().unwrap();
    assert_eq!(journal.connecting(), journal.opening(), "no client is believed more than it was waited for");
    assert_eq!(journal.client().as_deref(), Some("room-1"));
    assert_eq!(journal.address(), Some(address));
    assert_eq!(journal.stream(), Some(reference));
    near.write_all(b"ping").await.unwrap();
    near.shutdown().await.unwrap();
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"ping");
    drop(near);
    assert_eq!(house.serving("blue")[0].load().streams, 0);
    assert_eq!(house.clients.streams(), 0);
}

#[tokio::test]
async fn a_journal_tells_that_the_tunnel_of_a_living_stream_leaves_and_does_not_hold_it() {
    let house = House::new(Config::default());
    let mut peer = house.client("room-1", 1).await;
    let dial = dial("blue");
    let journal = dial.journal.clone();
    let dialing = tokio::spawn(house.serving("blue")[0].dial(dial));
    let far = next_open(&mut peer).await.accept(OpenOk::default());
    let near = dialing.await.unwrap().unwrap();
    assert!(journal.is_healthy());
    peer.tunnel.drain();
    house.until(|house| house.ids("blue").is_empty()).await;
    assert!(!journal.is_healthy());
    drop((near, far));
    peer.task.unwrap().await.unwrap();
}

#[tokio::test]
async fn a_client_that_drains_is_connected_and_takes_no_dials() {
    let house = House::new(Config::default());
    assert!(!house.clients.takes_dials(), "nobody is there");
    let mut peer = house.client("room-1", 1).await;
    assert!(house.clients.takes_dials());
    let dialing = tokio::spawn(house.serving("blue")[0].dial(dial("blue")));
    let far = next_open(&mut peer).await.accept(OpenOk::default());
    let near = dialing.await.unwrap().unwrap();
    peer.tunnel.drain();
    house.until(|house| !house.clients.takes_dials()).await;
    assert_eq!(house.clients.len(), 1, "its stream is there");
    let other = house.client("room-2", 1).await;
    assert!(house.clients.takes_dials());
    drop((near, far, other));
}

#[tokio::test]
async fn a_failure_at_the_target_is_the_user_s_outcome() {
    let house = House::new(Config::default());
    let mut peer = house.client("room-1", 1).await;
    let dial = dial("blue");
    let journal = dial.journal.clone();
    let dialing = tokio::spawn(house.serving("blue")[0].dial(dial));
    let refused = OpenErr { took_us: Some(1), ..OpenErr::new(OpenErrClass::Refused, "no\nprinter") };
    next_open(&mut peer).await.refuse(refused);
    let error = dialing.await.unwrap().err().unwrap();
    assert_eq!(Outcome::of(&*error), Outcome::Refused);
    assert_eq!(Fault::of(&*error), None);
    assert_eq!(journal.connecting(), Duration::from_micros(1));
    assert!(error.to_string().contains("room-1") && !error.to_string().contains('\n'));
}

#[tokio::test]
async fn the_same_instance_adds_tunnels_and_dials_go_to_the_least_loaded() {
    let house = House::new(Config::default());
    let _peers = [house.client("room-1", 1).await.echo(), house.client("room-1", 1).await.echo()];
    assert_eq!(house.ids("blue"), ["room-1"]);
    let client = house.serving("blue").remove(0);
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(client.dial(dial("blue")).await.unwrap());
    }
    assert_eq!(client.tunnels().map(|tunnel| tunnel.streams).collect::<Vec<_>>(), [3, 3]);
}

#[tokio::test]
async fn p9_a_new_instance_takes_over_at_once_and_the_old_one_s_clean_up_does_not_remove_it() {
    let house = House::new(Config::default());
    let mut old = house.client("room-1", 1).await;
    let old_task = old.task.take().unwrap();
    let client = house.serving("blue").remove(0);
    let old_session = old.hello.session;
    let _echo = old.echo();
    let mut living = client.dial(dial("blue")).await.unwrap();
    let new = house.client("room-1", 2).await;
    let sessions = |house: &House| house.serving("blue")[0].tunnels().map(|t| t.session).collect::<Vec<_>>();
    assert_eq!(sessions(&house), [new.hello.session]);
    assert_ne!(new.hello.session, old_session);
    // What runs on the old one may finish; then its tunnel is drained and ends.
    living.write_all(b"still here").await.unwrap();
    living.shutdown().await.unwrap();
    let mut got = Vec::new();
    living.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"still here");
    drop(living);
    old_task.await.unwrap();
    assert_eq!(sessions(&house), [new.hello.session]);
    assert_eq!(house.clients.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_processes_with_one_name_are_slowed() {
    let house = House::new(Config::default());
    let mut peers = vec![house.client("room-1", 1).await, house.client("room-1", 2).await];
    let mut waits = Vec::new();
    for turn in 0..4 {
        let started = Instant::now();
        loop {
            match house.connect("east", "blue", ClientHello::new("room-1", 1 + turn % 2)).await {
                Ok(peer) => break peers.push(peer),
                Err(TunnelError::Refused(_)) => advance(Duration::from_millis(100)).await,
                Err(error) => panic!("{error}"),
            }
        }
        waits.push(started.elapsed().as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8]);
    assert_eq!(house.clients.len(), 1);
}

#[tokio::test]
async fn i3_a_client_of_another_account_cannot_take_a_name() {
    let house = House::new(Config::default());
    let peer = house.client("room-1", 1).await;
    let reason = refusal(&house, "west", ClientHello::new("room-1", 1)).await;
    assert!(reason.contains("another account"), "{reason}");
    assert_eq!(house.serving("blue")[0].tunnels().next().unwrap().session, peer.hello.session);
}

#[tokio::test]
async fn one_client_s_tunnels_are_bounded() {
    let house = House::new(Config::default());
    let mut peers = Vec::new();
    for _ in 0..128 {
        peers.push(house.client("room-1", 1).await);
    }
    let reason = refusal(&house, "east", ClientHello::new("room-1", 1)).await;
    assert!(reason.contains("128"), "{reason}");
}

#[tokio::test]
async fn w11_a_tunnel_that_is_cut_resets_its_streams_and_leaves_the_registry() {
    let house = House::new(Config::default());
    let peer = house.client("room-1", 1).await;
    let driver = peer.driver.abort_handle();
    let _echo = peer.echo();
    let mut stream = house.serving("blue")[0].dial(dial("blue")).await.unwrap();
    driver.abort();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    house.until(|house| house.clients.is_empty()).await;
    assert!(house.ids("blue").is_empty());
}

#[tokio::test]
async fn who_waits_for_a_group_is_woken_by_its_first_client() {
    let house = House::new(Config::default());
    let served = tokio::spawn(house.clients.served(&dial("blue")));
    let _green = house.connect("east", "green", ClientHello::new("other", 1)).await.unwrap();
    tokio::task::yield_now().await;
    assert!(!served.is_finished());
    let _blue = house.client("room-1", 1).await;
    served.await.unwrap();
    house.clients.served(&dial("blue")).await;
}

#[tokio::test]
async fn a_route_sends_a_dial_to_another_group_only_if_its_user_holds_it() {
    let house = House::new(Config::default());
    let _peers = [
        house.client("in-blue", 1).await,
        house.connect("east", "green", ClientHello::new("in-green", 1)).await.unwrap(),
    ];
    house.clients.set_routes(|_: &Dial| Some(Arc::from("green")));
    assert_eq!(house.ids("blue"), ["in-blue"]);
    let mut both = dial("blue");
    both.identity = Account::new("alice", ["blue", "green"]).into();
    assert_eq!(&**house.clients.snapshot(&both)[0].id(), "in-green");
}

#[tokio::test]
async fn a_dial_for_one_client_is_served_by_no_other() {
    let house = House::new(Config::default());
    let _peers = [house.client("room-1", 1).await, house.client("room-2", 1).await];
    let serve = |id: &str, account: &str| {
        let mut only = dial("elsewhere");
        only.extensions.insert(OnlyClient { id: id.into(), account: account.into() });
        house.clients.snapshot(&only).iter().map(|client| client.id().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(serve("room-2", "east"), ["room-2"]);
    assert!(serve("room-3", "east").is_empty());
    assert!(serve("room-2", "west").is_empty(), "another account's client goes by that name now");
}

#[tokio::test]
async fn the_flows_of_an_association_stay_with_one_client_and_one_tunnel_while_one_lives() {
    let house = House::new(Config::default());
    let mut echoes = Vec::new();
    for id in ["room-1", "room-2"] {
        for _ in 0..2 {
            echoes.push(house.client(id, 1).await.echo());
        }
    }
    let association = Association::new();
    let flow = || Dial { network: Network::Udp(association), ..dial("blue") };
    assert_eq!(house.clients.snapshot(&flow()).len(), 2);
    let [one, other] = [house.serving("blue").remove(0), house.serving("blue").remove(1)];
    let mut flows = Vec::new();
    for _ in 0..4 {
        flows.push(one.dial(flow()).await.unwrap());
    }
    let mut loads: Vec<_> = one.tunnels().map(|tunnel| tunnel.streams).collect();
    loads.sort_unstable();
    assert_eq!(loads, [0, 4]);
    assert_eq!(house.clients.snapshot(&flow()).len(), 1);
    // A flow that chose before the first was pinned may be asked of another client, and is declined there.
    let error = other.dial(flow()).await.err().unwrap();
    assert!(Fault::of(&*error).is_some_and(|fault| fault.may_ask_another() && !fault.is_failure()));
    drop(flows);
    assert_eq!(house.clients.snapshot(&flow()).len(), 2);
    other.dial(flow()).await.unwrap();
}

#[tokio::test]
async fn an_association_stays_where_it_was_granted_unless_its_first_flow_goes_elsewhere() {
    let house = House::new(Config::default());
    let mut echoes = Vec::new();
    for id in ["room-1", "room-2"] {
        echoes.push(house.client(id, 1).await.echo());
    }
    let association = Association::new();
    let itself = || Dial { target: Target::UNSPECIFIED, network: Network::Udp(association), ..dial("blue") };
    let flow = || Dial { network: Network::Udp(association), ..dial("blue") };
    let [one, other] = [house.serving("blue").remove(0), house.serving("blue").remove(1)];
    let kept = one.dial(itself()).await.unwrap();
    assert_eq!(house.clients.snapshot(&flow())[0].id(), one.id());
    // A layer has sent it to another one, where it has its flows from now on.
    let living = other.dial(flow()).await.unwrap();
    assert_eq!(house.clients.snapshot(&flow())[0].id(), other.id());
    assert!(one.dial(flow()).await.is_err());
    drop(living);
    one.dial(flow()).await.unwrap();
    drop(kept);
    assert_eq!(house.clients.snapshot(&flow()).len(), 2);
}

#[tokio::test]
async fn an_association_has_one_client_of_each_group_that_routes_send_it_to() {
    let house = House::new(Config::default());
    let (mut echoes, mut drivers) = (Vec::new(), Vec::new());
    for (id, group) in [("room-1", "blue"), ("room-2", "blue"), ("lab-1", "green"), ("lab-2", "green")] {
        let peer = house.connect("east", group, ClientHello::new(id, 1)).await.unwrap();
        drivers.push(peer.driver.abort_handle());
        echoes.push(peer.echo());
    }
    house.clients.set_routes(|dial: &Dial| (dial.target.port() == 53).then(|| Arc::from("green")));
    let association = Association::new();
    let flow = |target: Target| {
        let mut dial = Dial::udp(association, target, support::source(), Front::SOCKS5);
        dial.identity = Account::new("alice", ["blue", "green"]).into();
        dial
    };
    let printer = || flow(Target::parse("printer.lan:631").unwrap());
    let dns = || flow(Target::parse("dns.lan:53").unwrap());
    let ids = |dial: Dial| {
        house.clients.snapshot(&dial).iter().map(|client| client.id().to_string()).collect::<Vec<_>>()
    };
    let serve = async |dial: Dial| {
        let client = house.clients.snapshot(&dial).last().cloned().unwrap();
        client.dial(dial).await.unwrap()
    };

    let kept = serve(flow(Target::UNSPECIFIED)).await;
    assert_eq!(ids(dns()), ["lab-1", "lab-2"]);
    let mut living = Vec::new();
    for _ in 0..2 {
        living.extend([serve(printer()).await, serve(dns()).await]);
        assert_eq!((ids(printer()), ids(dns())), (vec!["room-2".into()], vec!["lab-2".into()]));
    }
    // When one leaves, its group's part of the association goes to another of that group.
    drivers[3].abort();
    house.until(|house| house.clients.len() == 3).await;
    let moved = serve(dns()).await;
    assert_eq!((ids(printer()), ids(dns())), (vec!["room-2".into()], vec!["lab-1".into()]));
    drop((moved, living));
    assert_eq!(ids(printer()), ["room-2"], "the association itself is still there");
    drop(kept);
    assert_eq!(ids(printer()), ["room-1", "room-2"]);
}

#[tokio::test]
async fn an_association_is_granted_by_any_group_its_user_holds() {
    let house = House::new(Config::default());
    let _peer = house.client("room-1", 1).await;
    let mut dial = dial("red");
    dial.identity = Account::new("alice", ["red", "blue"]).into();
    assert!(house.clients.snapshot(&dial).is_empty());
    let itself = Dial { target: Target::UNSPECIFIED, network: Network::Udp(Association::new()), ..dial };
    assert_eq!(house.clients.snapshot(&itself).len(), 1);
    house.clients.served(&itself).await;
}

#[tokio::test]
async fn rules_reach_each_tunnel_once_and_before_its_first_open() {
    let house = House::new(Config::default());
    let mut early = house.client("room-1", 1).await;
    house.clients.set_rules([(7, Bytes::from_static(b"rules"))]);
    house.clients.set_rules([(7, Bytes::from_static(b"rules"))]);
    let mut late = house.client("room-2", 1).await;
    for (index, peer) in [&mut early, &mut late].into_iter().enumerate() {
        let client = house.serving("blue").remove(index);
        let dialing = tokio::spawn(client.dial(dial("blue")));
        match peer.requests.next().await {
            Some(Request::Rules { version: 7, rules }) => assert_eq!(rules, "rules"),
            _ => panic!("no rules first"),
        }
        assert!(matches!(peer.requests.next().await, Some(Request::Open(_))));
        dialing.abort();
    }
}

#[tokio::test]
async fn a_client_may_be_waited_for_for_ever() {
    let house = House::build(Config::default(), Clients::new(Duration::MAX), None, 1);
    let mut peer = house.client("room-1", 1).await;
    let dialing = tokio::spawn(house.serving("blue")[0].dial(dial("blue")));
    assert_eq!(next_open(&mut peer).await.open().deadline_ms, u32::MAX);
    dialing.abort();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_is_given_up_and_told() {
    let house = House::build(Config::default(), Clients::new(Duration::from_secs(5)), None, 1);
    let mut peer = house.client("room-1", 1).await;
    let started = Instant::now();
    let dialing = tokio::spawn(house.serving("blue")[0].dial(dial("blue")));
    let mut request = next_open(&mut peer).await;
    assert_eq!(request.open().deadline_ms, 3_333, "two thirds: it is to give up first");
    let error = dialing.await.unwrap().err().unwrap();
    assert_eq!(started.elapsed().as_secs(), 5);
    assert_eq!(Fault::of(&*error), Some(Fault::Unanswered(Outcome::TimedOut)));
    request.cancelled().await;
    assert_eq!(house.serving("blue")[0].load().streams, 0);
}

#[tokio::test(start_paused = true)]
async fn the_journal_knows_who_was_asked_last_whatever_came_of_it() {
    enum End {
        Refused,
        Unanswered,
        UserLeft,
        TunnelLost,
    }
    let house = House::build(Config::default(), Clients::new(Duration::from_secs(5)), None, 1);
    let mut peer = house.client("room-1", 1).await;
    let dial = dial("blue");
    let journal = dial.journal.clone();
    let client = house.serving("blue").remove(0);
    for end in [End::Refused, End::Unanswered, End::UserLeft, End::TunnelLost] {
        let dialing = tokio::spawn(client.clone().dial(dial.clone()));
        let request = next_open(&mut peer).await;
        let reference = request.stream_ref();
        match end {
            End::Refused => request.refuse(OpenErr::new(OpenErrClass::Refused, "")),
            End::Unanswered => {}
            End::UserLeft => dialing.abort(),
            End::TunnelLost => peer.tunnel.close(),
        }
        assert!(!dialing.await.is_ok_and(|answer| answer.is_ok()));
        assert_eq!(journal.stream(), Some(reference));
        assert_eq!(journal.client().as_deref(), Some("room-1"));
    }
    // Nobody heard of this one.
    let dial = self::dial("blue");
    let journal = dial.journal.clone();
    assert!(client.dial(dial).await.is_err());
    assert_eq!(journal.stream(), None);
    assert!(journal.client().is_none());
}

#[tokio::test(start_paused = true)]
async fn r6_a_drain_lets_streams_finish_and_refuses_new_dials() {
    let house = House::new(Config::default());
    let _echo = house.client("room-1", 1).await.echo();
    let client = house.serving("blue").remove(0);
    let mut stream = client.dial(dial("blue")).await.unwrap();
    let clients = house.clients.clone();
    let draining = tokio::spawn(async move { clients.drain(Duration::from_secs(30)).await });
    tokio::task::yield_now().await;
    let error = house.serving("blue")[0].dial(dial("blue")).await.err().unwrap();
    assert!(matches!(Outcome::of(&*error), Outcome::Overloaded { .. }));
    let (code, reason) = go_away(&house, "east", ClientHello::new("room-2", 1)).await;
    assert!(code == GoAwayCode::Shutdown && reason.contains("drains"), "{code} {reason}");
    assert!(!draining.is_finished());
    stream.write_all(b"whole").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"whole");
    drop(stream);
    let ended = Instant::now();
    draining.await.unwrap();
    assert!(ended.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn r6_a_drain_does_not_wait_for_ever() {
    let house = House::new(Config::default());
    let _echo = house.client("room-1", 1).await.echo();
    let mut stream = house.serving("blue")[0].dial(dial("blue")).await.unwrap();
    let started = Instant::now();
    let left = house.clients.drain(Duration::from_secs(30)).await;
    assert_eq!((started.elapsed().as_secs(), left), (30, 1));
    stream.write_all(b"still here").await.unwrap();
    stream.read_exact(&mut [0; 10]).await.unwrap();
    drop(stream);
    assert_eq!(house.clients.drain(Duration::from_secs(30)).await, 0);
}

#[tokio::test]
async fn what_is_no_longer_wanted_is_ended() {
    let house = House::new(Config::default());
    let west = house.connect("west", "blue", ClientHello::new("room-2", 1)).await.unwrap();
    let _peers = [house.client("room-1", 1).await, west];
    house.clients.retain(|account| &**account.name() != "east");
    house.until(|house| house.ids("blue") == ["room-2"]).await;
    // Nor does one come in that had logged in before.
    let late = house.connect("east", "blue", ClientHello::new("room-3", 1)).await.map(drop);
    assert!(late.is_err_and(|error| error.to_string().contains("refused")), "{:?}", house.ids("blue"));
    assert_eq!(house.ids("blue"), ["room-2"]);
}

#[tokio::test(start_paused = true)]
async fn r3_what_another_took_the_place_of_is_ended_with_its_account_too() {
    let house = House::new(Config::default());
    let mut old = house.client("room-1", 1).await;
    let task = old.task.take().unwrap();
    let client = house.serving("blue").remove(0);
    let _echo = old.echo();
    let mut living = client.dial(dial("blue")).await.unwrap();
    let new = house.client("room-1", 2).await;
    // While its account is wanted it may finish what it has, whoever else goes meanwhile.
    house.clients.retain(|account| &**account.name() != "west");
    living.write_all(b"still here").await.unwrap();
    living.read_exact(&mut [0; 10]).await.unwrap();
    // Nor does it matter that the one who took its place has left.
    new.tunnel.close();
    house.until(|house| house.clients.is_empty()).await;
    let revoked = Instant::now();
    house.clients.retain(|account| &**account.name() != "east");
    let error = living.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    task.await.unwrap();
    assert!(revoked.elapsed() < Duration::from_secs(1), "it went on for {:?}", revoked.elapsed());
}

#[tokio::test]
async fn what_another_took_the_place_of_is_known_until_it_ends() {
    let house = House::new(Config::default());
    let known = || {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        house.clients.retain(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            true
        });
        asked.load(Ordering::Relaxed)
    };
    let mut tasks = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut old = house.client("room-1", 1).await;
        tasks.push(old.task.take().unwrap());
        let _echo = old.echo();
    }
    for _ in 0..2 {
        streams.push(house.serving("blue")[0].dial(dial("blue")).await.unwrap());
    }
    let _new = house.client("room-1", 2).await;
    assert_eq!(known(), 3);
    drop(streams);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(known(), 1);
}

#[tokio::test]
async fn who_is_refused_at_the_last_moment_is_told_to_go() {
    let house = House::new(Config::default());
    // Wanted when the hello is judged, and no longer when the tunnel is registered.
    let judged = AtomicBool::new(false);
    house.clients.retain(move |_| !judged.swap(true, Ordering::Relaxed));
    let mut peer = house.client("room-1", 1).await;
    let Some(Request::GoAway(go_away)) = peer.requests.next().await else { panic!("not told") };
    assert_eq!(go_away.code, GoAwayCode::Refused);
    assert!(house.clients.is_empty());
    peer.task.unwrap().await.unwrap();
}

#[tokio::test]
async fn an_association_goes_to_the_next_group_while_the_first_one_s_client_drains() {
    let house = House::new(Config::default());
    let mut blue = house.client("room-1", 1).await;
    let _green = house.connect("east", "green", ClientHello::new("room-2", 2)).await.unwrap();
    let dialling = house.serving("blue")[0].clone().dial(dial("blue"));
    let dialling = tokio::spawn(dialling);
    let Some(Request::Open(request)) = blue.requests.next().await else { panic!("no open") };
    let _far = request.accept(OpenOk::default());
    let _near = dialling.await.unwrap().unwrap();
    // It lives on for its stream, and takes no more.
    blue.tunnel.drain();
    let mut dial = Dial::associate(Association::new(), support::source(), Front::SOCKS5);
    dial.identity = Account::new("alice", ["blue", "green"]).into();
    let goes_on =
        house.until(|house| house.clients.snapshot(&dial).iter().any(|client| **client.id() == *"room-2"));
    tokio::time::timeout(Duration::from_secs(5), goes_on).await.expect("the other group's client");
}
