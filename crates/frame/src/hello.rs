use crate::{FieldTooLong, MAX_CLIENT_ID, MAX_PORTS, MAX_SOFTWARE};

/// The first frame of a client: who it is and what it can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The name of the client, the same over all its tunnels and restarts; at most [`MAX_CLIENT_ID`] bytes.
    pub client_id: String,
    /// Made up at the start of the process: the same instance adds a tunnel, a new one takes over.
    pub instance: u128,
    /// Bytes the gateway may send on a new stream before it hears of more, unless the answer to the open says
    /// otherwise. At least [`MIN_WINDOW`](crate::MIN_WINDOW).
    pub window: u32,
    /// How many streams the client serves at once on this tunnel.
    pub max_streams: u32,
    /// Ports the client asks the gateway to listen on for it; at most [`MAX_PORTS`].
    pub ports: Vec<PortRequest>,
    /// Name and version of the software, for logs; at most [`MAX_SOFTWARE`] bytes.
    pub software: String,
}

impl ClientHello {
    /// A hello that asks for no ports and leaves the window to the multiplexer.
    pub fn new(client_id: impl Into<String>, instance: u128) -> Self {
        Self {
            client_id: client_id.into(),
            instance,
            window: crate::START_WINDOW,
            max_streams: u32::MAX,
            ports: Vec::new(),
            software: String::new(),
        }
    }

    /// Whether every field fits the wire.
    ///
    /// # Errors
    /// The first field that does not.
    pub fn check(&self) -> Result<(), FieldTooLong> {
        FieldTooLong::check("client id", self.client_id.len(), MAX_CLIENT_ID)?;
        FieldTooLong::check("ports", self.ports.len(), MAX_PORTS)?;
        FieldTooLong::check("software", self.software.len(), MAX_SOFTWARE)
    }
}

/// The first frame of a gateway, sent once the client's hello has been judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayHello {
    /// The number of this tunnel at the gateway; both ends write it into their logs.
    pub session: u64,
    /// Bytes the client may send on a new stream before it hears of more, unless the open says otherwise.
    /// At least [`MIN_WINDOW`](crate::MIN_WINDOW).
    pub window: u32,
    /// The most streams the gateway will have open at once on this tunnel.
    pub max_streams: u32,
    /// One verdict for each requested port, in the order of the requests.
    pub ports: Vec<PortVerdict>,
    /// Name and version of the software, for logs; at most [`MAX_SOFTWARE`] bytes.
    pub software: String,
}

impl GatewayHello {
    /// A hello without ports that leaves the window to the multiplexer.
    pub fn new(session: u64) -> Self {
        Self {
            session,
            window: crate::START_WINDOW,
            max_streams: u32::MAX,
            ports: Vec::new(),
            software: String::new(),
        }
    }

    /// Whether every field fits the wire.
    ///
    /// # Errors
    /// The first field that does not.
    pub fn check(&self) -> Result<(), FieldTooLong> {
        FieldTooLong::check("ports", self.ports.len(), MAX_PORTS)?;
        FieldTooLong::check("software", self.software.len(), MAX_SOFTWARE)
    }
}

/// A port that a client asks its gateway to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRequest {
    /// The port at the gateway.
    pub port: u16,
    /// For connections or for datagrams.
    pub transport: Transport,
}

/// What became of a requested port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortVerdict {
    /// The request.
    pub request: PortRequest,
    /// Its fate.
    pub status: PortStatus,
}

/// The fate of a requested port. A value that is not known reads as [`Failed`](Self::Failed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum PortStatus {
    /// The gateway listens there.
    Open = 0,
    /// The client's account does not allow this port.
    Denied = 1,
    /// Somebody else has it.
    Taken = 2,
    /// The gateway could not listen there.
    Failed = 3,
}

impl PortStatus {
    pub(crate) const fn from_u8(status: u8) -> Self {
        match status {
            0 => Self::Open,
            1 => Self::Denied,
            2 => Self::Taken,
            _ => Self::Failed,
        }
    }
}

/// Connections or datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Transport {
    /// A TCP connection.
    Tcp = 0,
    /// UDP datagrams.
    Udp = 1,
}

impl Transport {
    pub(crate) const fn from_u8(transport: u8) -> Option<Self> {
        match transport {
            0 => Some(Self::Tcp),
            1 => Some(Self::Udp),
            _ => None,
        }
    }
}
