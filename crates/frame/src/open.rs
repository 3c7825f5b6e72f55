use std::net::{IpAddr, SocketAddr};

use crate::{
    DecodeError, FieldTooLong, MAX_ERROR_TEXT, MAX_FRONT, MAX_GROUP, MAX_GROUPS, MAX_HOST, MAX_TRACEPARENT,
    MAX_USER, kind,
    tlv::{Field, Fields, Sink, require},
};

// Tags of an open.
const NETWORK: u8 = 0x01;
const NAME: u8 = 0x02;
const IP: u8 = 0x03;
const PORT: u8 = 0x04;
const USER: u8 = 0x05;
const GROUP: u8 = 0x06;
const FRONT: u8 = 0x07;
const RULES: u8 = 0x08;
const TRACEPARENT: u8 = 0x09;
const DEADLINE: u8 = 0x0a;
const WINDOW: u8 = 0x0b;
const SOURCE: u8 = 0x0c;

// Tags of the answers, beside the window's.
const ADDRESS: u8 = 0x01;
const CLASS: u8 = 0x01;
const TEXT: u8 = 0x02;
const TOOK: u8 = 0x03;

/// The gateway's wish for a stream: where to, for whom, by when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// A connection or datagrams.
    pub network: Network,
    /// The host of the target.
    pub host: HostRef,
    /// The port of the target.
    pub port: u16,
    /// Who asks, as the gateway knows them, for the client's log and fair shares there; empty for nobody in particular.
    /// At most [`MAX_USER`] bytes.
    pub user: String,
    /// The groups of that user; at most [`MAX_GROUPS`] of [`MAX_GROUP`] bytes each.
    pub groups: Vec<String>,
    /// The front the user came in by, for the client's log; at most [`MAX_FRONT`] bytes.
    pub front: String,
    /// The address the user came from, as the gateway saw it, for the client's log, and in place of a user without a name.
    pub source: Option<SocketAddr>,
    /// The version of the gateway's rules that judged this open; 0 for no rules. A client that lacks that version
    /// refuses.
    pub rules: u32,
    /// The W3C trace context that the stream continues; at most [`MAX_TRACEPARENT`] bytes.
    pub traceparent: Option<String>,
    /// How long the gateway waits for the answer, in milliseconds; 0 for as long as the client likes.
    pub deadline_ms: u32,
    /// Bytes the client may send on this stream before it hears of more; `None`: what the gateway's hello says.
    /// The multiplexer fills it in.
    pub window: Option<u32>,
}

impl Open {
    /// An open of a connection that says nothing but the target.
    pub fn tcp(host: HostRef, port: u16) -> Self {
        Self {
            network: Network::Tcp,
            host,
            port,
            user: String::new(),
            groups: Vec::new(),
            front: String::new(),
            source: None,
            rules: 0,
            traceparent: None,
            deadline_ms: 0,
            window: None,
        }
    }

    /// The same for datagrams of an association.
    pub fn udp(association: u64, host: HostRef, port: u16) -> Self {
        Self { network: Network::Udp { association }, ..Self::tcp(host, port) }
    }

    /// Whether every field fits the wire.
    ///
    /// # Errors
    /// The first field that does not.
    pub fn check(&self) -> Result<(), FieldTooLong> {
        if let HostRef::Name(name) = &self.host {
            FieldTooLong::check("host", name.len(), MAX_HOST)?;
        }
        FieldTooLong::check("user", self.user.len(), MAX_USER)?;
        FieldTooLong::check("groups", self.groups.len(), MAX_GROUPS)?;
        for group in &self.groups {
            FieldTooLong::check("group", group.len(), MAX_GROUP)?;
        }
        FieldTooLong::check("front", self.front.len(), MAX_FRONT)?;
        FieldTooLong::check("traceparent", self.traceparent.as_ref().map_or(0, String::len), MAX_TRACEPARENT)
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let (mut network, mut host, mut port) = (None, None, None);
        let (mut user, mut front, mut rules, mut traceparent) = (None, None, None, None);
        let (mut deadline_ms, mut window, mut source) = (None, None, None);
        let mut groups = Vec::new();
        for field in Fields::new(kind::OPEN, payload) {
            let field = field?;
            match field.tag {
                NETWORK => field.fill(&mut network, Network::from_field(&field)?)?,
                NAME => field.fill(&mut host, HostRef::Name(field.text(MAX_HOST)?))?,
                IP => field.fill(&mut host, HostRef::Ip(field.ip()?))?,
                PORT => field.fill(&mut port, u16::from_be_bytes(field.array()?))?,
                USER => field.fill(&mut user, field.text(MAX_USER)?)?,
                GROUP if groups.len() == MAX_GROUPS => return Err(field.repeated()),
                GROUP => groups.extend(Some(field.text(MAX_GROUP)?).filter(|group| !group.is_empty())),
                FRONT => field.fill(&mut front, field.text(MAX_FRONT)?)?,
                RULES => field.fill(&mut rules, u32::from_be_bytes(field.array()?))?,
                TRACEPARENT => field.fill(&mut traceparent, field.text(MAX_TRACEPARENT)?)?,
                DEADLINE => field.fill(&mut deadline_ms, u32::from_be_bytes(field.array()?))?,
                WINDOW => field.fill(&mut window, field.window()?)?,
                SOURCE => field.fill(&mut source, field.socket_address()?)?,
                _ => {}
            }
        }
        Ok(Self {
            network: require(kind::OPEN, NETWORK, network)?,
            host: require(kind::OPEN, NAME, host)?,
            port: require(kind::OPEN, PORT, port)?,
            user: user.unwrap_or_default(),
            groups,
            front: front.unwrap_or_default(),
            source,
            rules: rules.unwrap_or_default(),
            traceparent: traceparent.filter(|context| !context.is_empty()),
            deadline_ms: deadline_ms.unwrap_or_default(),
            window,
        })
    }

    pub(crate) fn fields(&self, out: &mut dyn Sink) {
        match self.network {
            Network::Tcp => out.field(NETWORK, &[0]),
            Network::Udp { association } => {
                let mut value = [1; 9];
                value[1..].copy_from_slice(&association.to_be_bytes());
                out.field(NETWORK, &value);
            }
        }
        match &self.host {
            // Not `text`, which leaves out what is empty: this field must be there.
            HostRef::Name(name) => out.field(NAME, &name.as_bytes()[..name.floor_char_boundary(MAX_HOST)]),
            HostRef::Ip(ip) => out.ip(IP, *ip),
        }
        out.field(PORT, &self.port.to_be_bytes());
        out.text(USER, &self.user, MAX_USER);
        for group in self.groups.iter().take(MAX_GROUPS) {
            out.text(GROUP, group, MAX_GROUP);
        }
        out.text(FRONT, &self.front, MAX_FRONT);
        if self.rules != 0 {
            out.field(RULES, &self.rules.to_be_bytes());
        }
        if let Some(traceparent) = &self.traceparent {
            out.text(TRACEPARENT, traceparent, MAX_TRACEPARENT);
        }
        if self.deadline_ms != 0 {
            out.field(DEADLINE, &self.deadline_ms.to_be_bytes());
        }
        if let Some(window) = self.window {
            out.field(WINDOW, &window.to_be_bytes());
        }
        if let Some(source) = self.source {
            out.socket_address(SOURCE, source);
        }
    }
}

/// The network of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// A TCP connection.
    Tcp,
    /// UDP datagrams with one target.
    Udp {
        /// The flows of one association share one socket at the client, so that targets see one source port.
        association: u64,
    },
}

impl Network {
    fn from_field(field: &Field<'_>) -> Result<Self, DecodeError> {
        match *field.bytes(9)? {
            [0] => Ok(Self::Tcp),
            [1, ref association @ ..] => match association.try_into() {
                Ok(association) => Ok(Self::Udp { association: u64::from_be_bytes(association) }),
                Err(_) => Err(field.invalid()),
            },
            _ => Err(field.invalid()),
        }
    }
}

/// The host of a target: a name travels as a name, and the client resolves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostRef {
    /// A name, as the gateway judged it; at most [`MAX_HOST`] bytes.
    Name(String),
    /// An address.
    Ip(IpAddr),
}

/// The client reached the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOk {
    /// The address really dialled, if the client tells.
    pub address: Option<SocketAddr>,
    /// How long the client resolved and connected, in microseconds, if it tells: its own word, so that a gateway takes
    /// it for no more than it waited.
    pub took_us: Option<u32>,
    /// Bytes the gateway may send on this stream before it hears of more; `None`: what the client's hello says.
    /// The multiplexer fills it in.
    pub window: Option<u32>,
}

impl OpenOk {
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut ok = Self::default();
        for field in Fields::new(kind::OPEN_OK, payload) {
            let field = field?;
            match field.tag {
                ADDRESS => field.fill(&mut ok.address, field.socket_address()?)?,
                TOOK => field.fill(&mut ok.took_us, u32::from_be_bytes(field.array()?))?,
                WINDOW => field.fill(&mut ok.window, field.window()?)?,
                _ => {}
            }
        }
        Ok(ok)
    }

    pub(crate) fn fields(&self, out: &mut dyn Sink) {
        if let Some(address) = self.address {
            out.socket_address(ADDRESS, address);
        }
        if let Some(took_us) = self.took_us {
            out.field(TOOK, &took_us.to_be_bytes());
        }
        if let Some(window) = self.window {
            out.field(WINDOW, &window.to_be_bytes());
        }
    }
}

/// The client did not reach the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenErr {
    /// The class of failure: the only thing a gateway acts on.
    pub class: OpenErrClass,
    /// Words for the gateway's log; at most [`MAX_ERROR_TEXT`] bytes. Untrusted: escape it before it is shown.
    pub text: String,
    /// How long the client tried, in microseconds, if it tells; as in [`OpenOk`].
    pub took_us: Option<u32>,
}

impl OpenErr {
    /// A failure with words for the log, cut at [`MAX_ERROR_TEXT`] bytes.
    pub fn new(class: OpenErrClass, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.truncate(text.floor_char_boundary(MAX_ERROR_TEXT));
        Self { class, text, took_us: None }
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let (mut class, mut text, mut took_us) = (None, None, None);
        for field in Fields::new(kind::OPEN_ERR, payload) {
            let field = field?;
            match field.tag {
                CLASS => field.fill(&mut class, OpenErrClass::from_u8(u8::from_be_bytes(field.array()?)))?,
                TEXT => field.fill(&mut text, field.words(MAX_ERROR_TEXT)?)?,
                TOOK => field.fill(&mut took_us, u32::from_be_bytes(field.array()?))?,
                _ => {}
            }
        }
        let class = require(kind::OPEN_ERR, CLASS, class)?;
        Ok(Self { took_us, ..Self::new(class, text.unwrap_or_default()) })
    }

    pub(crate) fn fields(&self, out: &mut dyn Sink) {
        out.field(CLASS, &[self.class.to_u8()]);
        out.text(TEXT, &self.text, MAX_ERROR_TEXT);
        if let Some(took_us) = self.took_us {
            out.field(TOOK, &took_us.to_be_bytes());
        }
    }
}

/// Why a target was not reached. A class that is not known reads as [`Internal`](Self::Internal).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum OpenErrClass {
    /// The client failed in some other way.
    Internal = 0,
    /// A rule at the client does not allow the target.
    Denied = 1,
    /// The name has no address.
    Unresolved = 2,
    /// There is no way to the target's network.
    NetworkUnreachable = 3,
    /// There is no way to the target's host.
    HostUnreachable = 4,
    /// The target refused the connection.
    Refused = 5,
    /// The target did not answer in time.
    TimedOut = 6,
    /// The client has as many streams, dials or bytes as it may; another client may have room.
    Overloaded = 7,
    /// The client does not have the rules that this open was judged by.
    UnknownRules = 8,
    /// The client went away before it looked at this open: it is safe to ask another client. A multiplexer makes
    /// this up from a go-away; on the wire it means [`Internal`](Self::Internal).
    Disowned = 9,
}

impl OpenErrClass {
    /// The class on the wire.
    pub const fn to_u8(self) -> u8 {
        match self {
            Self::Disowned => Self::Internal as u8,
            class => class as u8,
        }
    }

    /// The meaning of a class on the wire.
    pub const fn from_u8(class: u8) -> Self {
        match class {
            1 => Self::Denied,
            2 => Self::Unresolved,
            3 => Self::NetworkUnreachable,
            4 => Self::HostUnreachable,
            5 => Self::Refused,
            6 => Self::TimedOut,
            7 => Self::Overloaded,
            8 => Self::UnknownRules,
            _ => Self::Internal,
        }
    }

    /// A short name for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Denied => "denied",
            Self::Unresolved => "unresolved",
            Self::NetworkUnreachable => "network_unreachable",
            Self::HostUnreachable => "host_unreachable",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Overloaded => "overloaded",
            Self::UnknownRules => "unknown_rules",
            Self::Disowned => "disowned",
        }
    }
}

impl std::fmt::Display for OpenErrClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
