//! What every test of a hostile peer has: somebody honest who must not notice, and the bill afterwards.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyproxy_mock_peer::frame::{
    ClientHello, Open, OpenOk, ResetCode, StreamFrame, StreamId, ToClient, ToGateway,
};
use anyproxy_mock_peer::{Account, MockGateway, Peer, client};
use anyproxy_tests::{Options, Program, Result, Stage, Target, Way, head, tunnel, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The hostile client's account, which serves a group of its own.
pub(crate) const MALLORY: Account<'_> = Account { user: "mallory", password: "pw", group: "hostile" };

/// How long an honest user's round may take beside any attack, on a machine that runs other tests too.
const HONEST_ROUND: Duration = Duration::from_secs(5);

/// A stage with an honest user, and room for a hostile client and those users it is to serve.
pub(crate) struct Siege {
    pub(crate) stage: Arc<Stage>,
    honest: Honest,
}

impl Siege {
    pub(crate) async fn start() -> Result<Self> {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Result<Self> {
        let stage = Stage::with(&Options {
            http: format!("{}, users: [{{ username: victim, password: pw, group: hostile }}]", options.http),
            gateway: format!(
                "{}\n  clients: [{{ username: mallory, password: pw, groups: [hostile] }}]",
                options.gateway
            ),
            ..options
        })?;
        let stage = Arc::new(stage);
        let honest = Honest::start(stage.clone(), 1).await?;
        Ok(Self { stage, honest })
    }

    /// Where clients connect to.
    pub(crate) fn gateway(&self) -> Result<SocketAddr> {
        self.stage.gateway.listening("gateway")
    }

    /// The hostile client's tunnel.
    pub(crate) async fn join(&self) -> Result<Peer> {
        client::join(self.gateway()?, &MALLORY, "evil").await
    }

    /// The same by a hello of the test's own.
    pub(crate) async fn join_with(&self, hello: ClientHello) -> Result<Peer> {
        Ok(client::join_with(self.gateway()?, &MALLORY, hello).await?.0)
    }

    /// A user of the hostile client's group who asks for a target; the head of the answer, and what is behind it.
    pub(crate) fn ask(&self) -> JoinHandle<Result<(String, TcpStream)>> {
        let http = self.stage.http_addr();
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(http).await?;
            stream
                .write_all(
                    b"CONNECT target:80 HTTP/1.1\r\nHost: target:80\r\nProxy-Authorization: Basic dmljdGltOnB3\r\n\r\n",
                )
                .await?;
            Ok((head(&mut stream).await?, stream))
        })
    }

    /// A stream that the hostile client has accepted: the user's end, and its number.
    pub(crate) async fn stream(&self, peer: &mut Peer) -> Result<(TcpStream, StreamId)> {
        let user = self.ask();
        let id = accept(peer).await?;
        let (head, stream) = user.await??;
        if head.starts_with("HTTP/1.1 200 ") { Ok((stream, id)) } else { Err(head.into()) }
    }

    /// The honest user has noticed nothing, and the gateway has held no more than `mib` for it.
    pub(crate) async fn over(self, cost: &Cost, mib: u64) -> Result {
        let grown = cost.grown_kib(&self.stage.gateway)?;
        self.honest.noticed_nothing(&self.stage).await?;
        assert!(grown <= mib << 10, "{grown} KiB more at the worst");
        Ok(())
    }
}

/// Answers the next open with yes.
pub(crate) async fn accept(peer: &mut Peer) -> Result<StreamId> {
    let (id, _) = opened(peer).await?;
    peer.send(&ToGateway::OpenOk(id, OpenOk::default())).await?;
    Ok(id)
}

/// The next open.
pub(crate) async fn opened(peer: &mut Peer) -> Result<(StreamId, Box<Open>)> {
    peer.wait(|frame| match frame {
        ToClient::Open(id, open) => Some((*id, open.clone())),
        _ => None,
    })
    .await
}

/// The code of the reset that comes on a stream.
pub(crate) async fn reset(peer: &mut Peer, id: StreamId) -> Result<ResetCode> {
    peer.wait(|frame| match frame {
        ToClient::Stream(on, StreamFrame::Reset(code)) if *on == id => Some(*code),
        _ => None,
    })
    .await
}

/// The tunnel still stands: a ping is answered.
pub(crate) async fn is_answered(peer: &mut Peer) -> Result {
    peer.send(&ToGateway::Ping(4_711)).await?;
    peer.wait(|frame| matches!(frame, ToClient::Pong(4_711)).then_some(())).await
}

// === Honest ===

/// A user who keeps a stream, and opens another all the time, through the honest client.
pub(crate) struct Honest {
    /// How many the honest client had opened by then.
    tunnels: usize,
    stop: watch::Sender<bool>,
    rounds: JoinHandle<Result<Vec<Duration>>>,
}

impl Honest {
    /// Begins once the gateway has told of so many tunnels of the honest client.
    pub(crate) async fn start(stage: Arc<Stage>, connected: usize) -> Result<Self> {
        until("the honest client is connected", async || Ok(tunnels(&stage) == connected)).await?;
        let target = Target::echo().await?;
        let mut kept = tunnel(&stage, Way::Socks5, target.addr()).await?;
        let (stop, mut stopped) = watch::channel(false);
        let rounds = tokio::spawn(async move {
            let mut rounds = Vec::new();
            loop {
                let begun = Instant::now();
                echo(&mut kept, b"the kept one")
                    .await
                    .map_err(|error| format!("the kept stream: {error}"))?;
                let mut fresh = tunnel(&stage, Way::Connect, target.addr()).await?;
                echo(&mut fresh, b"the fresh one").await.map_err(|error| format!("a new stream: {error}"))?;
                rounds.push(begun.elapsed());
                if *stopped.borrow() {
                    return Ok(rounds);
                }
                // A short breath: the point is that it is served, not how fast.
                let _ = tokio::time::timeout(Duration::from_millis(20), stopped.changed()).await;
            }
        });
        Ok(Self { tunnels: connected, stop, rounds })
    }

    /// One more round, and then: each was served, in time, and by a tunnel that never broke.
    pub(crate) async fn noticed_nothing(self, stage: &Stage) -> Result {
        self.stop.send_replace(true);
        let mut rounds = self.rounds.await??;
        rounds.sort_unstable();
        let slowest = rounds.last().copied().unwrap_or_default();
        println!(
            "{} honest rounds, median {:?}, slowest {slowest:?}",
            rounds.len(),
            rounds[rounds.len() / 2]
        );
        assert!(slowest < HONEST_ROUND, "an honest user waited for {slowest:?}");
        assert_eq!(tunnels(stage), self.tunnels, "the honest client had to connect again");
        Ok(())
    }
}

/// How many tunnels of the honest client the gateway has seen.
fn tunnels(stage: &Stage) -> usize {
    let lines = stage.gateway.lines();
    lines.iter().filter(|line| line.contains("client connected") && line.contains("client-1")).count()
}

pub(crate) async fn echo(stream: &mut TcpStream, bytes: &[u8]) -> Result {
    stream.write_all(bytes).await?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).await?;
    if back == bytes { Ok(()) } else { Err("other bytes came back".into()) }
}

// === Besieged ===

/// A client of the honest gateway that is also one of hostile ones.
pub(crate) struct Besieged {
    pub(crate) stage: Arc<Stage>,
    pub(crate) client: Program,
    evil: Vec<MockGateway>,
    honest: Honest,
}

impl Besieged {
    /// With so many hostile gateways; a client comes back to each at leisure, so a test has one for each attack.
    pub(crate) async fn start(gateways: usize) -> Result<Self> {
        Self::with(gateways, Options::default()).await
    }

    pub(crate) async fn with(gateways: usize, options: Options) -> Result<Self> {
        let mut stage = Stage::with(&options)?;
        stage.client.kill()?;
        let mut evil = Vec::new();
        for _ in 0..gateways {
            let (cert, key) = (stage.dir().join("server.crt"), stage.dir().join("server.key"));
            evil.push(MockGateway::bind(&cert, &key).await?);
        }
        let honest = format!("localhost:{}", stage.gateway.listening("gateway")?.port());
        let mut all = vec![honest.clone()];
        for gateway in &evil {
            all.push(format!("localhost:{}", gateway.port()?));
        }
        let file = stage.dir().join("besieged.yaml");
        let text = std::fs::read_to_string(stage.file())?;
        let keys = format!("gateway_addr: {honest}");
        std::fs::write(&file, text.replace(&keys, &format!("gateway_addr: [{}]", all.join(", "))))?;
        let client = Program::start(&["client", "--config", &file.display().to_string()])?;
        // The one tunnel that the honest gateway has said hello on.
        client.line("the honest tunnel", |line| {
            line["message"] == "a tunnel to the gateway stands" && line["gateway"] == honest.as_str()
        })?;
        let stage = Arc::new(stage);
        // One by the client that came with the stage, and one by this.
        let honest = Honest::start(stage.clone(), 2).await?;
        Ok(Self { stage, client, evil, honest })
    }

    /// A hostile gateway that nobody was attacked from yet.
    pub(crate) fn gateway(&mut self) -> Result<MockGateway> {
        self.evil.pop().ok_or_else(|| "not enough gateways".into())
    }

    /// A tunnel of one.
    pub(crate) async fn join(&mut self) -> Result<Peer> {
        Ok(self.gateway()?.join().await?.0)
    }

    /// The honest user has noticed nothing, and the client has held no more than `mib` for it.
    pub(crate) async fn over(self, cost: &Cost, mib: u64) -> Result {
        let grown = cost.grown_kib(&self.client)?;
        self.honest.noticed_nothing(&self.stage).await?;
        assert!(grown <= mib << 10, "{grown} KiB more at the worst");
        Ok(())
    }
}

// === Cost ===

/// What a program had when the attack began.
pub(crate) struct Cost {
    resident_kib: u64,
    cpu: Duration,
}

impl Cost {
    pub(crate) fn begin(program: &Program) -> Result<Self> {
        // Sets the high-water mark of its memory back to what it has now.
        std::fs::write(format!("/proc/{}/clear_refs", program.id()), "5")?;
        Ok(Self { resident_kib: program.resident_kib()?, cpu: cpu(program)? })
    }

    /// How much more memory it had at the worst.
    pub(crate) fn grown_kib(&self, program: &Program) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", program.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
        let most: u64 = line.trim().trim_end_matches(" kB").parse()?;
        let grown = most.saturating_sub(self.resident_kib);
        println!("{grown} KiB more at the worst, {:?} of processor", self.cpu(program)?);
        Ok(grown)
    }

    /// How long it has kept a processor busy.
    pub(crate) fn cpu(&self, program: &Program) -> Result<Duration> {
        Ok(cpu(program)?.saturating_sub(self.cpu))
    }
}

/// User and system time (proc(5): fields 14 and 15, in hundredths of a second).
fn cpu(program: &Program) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", program.id()))?;
    let fields = stat.rsplit_once(") ").ok_or("a name")?.1;
    let ticks: Vec<u64> =
        fields.split(' ').skip(11).take(2).map(str::parse).collect::<std::result::Result<_, _>>()?;
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
}
