//! One connection to a gateway, from its name to the exchanged hellos.

use std::error::Error;
use std::fmt;
use std::io;
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
use crate::resolve::{Asker, Resolver};

/// A tunnel that stands, its driver not yet spawned.
pub(crate) struct Link {
    pub(crate) tunnel: ClientTunnel,
    pub(crate) requests: Requests,
    pub(crate) hello: GatewayHello,
    pub(crate) driver: Driver,
}

/// Connects to `gateway`: name, TCP, TLS, upgrade with the credentials, hellos.
///
/// # Cancel safety
///
/// Dropping the future drops the connection.
pub(crate) async fn establish(
    config: &Config,
    resolver: &Resolver,
    gateway: &Target,
    hello: ClientHello,
) -> Result<Link, LinkError> {
    let socket = within(config.connect_timeout, "connecting", dial(resolver, gateway)).await?;
    within(config.handshake_timeout, "the handshakes", async {
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
    .await
}

async fn within<T>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    timeout(limit, work).await.unwrap_or(Err(LinkError::TimedOut(what)))
}

async fn dial(resolver: &Resolver, gateway: &Target) -> Result<TcpStream, LinkError> {
    let addresses = match gateway.host() {
        Host::Ip(address) => vec![*address],
        Host::Name(name) => {
            resolver.resolve(Asker::Nobody, name.as_str()).await.map_err(LinkError::Resolve)?
        }
    };
    let addresses = addresses.into_iter().map(|ip| (ip, gateway.port()).into()).collect();
    race::connect(addresses).await.map(|(socket, _)| socket).map_err(LinkError::Connect)
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
    use super::*;

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
