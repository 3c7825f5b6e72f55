use crate::{
    DecodeError, FieldTooLong, MAX_CLIENT_ID, MAX_PORTS, MAX_SOFTWARE,
    kind::HELLO,
    tlv::{Fields, Sink, require},
};

// Tags of a client's hello; a gateway's has the same but for the session in place of the name.
const CLIENT_ID: u8 = 0x01;
const INSTANCE: u8 = 0x02;
const WINDOW: u8 = 0x03;
const MAX_STREAMS: u8 = 0x04;
const PORTS: u8 = 0x05;
const SOFTWARE: u8 = 0x06;
const SESSION: u8 = 0x07;

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

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let (mut client_id, mut instance, mut window) = (None, None, None);
        let (mut max_streams, mut ports, mut software) = (None, None, None);
        for field in Fields::new(HELLO, payload) {
            let field = field?;
            match field.tag {
                CLIENT_ID => field.fill(&mut client_id, field.text(MAX_CLIENT_ID)?)?,
                INSTANCE => field.fill(&mut instance, u128::from_be_bytes(field.array()?))?,
                WINDOW => field.fill(&mut window, field.window()?)?,
                MAX_STREAMS => field.fill(&mut max_streams, u32::from_be_bytes(field.array()?))?,
                PORTS => {
                    let entries = field.entries(MAX_PORTS)?.iter();
                    let requests: Option<Vec<_>> = entries.map(PortRequest::from_bytes).collect();
                    field.fill(&mut ports, requests.ok_or_else(|| field.invalid())?)?;
                }
                SOFTWARE => field.fill(&mut software, field.words(MAX_SOFTWARE)?)?,
                _ => {}
            }
        }
        Ok(Self {
            client_id: require(HELLO, CLIENT_ID, client_id)?,
            instance: require(HELLO, INSTANCE, instance)?,
            window: require(HELLO, WINDOW, window)?,
            max_streams: max_streams.unwrap_or(u32::MAX),
            ports: ports.unwrap_or_default(),
            software: software.unwrap_or_default(),
        })
    }

    pub(crate) fn fields(&self, out: &mut dyn Sink) {
        // Not `text`, which leaves out what is empty: this field must be there.
        let client_id = &self.client_id[..self.client_id.floor_char_boundary(MAX_CLIENT_ID)];
        out.field(CLIENT_ID, client_id.as_bytes());
        out.field(INSTANCE, &self.instance.to_be_bytes());
        out.field(WINDOW, &self.window.to_be_bytes());
        out.field(MAX_STREAMS, &self.max_streams.to_be_bytes());
        let ports: Vec<_> = self.ports.iter().take(MAX_PORTS).map(|request| request.to_bytes()).collect();
        if !ports.is_empty() {
            out.field(PORTS, ports.as_flattened());
        }
        out.text(SOFTWARE, &self.software, MAX_SOFTWARE);
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

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let (mut session, mut window) = (None, None);
        let (mut max_streams, mut ports, mut software) = (None, None, None);
        for field in Fields::new(HELLO, payload) {
            let field = field?;
            match field.tag {
                SESSION => field.fill(&mut session, u64::from_be_bytes(field.array()?))?,
                WINDOW => field.fill(&mut window, field.window()?)?,
                MAX_STREAMS => field.fill(&mut max_streams, u32::from_be_bytes(field.array()?))?,
                PORTS => {
                    let entries = field.entries(MAX_PORTS)?.iter();
                    let verdicts: Option<Vec<_>> = entries.map(PortVerdict::from_bytes).collect();
                    field.fill(&mut ports, verdicts.ok_or_else(|| field.invalid())?)?;
                }
                SOFTWARE => field.fill(&mut software, field.words(MAX_SOFTWARE)?)?,
                _ => {}
            }
        }
        Ok(Self {
            session: require(HELLO, SESSION, session)?,
            window: require(HELLO, WINDOW, window)?,
            max_streams: max_streams.unwrap_or(u32::MAX),
            ports: ports.unwrap_or_default(),
            software: software.unwrap_or_default(),
        })
    }

    pub(crate) fn fields(&self, out: &mut dyn Sink) {
        out.field(SESSION, &self.session.to_be_bytes());
        out.field(WINDOW, &self.window.to_be_bytes());
        out.field(MAX_STREAMS, &self.max_streams.to_be_bytes());
        let ports: Vec<_> = self.ports.iter().take(MAX_PORTS).map(|verdict| verdict.to_bytes()).collect();
        if !ports.is_empty() {
            out.field(PORTS, ports.as_flattened());
        }
        out.text(SOFTWARE, &self.software, MAX_SOFTWARE);
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

impl PortRequest {
    fn from_bytes(&[high, low, transport]: &[u8; 3]) -> Option<Self> {
        let transport = Transport::from_u8(transport)?;
        Some(Self { port: u16::from_be_bytes([high, low]), transport })
    }

    fn to_bytes(self) -> [u8; 3] {
        let [high, low] = self.port.to_be_bytes();
        [high, low, self.transport as u8]
    }
}

/// What became of a requested port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortVerdict {
    /// The request.
    pub request: PortRequest,
    /// Its fate.
    pub status: PortStatus,
}

impl PortVerdict {
    fn from_bytes(&[high, low, transport, status]: &[u8; 4]) -> Option<Self> {
        let request = PortRequest::from_bytes(&[high, low, transport])?;
        Some(Self { request, status: PortStatus::from_u8(status) })
    }

    fn to_bytes(self) -> [u8; 4] {
        let [high, low, transport] = self.request.to_bytes();
        [high, low, transport, self.status as u8]
    }
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
    const fn from_u8(status: u8) -> Self {
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
    const fn from_u8(transport: u8) -> Option<Self> {
        match transport {
            0 => Some(Self::Tcp),
            1 => Some(Self::Udp),
            _ => None,
        }
    }
}
