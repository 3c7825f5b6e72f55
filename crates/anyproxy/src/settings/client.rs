//! The client.

use std::time::Duration;

use anyproxy_acl::{Policy, Question, Verdict};
use anyproxy_client::{ClientTls, Config, OpenPort, Replicas, Transport};
use anyproxy_config as config;
use anyproxy_core::{Association, Credentials, Front, Host, Identity, Network, Target};

use super::{
    CONNECT_TIMEOUT, DRAIN_TIMEOUT, HALF_CLOSED_TIMEOUT, IDLE_TIMEOUT, Source, busy_poll, duration, positive,
    rules, tunnel, unless_zero,
};
use crate::failure::Failure;
use crate::{admin, secrets, tls};

/// A client, ready to be run.
pub(crate) struct Client {
    pub(crate) config: Config,
    /// How long threads look for work before they sleep.
    pub(crate) busy_poll: Duration,
}

impl Client {
    pub(crate) fn new(source: &Source, section: &config::Client) -> Result<Self, Failure> {
        admin::check(source.file.admin.as_ref())?;
        let gateways = source.required("client.gateway_addr", section.gateway_addr.as_ref())?.0.clone();
        let client_id = source.required("client.client_id", section.client_id.as_ref())?;
        let mut config = Config::new(
            gateways,
            Self::tls(source, section)?,
            client_id.as_str(),
            Self::login(source, section)?,
        );
        if let Some(group) = &section.group_id {
            config.group.clone_from(group);
        }
        if let Some(config::Replicas { min, max }) = section.replicas {
            let min = min.unwrap_or(1);
            config.replicas = Replicas { min: min.into(), max: max.unwrap_or(min).into() };
        }
        config.rules = Self::policy(source, section)?;
        config.open_ports = Self::open_ports(source, section, &config.rules)?;
        let wrong = |what| source.wrong(format!("client: {what}"));
        config.connect_timeout =
            positive("connect_timeout", section.connect_timeout, CONNECT_TIMEOUT, wrong)?;
        config.idle_timeout = unless_zero(section.idle_timeout, IDLE_TIMEOUT);
        config.half_closed_timeout = unless_zero(section.half_closed_timeout, HALF_CLOSED_TIMEOUT);
        config.drain_timeout = duration(section.drain_timeout, DRAIN_TIMEOUT);
        config.tunnel = tunnel(wrong, section.ping_interval, section.ping_timeout, section.memory_limit)?;
        config.check().map_err(|error| Failure::of(&source.name, error))?;
        let busy_poll = busy_poll(section.busy_poll, wrong)?;
        Ok(Self { config, busy_poll })
    }

    fn tls(source: &Source, section: &config::Client) -> Result<ClientTls, Failure> {
        let anchors =
            section.gateway_tls_cert.as_deref().map(tls::certificates).transpose()?.unwrap_or_default();
        let identity = match (&section.tls_cert, &section.tls_key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((tls::certificates(cert)?, tls::private_key(key)?)),
            _ => return Err(source.wrong("client.tls_cert and client.tls_key belong together")),
        };
        ClientTls::new(anchors, identity).map_err(|error| Failure::of("client", error))
    }

    fn login(source: &Source, section: &config::Client) -> Result<Credentials, Failure> {
        let username = source.required("client.auth_username", section.auth_username.as_ref())?;
        let file = section.auth_password_file.as_deref();
        let wrong = |what| source.wrong(format!("client: {what}"));
        let password = secrets::secret("auth_password", section.auth_password.as_ref(), file, wrong)?;
        let password = source.required("client.auth_password", password.as_ref())?;
        Ok(Credentials::new(username.as_str(), password.clone()))
    }

    /// What may be dialled: all lists must allow, and addresses nobody means by "everything" need an entry of
    /// their own.
    fn policy(source: &Source, section: &config::Client) -> Result<Policy, Failure> {
        let lists = rules::lists(
            source,
            section.forbidden_hosts.as_ref(),
            section.allowed_hosts.as_ref(),
            section.protocols.as_ref(),
        )?;
        let limit = section.limit.as_ref().map(|services| rules::services(source, services)).transpose()?;
        Ok(Policy::new(lists.into_rules("client").chain(limit)).guarded())
    }

    /// The ports to ask for. One whose every connection the client's own rules would refuse is a mistake.
    fn open_ports(
        source: &Source,
        section: &config::Client,
        rules: &Policy,
    ) -> Result<Vec<OpenPort>, Failure> {
        let port = |spanned: &config::Spanned<config::OpenPort>| {
            let port = &spanned.value;
            let (Some(remote_port), Some(local_port)) = (port.remote_port, port.local_port) else {
                return Err(source.mistake(spanned.defined, "open_ports needs remote_port and local_port"));
            };
            let host = Host::parse(port.local_host.as_deref().unwrap_or("127.0.0.1"));
            let target = host.and_then(|host| Target::new(host, local_port));
            let target = target.map_err(|error| source.mistake(spanned.defined, error.to_string()))?;
            let (transport, network) = match port.protocol {
                None | Some(config::Protocol::Tcp) => (Transport::Tcp, Network::Tcp),
                Some(config::Protocol::Udp) => (Transport::Udp, Network::Udp(Association::new())),
            };
            let identity = &Identity::ANONYMOUS;
            let question = Question { target: &target, network, identity, front: Front::PORT.as_str() };
            if let Verdict::Deny(cause) = rules.check(&question) {
                let what = format!("open_ports: {network}://{target} is denied by {}", rules.reason(cause));
                return Err(source.mistake(spanned.defined, what));
            }
            Ok(OpenPort::new(remote_port, target, transport))
        };
        section.open_ports.iter().flatten().map(port).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::fixture::{CLIENT, source};

    /// What is wrong with a client that has these keys besides.
    fn mistake(keys: &str) -> Option<String> {
        let (source, _dir) = source(&format!("{CLIENT}{keys}"));
        Client::new(&source, source.file.client.as_ref().unwrap()).err().map(|failure| failure.to_string())
    }

    #[test]
    fn a_port_whose_target_the_client_would_never_dial_is_a_mistake() {
        let to = |host: &str, rules: &str| {
            format!(
                "  open_ports: [ {{ remote_port: 2222, local_host: {host}, local_port: 22 }} ]\n{rules}\n"
            )
        };
        let limit = "  limit: [ { name: ssh, addr: '127.0.0.1:22' } ]";
        assert_eq!(
            mistake(&to("127.0.0.1", &limit.replace(":22", ":3000"))).unwrap(),
            "f.yaml:7:17: open_ports: tcp://127.0.0.1:22 is denied by the default of client.limit"
        );
        let denied = mistake(&to("'::1'", "  forbidden_hosts: ['::/64']")).unwrap();
        assert!(denied.contains("rule 1 of client.forbidden_hosts (f.yaml:8:21)"), "{denied}");
        assert!(mistake(&to("127.0.0.1", "  protocols: [udp]")).is_some());
        assert_eq!(mistake(&to("127.0.0.1", limit)), None);
        assert_eq!(mistake(&to("localhost", limit)), None, "its addresses decide");
    }
}
