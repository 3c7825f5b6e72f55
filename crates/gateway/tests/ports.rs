//! Ports that clients ask for.

mod support;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::time::Duration;

use anyproxy_core::{BoxError, Dial, DialService as _, Endpoints as _, Front, Outcome};
use anyproxy_front::RelayConfig;
use anyproxy_gateway::{Clients, Config, Ports};
use anyproxy_tunnel::frame::{
    ClientHello, OpenErr, OpenErrClass, OpenOk, PortRequest, PortStatus, Transport,
};
use anyproxy_tunnel::{Memory, OpenRequest, Request};
use support::House;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, BufStream, DuplexStream};
use tokio::net::{TcpStream, UdpSocket};

/// The stack of these tests: the first client that may.
fn house(port: u16) -> (House, Ports) {
    let clients = Clients::default();
    let registry = clients.clone();
    let dials = tower::service_fn(move |dial: Dial| {
        assert_eq!(dial.identity.user(), Some("port:east"));
        assert_eq!(dial.front, Front::PORT);
        let client = registry.snapshot(&dial).first().cloned();
        async move { client.ok_or_else(|| BoxError::from(Outcome::NoClient))?.dial(dial).await }
    });
    let ports = Ports::new(Ipv4Addr::LOCALHOST.into(), dials, RelayConfig::default());
    (House::build(Config::default(), clients, Some(ports.clone()), port), ports)
}

fn free_port() -> u16 {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound port").port()
}

fn hello(id: &str, port: u16, transport: Transport) -> ClientHello {
    ClientHello { ports: vec![PortRequest { port, transport }], ..ClientHello::new(id, 1) }
}

#[tokio::test]
async fn a_connection_to_a_granted_port_is_a_dial_to_its_client_alone() {
    let port = free_port();
    let (house, ports) = house(port);
    let _other = house.client("another", 1).await;
    let mut peer = house.connect("east", "green", hello("ssh", port, Transport::Tcp)).await.unwrap();
    assert_eq!(peer.hello.ports[0].status, PortStatus::Open);
    assert_eq!(ports.open(), [(port, "tcp", "ssh".into())]);
    let mut user = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let Some(Request::Open(request)) = peer.requests.next().await else { panic!("no open") };
    assert_eq!((request.open().port, &*request.open().front), (port, "port"));
    let mut far = request.accept(OpenOk::default());
    far.write_all(b"SSH-2.0-x").await.unwrap();
    let mut banner = [0; 9];
    user.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"SSH-2.0-x");
}

/// A user of a client's port who has ended with nothing said, and the dial that waits; with what both live by.
async fn ended_first() -> (TcpStream, OpenRequest, impl Sized) {
    let port = free_port();
    let (house, ports) = house(port);
    let mut peer =
        house.connect("east", "green", hello("ssh", port, Transport::Tcp)).await.expect("is let in");
    let mut user = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("it listens");
    let Some(Request::Open(request)) = peer.requests.next().await else { panic!("no open") };
    user.shutdown().await.expect("ends");
    // Time is paused: it passes when nobody has anything to do, and so has heard of the end.
    tokio::time::sleep(Duration::from_millis(1)).await;
    (user, request, (house, ports, peer))
}

#[tokio::test(start_paused = true)]
async fn a_user_of_a_port_may_end_before_the_dial_is_done() {
    let (mut user, request, _alive) = ended_first().await;
    let mut far = request.accept(OpenOk::default());
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.unwrap();
    assert!(heard.is_empty());
    far.write_all(b"SSH-2.0-x").await.unwrap();
    far.shutdown().await.unwrap();
    user.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"SSH-2.0-x");
}

#[tokio::test(start_paused = true)]
async fn a_user_of_a_port_whose_dial_fails_is_reset_though_they_ended_first() {
    let (mut user, request, _alive) = ended_first().await;
    request.refuse(OpenErr::new(OpenErrClass::Refused, "no printer"));
    let error = user.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_port_has_no_more_connections_than_its_listener_takes() {
    let port = free_port();
    let clients = Clients::default();
    let dials =
        tower::service_fn(|_: Dial| std::future::pending::<Result<BufStream<DuplexStream>, BoxError>>());
    let (address, relay) = (Ipv4Addr::LOCALHOST.into(), RelayConfig::default());
    let ports = Ports::with_listener(address, dials, relay, |listener| listener.with_max_connections(1));
    let house = House::build(Config::default(), clients, Some(ports), port);
    let _peer = house.connect("east", "blue", hello("ssh", port, Transport::Tcp)).await.unwrap();
    let first = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    // It may be reset before it knows that it is connected.
    let second = async { TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?.read_u8().await };
    let second = tokio::time::timeout(Duration::from_secs(5), second).await.expect("an end");
    assert!(second.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    assert!(first.try_read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
}

#[tokio::test]
async fn ports_are_refused_to_accounts_that_may_not_and_where_somebody_has_them() {
    let port = free_port();
    let (house, _ports) = house(port);
    let status = async |account: &str, hello: ClientHello| {
        let peer = house.connect(account, "blue", hello).await.unwrap();
        let status = peer.hello.ports[0].status;
        (peer, status)
    };
    let (_holder, granted) = status("east", hello("ssh", port, Transport::Tcp)).await;
    assert_eq!(granted, PortStatus::Open);
    let (_replica, granted) = status("east", hello("ssh", port, Transport::Tcp)).await;
    assert_eq!(granted, PortStatus::Open, "of the same client");
    assert_eq!(status("east", hello("other", port, Transport::Tcp)).await.1, PortStatus::Taken);
    assert_eq!(status("west", hello("west", port, Transport::Tcp)).await.1, PortStatus::Denied);
    assert_eq!(status("east", hello("third", 1, Transport::Tcp)).await.1, PortStatus::Denied);
}

#[tokio::test]
async fn a_port_of_another_program_is_taken() {
    let holder = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = holder.local_addr().unwrap().port();
    let (house, _ports) = house(port);
    let peer = house.connect("east", "blue", hello("ssh", port, Transport::Tcp)).await.unwrap();
    assert_eq!(peer.hello.ports[0].status, PortStatus::Taken);
}

#[tokio::test(start_paused = true)]
async fn a_port_outlives_a_reconnect_and_closes_when_its_client_stays_away() {
    let port = free_port();
    let (house, ports) = house(port);
    for _ in 0..2 {
        let peer = house.connect("east", "blue", hello("ssh", port, Transport::Tcp)).await.unwrap();
        assert_eq!(peer.hello.ports[0].status, PortStatus::Open);
        peer.tunnel.close();
        house.until(|house| house.clients.is_empty()).await;
        assert_eq!(ports.open().len(), 1);
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(ports.open().is_empty());
    house.until(|_| StdListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn a_port_that_somebody_else_had_is_opened_when_it_is_free() {
    let port = free_port();
    let (house, ports) = house(port);
    // Time is paused, and passes where everybody waits.
    let is_opened_for = async |wanted: &str| {
        let opened = async {
            while !ports.open().iter().any(|(_, _, client)| &**client == wanted) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), opened).await.expect("it is opened");
    };
    let holder = house.connect("east", "blue", hello("pod-1", port, Transport::Tcp)).await.unwrap();
    let mut next = house.connect("east", "blue", hello("pod-2", port, Transport::Tcp)).await.unwrap();
    assert_eq!(next.hello.ports[0].status, PortStatus::Taken);
    holder.tunnel.close();
    is_opened_for("pod-2").await;
    let _user = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let Some(Request::Open(request)) = next.requests.next().await else { panic!("no open") };
    assert_eq!(request.open().port, port);

    // So is one that another program had.
    next.tunnel.close();
    while !ports.open().is_empty() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let program = StdListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let last = house.connect("east", "blue", hello("pod-3", port, Transport::Tcp)).await.unwrap();
    assert_eq!(last.hello.ports[0].status, PortStatus::Taken);
    drop(program);
    is_opened_for("pod-3").await;
}

#[tokio::test]
async fn a_port_whose_client_is_away_is_not_served_by_another_account_s_of_that_name() {
    let port = free_port();
    let (house, _ports) = house(port);
    let peer = house.connect("east", "blue", hello("ssh", port, Transport::Tcp)).await.unwrap();
    peer.tunnel.close();
    house.until(|house| house.clients.is_empty()).await;
    let mut other = house.connect("north", "blue", hello("ssh", port, Transport::Tcp)).await.unwrap();
    assert_eq!(other.hello.ports[0].status, PortStatus::Taken);
    let mut user = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let mut byte = [0];
    tokio::select! {
        read = user.read(&mut byte) => assert!(read.is_err(), "reset: nobody may serve it"),
        request = other.requests.next() => panic!("{request:?}"),
    }
}

#[tokio::test]
async fn datagrams_to_a_granted_port_are_flows_one_for_each_sender() {
    let port = free_port();
    let (house, _ports) = house(port);
    let mut peer = house.connect("east", "blue", hello("dns", port, Transport::Udp)).await.unwrap();
    assert_eq!(peer.hello.ports[0].status, PortStatus::Open);
    let senders = [udp().await, udp().await];
    let echo = tokio::spawn(async move {
        let mut flows = Vec::new();
        while let Some(request) = peer.requests.next().await {
            if let Request::Open(request) = request {
                let (mut read, mut write) = tokio::io::split(request.accept(OpenOk::default()));
                flows.push(tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await }));
            }
        }
    });
    for (index, sender) in senders.iter().enumerate() {
        for payload in [format!("from {index}"), String::new(), "x".repeat(1_400)] {
            sender.send_to(payload.as_bytes(), (Ipv4Addr::LOCALHOST, port)).await.unwrap();
            let mut buf = [0; 2_000];
            let (length, _) = sender.recv_from(&mut buf).await.unwrap();
            assert_eq!(&buf[..length], payload.as_bytes());
        }
    }
    echo.abort();
}

#[tokio::test]
async fn what_waits_for_the_dials_of_a_udp_port_counts_in_the_process_s_memory() {
    let port = free_port();
    let mut config = Config::default();
    config.tunnel.memory = Memory::new(1 << 20);
    let memory = config.tunnel.memory.clone();
    let dials =
        tower::service_fn(|_: Dial| std::future::pending::<Result<BufStream<DuplexStream>, BoxError>>());
    let ports = Ports::new(Ipv4Addr::LOCALHOST.into(), dials, RelayConfig::default());
    let house = House::build(config, Clients::default(), Some(ports.clone()), port);
    let _peer = house.connect("east", "blue", hello("dns", port, Transport::Udp)).await.unwrap();
    let (sender, before) = (udp().await, memory.used());
    sender.send_to(&[0; 10_000], (Ipv4Addr::LOCALHOST, port)).await.unwrap();
    house.until(|_| memory.used() == before + 10_000).await;
    memory.take(1 << 20);
    sender.send_to(&[0; 10_000], (Ipv4Addr::LOCALHOST, port)).await.unwrap();
    house.until(|_| ports.udp_drops().any(|dropped| dropped == ("full", 1))).await;
}

#[tokio::test]
async fn the_rest_of_a_datagram_that_a_stream_took_in_part_waits_for_no_other() {
    let port = free_port();
    let (streams, mut targets) = tokio::sync::mpsc::unbounded_channel();
    let dials = tower::service_fn(move |_: Dial| {
        // Its way takes four bytes at once.
        let (near, far) = tokio::io::duplex(4);
        streams.send(far).unwrap();
        async move { Ok::<_, BoxError>(BufReader::new(near)) }
    });
    let ports = Ports::new(Ipv4Addr::LOCALHOST.into(), dials, RelayConfig::default());
    let house = House::build(Config::default(), Clients::default(), Some(ports), port);
    let _peer = house.connect("east", "blue", hello("dns", port, Transport::Udp)).await.unwrap();
    let sender = udp().await;
    sender.send_to(b"question", (Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let mut target = targets.recv().await.unwrap();
    let mut framed = [0; 10];
    let read = tokio::time::timeout(Duration::from_secs(5), target.read_exact(&mut framed)).await;
    read.expect("the whole datagram").unwrap();
    assert_eq!(&framed, b"\0\x08question");
}

#[tokio::test]
async fn a_port_is_of_the_group_that_its_client_serves_now() {
    let port = free_port();
    let clients = Clients::default();
    let (seen, mut groups) = tokio::sync::mpsc::unbounded_channel();
    let dials = tower::service_fn(move |dial: Dial| {
        seen.send(dial.identity.group().to_owned()).unwrap();
        async move { Err::<BufReader<DuplexStream>, _>(BoxError::from(Outcome::NoClient)) }
    });
    let ports = Ports::new(Ipv4Addr::LOCALHOST.into(), dials, RelayConfig::default());
    let house = House::build(Config::default(), clients, Some(ports), port);
    for group in ["blue", "green", "blue"] {
        let peer = house.connect("east", group, hello("ssh", port, Transport::Tcp)).await.unwrap();
        assert_eq!(peer.hello.ports[0].status, PortStatus::Open);
        let _user = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        assert_eq!(groups.recv().await.unwrap(), group);
        peer.tunnel.close();
        house.until(|house| house.clients.is_empty()).await;
    }
}

#[tokio::test]
async fn i8_a_user_who_leaves_a_port_gives_up_the_dial() {
    let port = free_port();
    let (gone, mut given_up) = tokio::sync::mpsc::channel::<()>(1);
    let dials = tower::service_fn(move |_: Dial| {
        let gone = gone.clone();
        async move {
            gone.send(()).await.unwrap();
            std::future::pending::<Result<BufReader<DuplexStream>, BoxError>>().await
        }
    });
    let ports = Ports::new(Ipv4Addr::LOCALHOST.into(), dials, RelayConfig::default());
    let house = House::build(Config::default(), Clients::default(), Some(ports), port);
    let _peer = house.connect("east", "blue", hello("ssh", port, Transport::Tcp)).await.unwrap();
    let user = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    given_up.recv().await.unwrap();
    let dials = given_up.sender_strong_count();
    // An end would be that of what they say, and no more.
    user.set_zero_linger().unwrap();
    drop(user);
    while given_up.sender_strong_count() == dials {
        tokio::task::yield_now().await;
    }
}

async fn udp() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port")
}
