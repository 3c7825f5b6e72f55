//! The gateway.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_acl::Policy;
use anyproxy_auth::{Accounts, User};
use anyproxy_balance::{Settings, StickyBy, Strategy};
use anyproxy_config::{self as config, ListenAddr, Place};
use anyproxy_front::RelayConfig;
use anyproxy_gateway::ClientAccount;
use anyproxy_rate_limit::{Bandwidth, Key, Quota, ZeroQuota};
use bytes::Bytes;
use rustls::ServerConfig;

use super::accounts::{Placed, Proof};
use super::rules::Route;
use super::{
    CONNECT_TIMEOUT, DRAIN_TIMEOUT, Front, HALF_CLOSED_TIMEOUT, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, Source,
    accounts, busy_poll, duration, positive, rules, tunnel, unless_zero,
};
use crate::failure::Failure;
use crate::stack::Rights;
use crate::{admin, tls};

/// A gateway, ready to be bound.
pub(crate) struct Gateway {
    pub(crate) listen_addr: ListenAddr,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) fronts: Vec<Front>,
    /// What clients log in with, and what each may do.
    pub(crate) clients: Accounts,
    pub(crate) client_accounts: Rights,
    pub(crate) policy: Policy,
    /// What clients are sent of it.
    pub(crate) rules: Option<(u32, Bytes)>,
    pub(crate) routes: Vec<Route>,
    pub(crate) limits: Limits,
    pub(crate) open_ports_addr: IpAddr,
    pub(crate) relay: RelayConfig,
    pub(crate) handshake_timeout: Duration,
    /// How long a client may take to answer a dial, its own connecting included.
    pub(crate) open_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) tunnel: anyproxy_tunnel::Config,
    /// How long threads look for work before they sleep.
    pub(crate) busy_poll: Duration,
}

/// Limits on users, and how clients are chosen.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// `None`: by the limit of open files.
    pub(crate) max_connections: Option<usize>,
    pub(crate) per_user_connections: Option<usize>,
    pub(crate) per_user_dials: usize,
    pub(crate) queue_size: usize,
    pub(crate) queue_timeout: Duration,
    pub(crate) wait_for_client: Duration,
    pub(crate) rate: Option<Quota>,
    pub(crate) bandwidth: Option<Bandwidth>,
    pub(crate) balance: Settings,
}

impl Gateway {
    pub(crate) fn new(source: &Source, section: &config::Gateway) -> Result<Self, Failure> {
        admin::check(source.file.admin.as_ref())?;
        let cert = source.required("gateway.tls_cert", section.tls_cert.as_ref())?;
        let key = source.required("gateway.tls_key", section.tls_key.as_ref())?;
        let (clients, client_accounts) = Self::clients(source, section)?;
        let wrong = |what| source.wrong(format!("gateway: {what}"));
        let connect_timeout = positive("connect_timeout", section.connect_timeout, CONNECT_TIMEOUT, wrong)?;
        let lists = rules::lists(
            source,
            section.forbidden_hosts.as_ref(),
            section.allowed_hosts.as_ref(),
            section.protocols.as_ref(),
        )?;
        let access = section.access.as_ref().map(|access| rules::access(source, access)).transpose()?;
        let policy = Policy::new(lists.into_rules("gateway").chain(access));
        let routes = section.routes.as_deref().unwrap_or_default();
        Ok(Self {
            listen_addr: source.required("gateway.listen_addr", section.listen_addr.as_ref())?.value.clone(),
            tls: tls::server(cert, key, section.tls_client_ca.as_deref(), &[b"http/1.1"])?,
            fronts: Front::all(source)?,
            clients,
            client_accounts,
            rules: for_clients(&policy).map_err(wrong)?,
            policy,
            routes: rules::routes(source, routes)?,
            limits: Limits::new(source, section)?,
            open_ports_addr: match &section.open_ports_addr {
                None => Ipv4Addr::LOCALHOST.into(),
                Some(text) => {
                    text.parse().map_err(|_| wrong(format!("open_ports_addr: {text:?} is not an address")))?
                }
            },
            relay: RelayConfig {
                idle_timeout: unless_zero(section.idle_timeout, IDLE_TIMEOUT),
                half_closed_timeout: unless_zero(section.half_closed_timeout, HALF_CLOSED_TIMEOUT),
            },
            handshake_timeout: positive(
                "handshake_timeout",
                section.handshake_timeout,
                HANDSHAKE_TIMEOUT,
                wrong,
            )?,
            // The client is told two thirds of it.
            open_timeout: connect_timeout + connect_timeout / 2,
            drain_timeout: duration(section.drain_timeout, DRAIN_TIMEOUT),
            tunnel: tunnel(wrong, section.ping_interval, section.ping_timeout, section.memory_limit)?,
            busy_poll: busy_poll(section.busy_poll, wrong)?,
        })
    }

    fn clients(source: &Source, section: &config::Gateway) -> Result<(Accounts, Rights), Failure> {
        let mut users = Placed::default();
        let mut rights = Rights::new();
        let username = section.auth_username.as_deref();
        let file = section.auth_password_file.as_deref();
        if let Some(user) = accounts::single(source, None, username, section.auth_password.as_ref(), file)? {
            let account = ClientAccount::new(user.username.as_str(), std::iter::empty::<&str>());
            rights.insert(user.username.clone(), Arc::new(account));
            users.extend(Place::default(), Some(user));
        }
        for spanned in section.clients.iter().flatten() {
            let client = &spanned.value;
            let Some(username) = &client.username else {
                return Err(source.mistake(spanned.defined, "an account needs a username"));
            };
            let proof = accounts::proof(
                source,
                spanned.defined,
                client.password.as_ref(),
                client.password_file.as_deref(),
                client.password_hash.as_ref(),
            )?;
            let user = match proof {
                Proof::Password(password) => User::plain(username, password),
                Proof::Hash(hash) => User::hashed(username, hash),
            };
            users.extend(spanned.defined, Some(user));
            for group in client.groups.iter().flatten() {
                accounts::check_group(source, spanned.defined, Some(group))?;
            }
            // Who comes in by such a port is `port:` and this name to everybody.
            let most = ClientAccount::MAX_NAME_WITH_PORTS;
            if client.open_ports.is_some() && username.len() > most {
                let what = format!("an account with open_ports has a name of at most {most} bytes");
                return Err(source.mistake(spanned.defined, what));
            }
            let groups = client.groups.iter().flatten().map(String::as_str);
            let ports = client.open_ports.iter().flatten().map(|ports| ports.0.clone());
            let account = ClientAccount::new(username.as_str(), groups).with_open_ports(ports);
            rights.insert(username.clone(), Arc::new(account));
        }
        if users.is_empty() {
            let what =
                "clients need an account: give gateway.auth_username and auth_password, or gateway.clients";
            return Err(source.wrong(what));
        }
        Ok((users.check(source)?, rights))
    }
}

impl Limits {
    fn new(source: &Source, section: &config::Gateway) -> Result<Self, Failure> {
        let limits = section.limits.clone().unwrap_or_default();
        let queue = limits.queue.unwrap_or_default();
        let balance = section.balance.clone().unwrap_or_default();
        let at_least_one = |key: &str, value: Option<usize>| match value {
            Some(0) => Err(source.wrong(format!("gateway.limits.{key} is 0: nobody could connect"))),
            value => Ok(value),
        };
        Ok(Self {
            max_connections: at_least_one("max_connections", limits.max_connections)?,
            per_user_connections: at_least_one("per_user_connections", limits.per_user_connections)?,
            per_user_dials: at_least_one("per_user_dials", limits.per_user_dials)?.unwrap_or(512),
            queue_size: queue.size.unwrap_or(1_024),
            queue_timeout: duration(queue.timeout, Duration::from_secs(5)),
            wait_for_client: duration(limits.wait_for_client, Duration::from_secs(3)),
            rate: limits
                .rate
                .map(|rate| {
                    quota(&rate).map_err(|error| source.wrong(format!("gateway.limits.rate: {error}")))
                })
                .transpose()?,
            bandwidth: limits
                .bandwidth
                .map(|limit| {
                    bandwidth(&limit)
                        .map_err(|error| source.wrong(format!("gateway.limits.bandwidth {error}")))
                })
                .transpose()?,
            balance: self::balance(&balance)
                .ok_or_else(|| source.wrong("gateway.balance.retries is at most 2"))?,
        })
    }

    /// The queue's settings, on a machine that lets this process have so many files open.
    pub(crate) fn queue(&self, open_files: usize) -> anyproxy_queue::Settings {
        anyproxy_queue::Settings {
            max_connections: self.max_connections.unwrap_or_else(|| users(open_files)),
            per_user_connections: self.per_user_connections.unwrap_or(usize::MAX),
            per_user_dials: self.per_user_dials,
            waiting: self.queue_size,
            timeout: self.queue_timeout,
        }
    }

    /// The limits that hold for a dial, in words.
    pub(crate) fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(Quota { key, per_second, burst }) = self.rate {
            lines.push(format!("{per_second} dials a second, {burst} at once, by {}", word(key)));
        }
        if let Some(Bandwidth { key, up, down }) = self.bandwidth {
            let rate = |rate: Option<NonZeroU64>| {
                rate.map_or_else(|| "any number of".to_owned(), |rate| rate.to_string())
            };
            lines.push(format!("{} bytes a second up, {} down, by {}", rate(up), rate(down), word(key)));
        }
        if let Some(most) = self.per_user_connections {
            lines.push(format!("{most} streams of one user"));
        }
        lines.push(format!("{} unanswered dials of one user", self.per_user_dials));
        lines.push(self.max_connections.map_or_else(
            || "streams in all by the limit of open files".to_owned(),
            |most| format!("{most} streams in all"),
        ));
        lines
            .push(format!("{} dials waiting for a place, {:?} at most", self.queue_size, self.queue_timeout));
        lines.push(format!("{:?} of waiting while no client is there", self.wait_for_client));
        lines
    }
}

/// The most connections of users, with and without a stream, on a machine that lets this process have so many files
/// open. Each takes one of them; an eighth stays for clients, handshakes and logs, and half as much for
/// [`associations`]. At a client as many may be open when one is taken for a target.
pub(crate) const fn users(open_files: usize) -> usize {
    open_files - open_files / 8 - open_files / 16
}

/// The most UDP associations of a front there. Each takes a file beside its connection, and two fronts may have them.
pub(crate) const fn associations(open_files: usize) -> usize {
    open_files / 32
}

/// What clients are sent of `policy`. One that they could not take would have them refuse every name.
fn for_clients(policy: &Policy) -> Result<Option<(u32, Bytes)>, String> {
    let rules = policy.for_clients();
    if let Some((_, encoded)) = &rules {
        Policy::decode(encoded, &anyproxy_acl::Limits::default()).map_err(|error| {
            format!("rules on ranges go to the clients, which could not take these: {error}")
        })?;
    }
    Ok(rules)
}

fn quota(rate: &config::Rate) -> Result<Quota, ZeroQuota> {
    let per_second = rate.per_second.unwrap_or(0);
    Quota::new(key(rate.key), per_second, rate.burst.unwrap_or(per_second))
}

fn bandwidth(limit: &config::Bandwidth) -> Result<Bandwidth, &'static str> {
    let rate = |rate: Option<config::Bytes>| {
        rate.map(|rate| NonZeroU64::new(rate.0).ok_or("of 0: nothing could travel")).transpose()
    };
    let (up, down) = (rate(limit.up)?, rate(limit.down)?);
    if up.or(down).is_none() {
        return Err("has neither up nor down: nothing would be limited");
    }
    Ok(Bandwidth { key: key(limit.key), up, down })
}

fn balance(section: &config::Balance) -> Option<Settings> {
    let strategy = match section.strategy.unwrap_or(config::Strategy::LeastLoaded) {
        config::Strategy::RoundRobin => Strategy::RoundRobin,
        config::Strategy::LeastLoaded => Strategy::LeastLoaded,
        config::Strategy::P2cEwma => Strategy::P2cEwma,
        config::Strategy::Random => Strategy::Random,
        config::Strategy::Sticky => Strategy::Sticky(match section.sticky_by {
            None | Some(config::StickyBy::User) => StickyBy::User,
            Some(config::StickyBy::Target) => StickyBy::Target,
        }),
    };
    let retries = section.retries.unwrap_or(2);
    (retries <= 2).then(|| Settings { retries: retries as u8, ..strategy.into() })
}

fn key(key: Option<config::Key>) -> Key {
    match key {
        None | Some(config::Key::User) => Key::User,
        Some(config::Key::Group) => Key::Group,
        Some(config::Key::Source) => Key::Source,
    }
}

const fn word(key: Key) -> &'static str {
    match key {
        Key::User => "user",
        Key::Group => "group",
        Key::Source => "source",
    }
}

#[cfg(test)]
mod tests {
    use anyproxy_acl::{Pattern, Rules};

    use super::*;

    #[test]
    fn rules_that_clients_could_not_take_are_refused_where_they_would_get_them() {
        let names = (0..270_000).map(|n| Pattern::parse(&format!("host-{n}.example")).unwrap().into());
        let policy = Policy::new([Rules::forbidden("gateway", names.clone())]);
        assert_eq!(for_clients(&policy), Ok(None), "they stay here");
        let range = Pattern::parse("169.254.0.0/16").unwrap().into();
        let policy = Policy::new([Rules::forbidden("gateway", names.chain([range]))]);
        assert!(for_clients(&policy).unwrap_err().contains("rules"));
    }
}
