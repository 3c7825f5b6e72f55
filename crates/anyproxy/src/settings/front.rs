//! The fronts for users.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_acl::Pattern;
use anyproxy_auth::Accounts;
use anyproxy_config::{self as config, ListenAddr, Spanned};
use anyproxy_core::{Host, Target};
use rustls::ServerConfig;

use super::{HANDSHAKE_TIMEOUT, Source, accounts, positive};
use crate::failure::Failure;
use crate::tls;

/// The longest a connection may idle between requests.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);
/// Where TLS is served.
const TLS_PORT: u16 = 443;
/// The longest an association may be silent (RFC 4787 REQ-5).
const UDP_IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// A front, ready to be bound.
pub(crate) struct Front {
    pub(crate) protocol: Protocol,
    pub(crate) listen_addr: ListenAddr,
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// `None` where everybody may come in.
    pub(crate) accounts: Option<Accounts>,
    /// The group of users without one of their own.
    pub(crate) group: Option<String>,
    pub(crate) handshake_timeout: Duration,
    pub(crate) keep_alive_timeout: Duration,
    pub(crate) udp: Udp,
    pub(crate) passthrough: Passthrough,
}

/// What a front speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Socks5,
    /// Either, told apart by the first byte.
    Mixed,
    /// TLS, passed through by its server name.
    Sni,
}

impl Protocol {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Socks5 => "socks5",
            Self::Mixed => "mixed",
            Self::Sni => "sni",
        }
    }

    /// What its users speak, as rules call it.
    pub(crate) const fn spoken(self) -> &'static [&'static str] {
        match self {
            Self::Http => const { &[Self::Http.as_str()] },
            Self::Socks5 => const { &[Self::Socks5.as_str()] },
            Self::Mixed => const { &[Self::Http.as_str(), Self::Socks5.as_str()] },
            Self::Sni => const { &[Self::Sni.as_str()] },
        }
    }

    /// Whether users of this front, as rules call it, come in here.
    pub(crate) fn serves(self, front: &str) -> bool {
        self.spoken().contains(&front)
    }
}

/// UDP ASSOCIATE.
#[derive(Debug)]
pub(crate) struct Udp {
    pub(crate) enabled: bool,
    pub(crate) advertise_addr: Option<IpAddr>,
    pub(crate) idle_timeout: Duration,
}

/// Which server names are passed through, and to which port. Without names, none is.
#[derive(Clone, Default)]
pub(crate) struct Passthrough {
    pub(crate) hosts: Vec<Pattern>,
    pub(crate) port: u16,
}

impl Passthrough {
    /// Whether there is a way to `target`. An address is no server name.
    pub(crate) fn serves(&self, target: &Target) -> bool {
        matches!(target.host(), Host::Name(_))
            && target.port() == self.port
            && self.hosts.iter().any(|pattern| pattern.matches(target))
    }
}

impl Front {
    /// All fronts of the file; those whose section is absent are not started.
    pub(crate) fn all(source: &Source) -> Result<Vec<Self>, Failure> {
        let Some(proxy) = &source.file.proxy else { return Ok(Vec::new()) };
        let sections = [
            (Protocol::Http, &proxy.http),
            (Protocol::Socks5, &proxy.socks5),
            (Protocol::Mixed, &proxy.mixed),
        ];
        let present =
            sections.into_iter().filter_map(|(protocol, section)| Some((protocol, section.as_ref()?)));
        let mut fronts = present
            .map(|(protocol, section)| Self::new(source, protocol, section))
            .collect::<Result<Vec<_>, _>>()?;
        fronts.extend(proxy.sni.as_ref().map(|section| Self::sni(source, section)).transpose()?);
        Ok(fronts)
    }

    fn new(source: &Source, protocol: Protocol, section: &Spanned<config::Front>) -> Result<Self, Failure> {
        let front = &section.value;
        let name = protocol.as_str();
        let at = |what: String| source.mistake(section.defined, what);
        let listen_addr =
            front.listen_addr.as_ref().ok_or_else(|| at(format!("proxy.{name} needs a listen_addr")))?;
        let accounts = accounts::of_front(source, protocol, section)?;
        let anonymous = front.allow_anonymous.unwrap_or(false);
        match &accounts {
            None if !anonymous && !listen_addr.value.is_loopback() => {
                return Err(source.mistake(
                    listen_addr.defined,
                    format!(
                        "proxy.{name} would be open to everybody: give it accounts, a loopback address, or \
                         allow_anonymous: true"
                    ),
                ));
            }
            Some(_) if anonymous => {
                return Err(at(format!("proxy.{name} has accounts, so allow_anonymous means nothing")));
            }
            _ => {}
        }
        if protocol == Protocol::Http && front.udp.is_some() {
            return Err(at("HTTP carries no datagrams: udp belongs to proxy.socks5".to_owned()));
        }
        if protocol == Protocol::Socks5 && front.keep_alive_timeout.is_some() {
            return Err(
                at("SOCKS5 keeps nothing alive: keep_alive_timeout belongs to proxy.http".to_owned()),
            );
        }
        // HTTP/2 is offered where it is spoken.
        let alpn: &[&[u8]] = match protocol {
            Protocol::Http => &[b"h2", b"http/1.1"],
            Protocol::Mixed => &[b"http/1.1"],
            Protocol::Socks5 | Protocol::Sni => &[],
        };
        let tls = match (&front.tls_cert, &front.tls_key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(tls::server(cert, key, None, alpn)?),
            _ => return Err(at("tls_cert and tls_key belong together".to_owned())),
        };
        Ok(Self {
            protocol,
            listen_addr: listen_addr.value.clone(),
            tls,
            accounts,
            group: front.group.clone(),
            handshake_timeout: positive("handshake_timeout", front.handshake_timeout, HANDSHAKE_TIMEOUT, at)?,
            keep_alive_timeout: positive(
                "keep_alive_timeout",
                front.keep_alive_timeout,
                KEEP_ALIVE_TIMEOUT,
                at,
            )?,
            udp: Udp::new(front.udp.as_ref(), &at)?,
            passthrough: Passthrough::default(),
        })
    }

    fn sni(source: &Source, section: &Spanned<config::Sni>) -> Result<Self, Failure> {
        let config::Sni { listen_addr, hosts, group, port, handshake_timeout } = &section.value;
        let at = |what: &str| source.mistake(section.defined, what);
        let listen_addr = listen_addr.as_ref().ok_or_else(|| at("proxy.sni needs a listen_addr"))?;
        accounts::check_group(source, section.defined, group.as_deref())?;
        let hosts = hosts.as_deref().unwrap_or_default();
        if hosts.is_empty() {
            return Err(at("proxy.sni needs hosts: the server names it passes through"));
        }
        let port = port.unwrap_or(TLS_PORT);
        if port == 0 {
            return Err(at("proxy.sni dials port 0, which cannot be dialled"));
        }
        for host in hosts {
            let pattern = &host.value.0;
            let wrong = |what: &str| Err(source.mistake(host.defined, what));
            if pattern.is_range() {
                return wrong("a server name is never an address: this pattern would match nothing");
            }
            if !pattern.has_port(port) {
                return wrong(
                    "names are dialled on the front's port: with this one the pattern would match nothing",
                );
            }
            // Nobody logs in here: the names are all that stands between the world and the targets.
            if pattern.is_any_host() && !listen_addr.value.is_loopback() {
                return wrong("this would pass everybody on to every name: list the names that are meant");
            }
        }
        Ok(Self {
            protocol: Protocol::Sni,
            listen_addr: listen_addr.value.clone(),
            tls: None,
            accounts: None,
            group: group.clone(),
            handshake_timeout: positive(
                "handshake_timeout",
                *handshake_timeout,
                HANDSHAKE_TIMEOUT,
                |what| at(&what),
            )?,
            keep_alive_timeout: KEEP_ALIVE_TIMEOUT,
            udp: Udp { enabled: false, advertise_addr: None, idle_timeout: UDP_IDLE_TIMEOUT },
            passthrough: Passthrough { hosts: hosts.iter().map(|host| host.value.0.clone()).collect(), port },
        })
    }
}

impl Udp {
    fn new(udp: Option<&config::Udp>, at: &dyn Fn(String) -> Failure) -> Result<Self, Failure> {
        let udp = udp.cloned().unwrap_or_default();
        let address = |text: String| text.parse().map_err(|_| at(format!("{text:?} is not an IP address")));
        Ok(Self {
            enabled: udp.enabled.unwrap_or(true),
            advertise_addr: udp.advertise_addr.map(address).transpose()?,
            idle_timeout: positive("udp: idle_timeout", udp.idle_timeout, UDP_IDLE_TIMEOUT, at)?,
        })
    }
}
