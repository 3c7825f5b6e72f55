//! One connection to a gateway, from its name to the exchanged hellos.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use anyproxy_core::{Credentials, Host, Target};
use anyproxy_tls::Stream;
use anyproxy_tunnel::frame::{ClientHello, GatewayHello};
use anyproxy_tunnel::upgrade::{GROUP_HEADER, PATH, SUBPROTOCOL};
use anyproxy_tunnel::{ClientTunnel, Driver, Requests, TunnelError, UpgradeError, WebSocket, connect};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Config;
use crate::race;
use crate::reserve::Reserve;
use crate::resolve::{Asker, Resolver};

/// A tunnel that stands, its driver not yet spawned.
pub(crate) struct Link {
    pub(crate) tunnel: ClientTunnel,
    pub(crate) requests: Requests,
    pub(crate) hello: GatewayHello,
    pub(crate) driver: Driver,
}

/// The addresses behind a gateway's name that took a connection and then gave no tunnel: silent ones, those with another's
/// certificate. While there are others they are not tried, for the first to connect is taken, and that may be the same one
/// for ever.
#[derive(Debug, Default)]
pub(crate) struct Doubtful(Vec<IpAddr>);

impl Doubtful {
    /// Those of `found` that are to be tried: if all were in vain, all once more.
    fn leave_out(&mut self, mut found: Vec<IpAddr>) -> Vec<IpAddr> {
        self.0.retain(|address| found.contains(address));
        if found.iter().all(|address| self.0.contains(address)) {
            self.0.clear();
        }
        found.retain(|address| !self.0.contains(address));
        found
    }
}

/// Connects to `gateway`: name, TCP, TLS, upgrade with the credentials, hellos. What it learns of the gateway's addresses is
/// in `doubtful`, for the next attempt.
///
/// # Cancel safety
///
/// Dropping the future drops the connection.
pub(crate) async fn establish(
    config: &Config,
    resolver: &Resolver,
    gateway: &Target,
    doubtful: &mut Doubtful,
    hello: ClientHello,
) -> Result<Link, LinkError> {
    let dialled = within(config.connect_timeout, "connecting", dial(resolver, gateway, doubtful)).await;
    // Where the others cannot even be connected to, the doubtful ones are no worse.
    let (socket, address) = dialled.inspect_err(|_| doubtful.0.clear())?;
    let link = within(config.handshake_timeout, "the handshakes", async {
        let name =
            config.server_name(gateway).map_err(|error| LinkError::Connect(io::Error::other(error)))?;
        anyproxy_tunnel::tune(&socket).map_err(LinkError::Connect)?;
        // Whatever is sent before this line is no secret; nothing below it goes to somebody unknown.
        let tls = Stream::connect(socket, config.tls.config(), name).await.map_err(LinkError::Tls)?;
        let carrier = WebSocket::connect(tls, upgrade(config, gateway)).await.map_err(LinkError::Upgrade)?;
        let (tunnel, requests, hello, driver) =
            connect(carrier, hello, config.tunnel.clone()).await.map_err(LinkError::Tunnel)?;
        Ok(Link { tunnel, requests, hello, driver })
    })
    .await;
    match &link {
        Ok(_) => doubtful.0.clear(),
        Err(_) => doubtful.0.push(address),
    }
    link
}

async fn within<T>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    timeout(limit, work).await.unwrap_or(Err(LinkError::TimedOut(what)))
}

async fn dial(
    resolver: &Resolver,
    gateway: &Target,
    doubtful: &mut Doubtful,
) -> Result<(TcpStream, IpAddr), LinkError> {
    let addresses = match gateway.host() {
        Host::Ip(address) => vec![*address],
        Host::Name(name) => {
            resolver.resolve(Asker::Nobody, name.as_str()).await.map_err(LinkError::Resolve)?
        }
    };
    let addresses = doubtful.leave_out(addresses).into_iter().map(|ip| (ip, gateway.port()).into()).collect();
    let (socket, address) = race::connect(addresses, Reserve::NONE).await.map_err(LinkError::Connect)?;
    Ok((socket, address.ip()))
}

fn upgrade(config: &Config, gateway: &Target) -> http::Request<()> {
    let mut request = http::Request::new(());
    *request.uri_mut() = http::Uri::builder()
        .scheme("wss")
        .authority(gateway.to_string())
        .path_and_query(PATH)
        .build()
        .expect("a target in its canonical form is an authority");
    let headers = request.headers_mut();
    headers.insert(AUTHORIZATION, basic(&config.credentials));
    let group =
        HeaderValue::from_str(&config.group).or_else(|_| HeaderValue::from_bytes(config.group.as_bytes()));
    headers.insert(GROUP_HEADER, group.expect("a checked group has no control characters"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    request
}

/// RFC 7617, in UTF-8.
fn basic(credentials: &Credentials) -> HeaderValue {
    let pair = format!("{}:{}", credentials.username, credentials.password.expose_secret());
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair)))
        .expect("base64 has no characters that a header may not have");
    value.set_sensitive(true);
    value
}

/// Why there is no tunnel to a gateway.
#[derive(Debug)]
pub(crate) enum LinkError {
    Resolve(io::Error),
    Connect(io::Error),
    Tls(io::Error),
    Upgrade(UpgradeError),
    Tunnel(TunnelError),
    TimedOut(&'static str),
}

impl LinkError {
    /// What the operator can do about it, where that is known.
    pub(crate) fn advice(&self) -> Option<&'static str> {
        use rustls::{CertificateError, Error as Tls};
        match self {
            Self::Upgrade(UpgradeError::Unauthorized) => {
                Some("check this client's auth_username and auth_password against the gateway's")
            }
            Self::Upgrade(UpgradeError::Forbidden) => {
                Some("check that the gateway allows this client's account to serve its group_id")
            }
            Self::Tls(error) => match error.get_ref()?.downcast_ref::<Tls>()? {
                Tls::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                ) => Some("the certificate must name the host of gateway_addr"),
                Tls::InvalidCertificate(
                    CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. },
                ) => Some("renew the gateway's certificate, or set this machine's clock"),
                // Unknown, or a CA's, or a successor with the same name and another key.
                Tls::InvalidCertificate(_) => Some(
                    "if this is your gateway, put its certificate, or its issuer's, into gateway_tls_cert",
                ),
                _ => None,
            },
            _ => None,
        }
    }

    /// How long the gateway asks us to wait.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Upgrade(UpgradeError::Status { retry_after, .. }) => *retry_after,
            _ => None,
        }
    }

    /// Whether the gateway counts this against everybody at this address.
    pub(crate) const fn is_wrong_login(&self) -> bool {
        matches!(self, Self::Upgrade(UpgradeError::Unauthorized))
    }

    /// Whether trying again is of no use until somebody changes a setting.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            // A connection that was lost within the handshake is none.
            Self::Tls(error) => error.get_ref().is_some_and(|error| error.is::<rustls::Error>()),
            Self::Upgrade(error) => matches!(error, UpgradeError::Unauthorized | UpgradeError::Forbidden),
            _ => false,
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(_) => f.write_str("the gateway's name does not resolve"),
            Self::Connect(_) => f.write_str("the gateway cannot be reached"),
            Self::Tls(_) => f.write_str("TLS with the gateway failed"),
            Self::Upgrade(_) => f.write_str("the gateway did not let this client in"),
            Self::Tunnel(_) => f.write_str("the gateway gave no tunnel"),
            Self::TimedOut(what) => write!(f, "{what} took too long"),
        }
    }
}

impl Error for LinkError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Resolve(error) | Self::Connect(error) | Self::Tls(error) => Some(error),
            Self::Upgrade(error) => Some(error),
            Self::Tunnel(error) => Some(error),
            Self::TimedOut(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::ClientTls;

    #[tokio::test]
    async fn an_address_that_gives_no_tunnel_is_left_out_while_there_are_others() {
        let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = first.local_addr().unwrap().port();
        let second = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
        let resolver = Resolver::new(|_| Ok(vec![[127, 0, 0, 1].into(), [127, 0, 0, 2].into()]));
        let gateway = Target::parse(&format!("gateway.test:{port}")).unwrap();
        let tls = ClientTls::new(Vec::new(), None).unwrap();
        let config = Config::new(vec![gateway.clone()], tls, "office", Credentials::new("user", "password"));
        let mut doubtful = Doubtful::default();
        let mut attempt = async |taken_by: Option<&TcpListener>| {
            let established =
                establish(&config, &resolver, &gateway, &mut doubtful, ClientHello::new("office", 1));
            let taken = async {
                if let Some(listener) = taken_by {
                    // And lost in its handshake.
                    drop(listener.accept().await.unwrap());
                }
            };
            let both = async { tokio::join!(established, taken) };
            timeout(Duration::from_secs(5), both).await.expect("it is taken there").0.err().unwrap()
        };
        assert!(matches!(attempt(Some(&first)).await, LinkError::Tls(_)));
        assert!(matches!(attempt(Some(&second)).await, LinkError::Tls(_)));
        assert!(matches!(attempt(Some(&first)).await, LinkError::Tls(_)), "none is left: all once more");
        drop(second);
        assert!(matches!(attempt(None).await, LinkError::Connect(_)), "the other one alone");
        assert!(matches!(attempt(Some(&first)).await, LinkError::Tls(_)), "which is no better");
    }

    #[test]
    fn a_connection_lost_in_its_handshake_is_not_a_setting_to_change() {
        let refused = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        assert!(LinkError::Tls(io::Error::new(io::ErrorKind::InvalidData, refused)).is_refusal());
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof] {
            assert!(!LinkError::Tls(kind.into()).is_refusal());
        }
        let ended = io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof");
        assert!(!LinkError::Tls(ended).is_refusal());
    }

    #[test]
    fn i12_credentials_go_into_a_header_that_is_never_printed() {
        let header = basic(&Credentials::new("gateway_user", "pass:wörd"));
        assert_eq!(STANDARD.decode(&header.as_bytes()[6..]).unwrap(), "gateway_user:pass:wörd".as_bytes());
        assert_eq!(format!("{header:?}"), "Sensitive");
    }
}
