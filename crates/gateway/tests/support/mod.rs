//! A gateway with two accounts, and clients that reach it through pipes.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

use std::net::SocketAddr;
use std::sync::Arc;

use anyproxy_core::{Account, Dial, Endpoints as _, Front, Login, Outcome, Target};
use anyproxy_gateway::{Authenticate, Client, ClientAccount, Clients, Config, Gateway, Ports};
use anyproxy_tunnel::frame::{ClientHello, GatewayHello, OpenOk};
use anyproxy_tunnel::upgrade::SUBPROTOCOL;
use anyproxy_tunnel::{
    ClientTunnel, CloseReason, Config as TunnelConfig, Request, Requests, TunnelError, UpgradeError,
    WebSocket,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::{JoinHandle, JoinSet};

pub fn source() -> SocketAddr {
    ([192, 0, 2, 7], 40_000).into()
}

/// `east` may serve blue and green, `north` blue, and both may open one port; `west` may serve blue. The password is the name.
pub fn accounts(port: u16) -> impl Authenticate {
    let east = ClientAccount::new("east", ["blue", "green"]).with_open_ports([port..=port]);
    let north = ClientAccount::new("north", ["blue"]).with_open_ports([port..=port]);
    let accounts = Arc::new([east, north, ClientAccount::new("west", ["blue"])].map(Arc::new));
    tower::service_fn(move |login: Login| {
        let accounts = accounts.clone();
        async move {
            let credentials = login.credentials.ok_or(Outcome::LoginRequired)?;
            let known = accounts.iter().find(|account| {
                **account.name() == *credentials.username
                    && credentials.password.expose_secret() == &**account.name()
            });
            known.cloned().ok_or(Outcome::LoginRequired)
        }
    })
}

/// A gateway and the tasks of its connections.
pub struct House {
    pub clients: Clients,
    serve: Box<dyn Fn(DuplexStream) -> JoinHandle<()>>,
}

impl House {
    pub fn new(config: Config) -> Self {
        Self::build(config, Clients::default(), None, 1)
    }

    pub fn build(config: Config, clients: Clients, ports: Option<Ports>, port: u16) -> Self {
        let gateway = match ports {
            None => Gateway::new(accounts(port), clients.clone(), config),
            Some(ports) => Gateway::with_ports(accounts(port), clients.clone(), config, ports),
        };
        let serve = Box::new(move |io| {
            let gateway = gateway.clone();
            tokio::spawn(async move { gateway.serve_connection(io, source()).await })
        });
        Self { clients, serve }
    }

    /// A pipe to the gateway; nothing was said on it yet.
    pub fn pipe(&self) -> DuplexStream {
        self.pipe_and_task().0
    }

    pub fn pipe_and_task(&self) -> (DuplexStream, JoinHandle<()>) {
        let (near, far) = duplex(64 * 1024);
        let task = (self.serve)(far);
        (near, task)
    }

    /// What the gateway answers to raw bytes, until it closes.
    pub async fn answer(&self, bytes: &[u8]) -> String {
        let mut pipe = self.pipe();
        // It may answer and close before it has read everything.
        let _ = pipe.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = pipe.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub async fn upgrade(&self, account: &str, group: &str) -> Result<WebSocket<DuplexStream>, UpgradeError> {
        WebSocket::connect(self.pipe(), request(account, group)).await
    }

    pub async fn connect(&self, account: &str, group: &str, hello: ClientHello) -> Result<Peer, TunnelError> {
        let (pipe, task) = self.pipe_and_task();
        let carrier = WebSocket::connect(pipe, request(account, group)).await.expect("an upgrade");
        let (tunnel, requests, hello, driver) =
            anyproxy_tunnel::connect(carrier, hello, TunnelConfig::default()).await?;
        Ok(Peer { tunnel, requests, hello, driver: tokio::spawn(driver), task: Some(task) })
    }

    /// A client of account `east` in group blue.
    pub async fn client(&self, id: &str, instance: u128) -> Peer {
        self.connect("east", "blue", ClientHello::new(id, instance)).await.expect("a tunnel")
    }

    /// Those who may serve a user of the group now.
    pub fn serving(&self, group: &str) -> Vec<Client> {
        self.clients.snapshot(&dial(group)).to_vec()
    }

    pub fn ids(&self, group: &str) -> Vec<String> {
        self.serving(group).iter().map(|client| client.id().to_string()).collect()
    }

    /// Waits until a condition of the registry holds.
    pub async fn until(&self, mut holds: impl FnMut(&Self) -> bool) {
        while !holds(self) {
            tokio::task::yield_now().await;
        }
    }
}

/// A client's end of one tunnel.
pub struct Peer {
    pub tunnel: ClientTunnel,
    pub requests: Requests,
    pub hello: GatewayHello,
    pub driver: JoinHandle<CloseReason>,
    /// The gateway's end, where it is known.
    pub task: Option<JoinHandle<()>>,
}

impl Peer {
    /// Serves every open by sending its own words back.
    pub fn echo(mut self) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut streams = JoinSet::new();
            while let Some(request) = self.requests.next().await {
                if let Request::Open(request) = request {
                    let (mut read, mut write) = tokio::io::split(request.accept(OpenOk::default()));
                    streams.spawn(async move {
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                        let _ = write.shutdown().await;
                    });
                }
            }
        })
    }
}

pub fn request(account: &str, group: &str) -> http::Request<()> {
    let basic = format!("Basic {}", STANDARD.encode(format!("{account}:{account}")));
    http::Request::get("wss://gw.example/ws")
        .header("authorization", basic)
        .header("sec-websocket-protocol", SUBPROTOCOL)
        .header("anyproxy-group", group)
        .body(())
        .expect("a request")
}

pub fn dial(group: &str) -> Dial {
    let mut dial = Dial::tcp(Target::parse("printer.lan:631").expect("a target"), source(), Front::HTTP);
    dial.identity = Account::new("alice", [group]).into();
    dial
}
