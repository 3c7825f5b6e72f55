use std::error::Error;
use std::fmt;
use std::time::Duration;

use anyproxy_acl::Policy;
use anyproxy_core::{Credentials, DEFAULT_GROUP, Host, Target};
use anyproxy_tunnel::frame::{MAX_CLIENT_ID, MAX_GROUP, MAX_PORTS, PortRequest, Transport};
use anyproxy_workers::Seats;
use rustls::pki_types::ServerName;

use crate::ClientTls;

/// The most tunnels to one gateway.
pub const MAX_REPLICAS: usize = 64;

/// What a client is told at its start. [`Client::new`](crate::Client::new) checks it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Config {
    /// The gateways: a set of tunnels is kept to each. Names are resolved anew for every connection.
    pub gateways: Vec<Target>,
    /// The name that the gateways' certificates must have; `None` = the host each is dialled by.
    pub server_name: Option<ServerName<'static>>,
    /// How gateways are recognised.
    pub tls: ClientTls,
    /// The name of this client, the same over all its tunnels and restarts. Two processes that run at once under
    /// one name take each other's place.
    pub client_id: String,
    /// The group whose users this client serves (default: `default`).
    pub group: String,
    /// Tunnels to keep to each gateway (default: 1). More use more cores, and survive the loss of one connection
    /// without a gap.
    pub replicas: Replicas,
    /// What the client logs in with.
    pub credentials: Credentials,
    /// What may be dialled (default: everything), judged by target and network alone: what a gateway says of the user
    /// cannot widen it. The client always [guards](Policy::guarded) it. Can be swapped later, by
    /// [`Handle::set_rules`](crate::Handle::set_rules).
    pub rules: Policy,
    /// Ports that the gateways are asked to listen on for this client (default: none).
    pub open_ports: Vec<OpenPort>,
    /// How long reaching a target may take, name lookup included, and reaching a gateway (default: 10 s).
    pub connect_timeout: Duration,
    /// How long TLS, the upgrade and the hellos with a gateway may take, together (default: 10 s).
    pub handshake_timeout: Duration,
    /// How long a stream may be without a byte in either direction (default: 1 h); `None` = for ever.
    pub idle_timeout: Option<Duration>,
    /// The same once one direction has ended (default: 10 min); `None` = only `idle_timeout` counts.
    pub half_closed_timeout: Option<Duration>,
    /// How long a flow of datagrams may be without one *from* the user (default: 120 s; RFC 4787 section 4.3).
    pub udp_idle_timeout: Duration,
    /// While so many descriptors are open in this process, none is taken for a target: opens, of streams, of datagrams and of
    /// names to look up, are refused as overloaded, so that a gateway may ask another client (default: `usize::MAX`). What
    /// the system grants beyond is for tunnels, gateways' names and whatever else the process does. On Unix alone.
    pub max_descriptors: usize,
    /// How long living streams may go on once the client is told to stop (default: 30 s).
    pub drain_timeout: Duration,
    /// The threads that tunnels are put on (default: `None`, that of [`run`](crate::Client::run)). The streams of a
    /// tunnel, and the targets they lead to, are served where it is.
    pub seats: Option<Seats>,
    /// The limits of each tunnel, its pings among them.
    pub tunnel: anyproxy_tunnel::Config,
}

impl Config {
    /// A client of these gateways with everything else as its default.
    pub fn new(
        gateways: Vec<Target>,
        tls: ClientTls,
        client_id: impl Into<String>,
        credentials: Credentials,
    ) -> Self {
        Self {
            gateways,
            server_name: None,
            tls,
            client_id: client_id.into(),
            group: DEFAULT_GROUP.to_owned(),
            replicas: Replicas::exactly(1),
            credentials,
            rules: Policy::default(),
            open_ports: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_secs(60 * 60)),
            half_closed_timeout: Some(Duration::from_secs(10 * 60)),
            udp_idle_timeout: Duration::from_secs(120),
            max_descriptors: usize::MAX,
            drain_timeout: Duration::from_secs(30),
            seats: None,
            tunnel: anyproxy_tunnel::Config::default(),
        }
    }

    /// Whether a client can work with it.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let check = |ok: bool, error| if ok { Ok(()) } else { Err(error) };
        check(!self.gateways.is_empty(), InvalidConfig::NoGateway)?;
        let is_word = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
        check(is_word(&self.client_id) && self.client_id.len() <= MAX_CLIENT_ID, InvalidConfig::ClientId)?;
        check(is_word(&self.group) && self.group.len() <= MAX_GROUP, InvalidConfig::Group)?;
        let Replicas { min, max } = self.replicas;
        check(1 <= min && min <= max && max <= MAX_REPLICAS, InvalidConfig::Replicas)?;
        check(!self.credentials.username.contains(':'), InvalidConfig::Username)?;
        check(self.open_ports.len() <= MAX_PORTS, InvalidConfig::TooManyPorts)?;
        for (index, port) in self.open_ports.iter().enumerate() {
            check(port.remote_port != 0, InvalidConfig::Port(0))?;
            let repeated = self.open_ports[..index].iter().any(|other| other.request() == port.request());
            check(!repeated, InvalidConfig::Port(port.remote_port))?;
        }
        for gateway in &self.gateways {
            self.server_name(gateway)?;
        }
        Ok(())
    }

    /// The name that this gateway's certificate must have.
    pub(crate) fn server_name(&self, gateway: &Target) -> Result<ServerName<'static>, InvalidConfig> {
        match (&self.server_name, gateway.host()) {
            (Some(name), _) => Ok(name.clone()),
            (None, Host::Ip(address)) => Ok(ServerName::IpAddress((*address).into())),
            (None, Host::Name(name)) => {
                ServerName::try_from(name.as_str().to_owned()).map_err(|_| InvalidConfig::ServerName)
            }
        }
    }
}

/// How many tunnels are kept to a gateway, from 1 to [`MAX_REPLICAS`].
///
/// There are as few as `min`. While all are full and have more streams than there are tunnels, one more is opened every few
/// seconds, up to `max`; where none was full for a minute one is given back, unless all carry datagrams of a user, whose
/// source port would change: its streams may finish on it, and as long as they do it counts towards `max`. A tunnel is full
/// while its connection takes less than there is to send to the gateway, or the [thread](Config::seats) that serves it has
/// hardly a moment left and another has. Streams stay on the tunnel they began on: more tunnels help those that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// The least.
    pub min: usize,
    /// The most.
    pub max: usize,
}

impl Replicas {
    /// Always so many.
    #[must_use]
    pub const fn exactly(number: usize) -> Self {
        Self { min: number, max: number }
    }
}

/// A port at the gateways that leads to a target of this client's network.
///
/// The client's own rules hold for the target, as for every other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenPort {
    /// The port the gateway listens on.
    pub remote_port: u16,
    /// Where it leads.
    pub target: Target,
    /// Connections or datagrams.
    pub transport: Transport,
}

impl OpenPort {
    /// The port `remote_port` of the gateways, which leads to `target`.
    #[must_use]
    pub const fn new(remote_port: u16, target: Target, transport: Transport) -> Self {
        Self { remote_port, target, transport }
    }

    pub(crate) const fn request(&self) -> PortRequest {
        PortRequest { port: self.remote_port, transport: self.transport }
    }
}

/// What is wrong with a [`Config`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidConfig {
    /// There is no gateway.
    NoGateway,
    /// The client's name is empty, too long, or has control characters.
    ClientId,
    /// The group's name is empty, too long, or has control characters.
    Group,
    /// No tunnels, or more than [`MAX_REPLICAS`], or a least that is more than the most.
    Replicas,
    /// The user name has a colon, which Basic authentication cannot carry (RFC 7617 section 2).
    Username,
    /// A gateway's name cannot stand in a certificate.
    ServerName,
    /// More ports than a client may ask for.
    TooManyPorts,
    /// A port is asked for twice, or is 0.
    Port(u16),
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGateway => f.write_str("there is no gateway to connect to"),
            Self::ClientId => {
                write!(f, "a client id has 1 to {MAX_CLIENT_ID} bytes and no control characters")
            }
            Self::Group => {
                write!(f, "a group's name has 1 to {MAX_GROUP} bytes and no control characters")
            }
            Self::Replicas => {
                write!(f, "a client keeps 1 to {MAX_REPLICAS} tunnels to a gateway, and min is not above max")
            }
            Self::Username => f.write_str("the user name of a client must not have a colon"),
            Self::ServerName => f.write_str("the gateway's name cannot stand in a certificate"),
            Self::TooManyPorts => write!(f, "a client asks for at most {MAX_PORTS} ports"),
            Self::Port(port) => write!(f, "port {port} is asked for twice, or is none"),
        }
    }
}

impl Error for InvalidConfig {}
