//! The sections of the file, key by key.

use serde::Deserialize;

use crate::overlay::Overlay;
use crate::value::{
    Bytes, Duration, Gateways, HostPattern, Key, ListenAddr, LogFormat, LogLevel, LogOutput, Password, Ports,
    Protocol, Replicas, Spanned, StickyBy, Strategy, given,
};

/// Declares sections: structs of optional keys, unknown ones and those without a value refused, that can be laid over each
/// other.
macro_rules! sections {
    ($(
        $(#[$doc:meta])*
        $name:ident { $( $(#[$key_doc:meta])* $key:ident: $type:ty, )* }
    )+) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[$key_doc])*
                #[serde(default, deserialize_with = "given")]
                pub $key: Option<$type>,
            )*
        }

        impl Overlay for $name {
            fn overlay(&mut self, upper: Self) {
                $( self.$key.overlay(upper.$key); )*
            }

            fn forget_places(&mut self) {
                $( self.$key.forget_places(); )*
            }
        }
    )+};
}

sections! {
    /// The whole file.
    File {
        /// What is logged, and how.
        log: Log,
        /// The fronts for users; a front whose section is absent is not started.
        proxy: Proxy,
        /// The gateway's end of tunnels.
        gateway: Gateway,
        /// The client.
        client: Client,
        /// Metrics and health, for gateway and client. Absent: none.
        admin: Admin,
    }

    /// `log`.
    Log {
        /// The least severe level that is written. Default: `info`.
        level: LogLevel,
        /// For people or for programs. Default: `text`.
        format: LogFormat,
        /// Where to. Default: `stdout`.
        output: LogOutput,
    }

    /// `proxy`.
    Proxy {
        /// The HTTP proxy.
        http: Spanned<Front>,
        /// The SOCKS5 proxy.
        socks5: Spanned<Front>,
        /// HTTP and SOCKS5 on one port, told apart by their first byte.
        mixed: Spanned<Front>,
        /// TLS passed through by its server name.
        sni: Spanned<Sni>,
    }

    /// A front: `proxy.http`, `proxy.socks5` or `proxy.mixed`.
    Front {
        /// Where users connect to. Required.
        listen_addr: Spanned<ListenAddr>,
        /// The certificate chain, PEM: users speak TLS to this front. Default: plain TCP.
        tls_cert: String,
        /// Its private key, PEM.
        tls_key: String,
        /// The one account's name. Default: none.
        auth_username: String,
        /// Its password.
        auth_password: Password,
        /// A file that holds its password.
        auth_password_file: String,
        /// Several accounts.
        users: Vec<Spanned<User>>,
        /// A file of accounts in htpasswd form, bcrypt or argon2id.
        users_file: Spanned<String>,
        /// The group of accounts that name none. Default: `default`.
        group: String,
        /// Lets an open front listen on an address that is not loopback. Default: false.
        allow_anonymous: bool,
        /// The longest a handshake, or a request's head from its first byte, may take. Default: 10s.
        handshake_timeout: Duration,
        /// The longest a connection may idle between requests. HTTP only. Default: 75s.
        keep_alive_timeout: Duration,
        /// UDP ASSOCIATE. SOCKS5 only.
        udp: Udp,
    }

    /// `udp` of a SOCKS5 front.
    Udp {
        /// Whether UDP ASSOCIATE is served. Default: true.
        enabled: bool,
        /// The address told to users instead of the one they connected to, for gateways behind NAT; users of the other
        /// address family are told the one they connected to.
        advertise_addr: String,
        /// The longest an association may be silent. Default: 120s.
        idle_timeout: Duration,
    }

    /// An account of a front.
    User {
        /// The name. Required.
        username: String,
        /// The password.
        password: Password,
        /// A file that holds it.
        password_file: String,
        /// Or its hash: argon2id or bcrypt.
        password_hash: Password,
        /// The one group. Default: that of the front.
        group: String,
        /// Or several; the first is where dials go that no route sends elsewhere.
        groups: Vec<String>,
    }

    /// `proxy.sni`.
    Sni {
        /// Where users connect to. Required.
        listen_addr: Spanned<ListenAddr>,
        /// The server names that are passed through. Required.
        hosts: Vec<Spanned<HostPattern>>,
        /// The group that serves them. Default: `default`.
        group: String,
        /// The port dialled at the target. Default: 443.
        port: u16,
        /// The longest a ClientHello may take. Default: 10s.
        handshake_timeout: Duration,
    }

    /// `gateway`.
    Gateway {
        /// Where clients connect to. Required.
        listen_addr: Spanned<ListenAddr>,
        /// The certificate chain, PEM. Required.
        tls_cert: String,
        /// Its private key, PEM. Required.
        tls_key: String,
        /// Authorities whose client certificates are demanded, PEM. Default: none are asked for.
        tls_client_ca: String,
        /// What clients log in with.
        auth_username: String,
        /// The password.
        auth_password: Password,
        /// A file that holds it.
        auth_password_file: String,
        /// Several accounts for clients.
        clients: Vec<Spanned<ClientAccount>>,
        /// Targets nobody reaches; wins over `allowed_hosts`.
        forbidden_hosts: Vec<Spanned<HostPattern>>,
        /// The only targets anybody reaches. Default: all.
        allowed_hosts: Vec<Spanned<HostPattern>>,
        /// What may travel. Default: tcp and udp.
        protocols: Vec<Protocol>,
        /// Ordered rules.
        access: Access,
        /// From targets to groups, for users of several.
        routes: Vec<Spanned<Route>>,
        /// Limits on users.
        limits: Limits,
        /// Which client of a group serves a dial.
        balance: Balance,
        /// The address that clients' `open_ports` are bound on. Default: 127.0.0.1.
        open_ports_addr: String,
        /// The longest TLS, upgrade and hello of a client may take together. Default: 10s.
        handshake_timeout: Duration,
        /// How often a silent tunnel is asked for a sign of life. Default: 20s.
        ping_interval: Duration,
        /// How long that may take. Default: 10s.
        ping_timeout: Duration,
        /// How long a client may take to connect to a target. Default: 10s.
        connect_timeout: Duration,
        /// How long a stream may be silent; 0 = for ever. Default: 1h.
        idle_timeout: Duration,
        /// How long a half-closed stream may make no progress; 0 = for ever. Default: 10m.
        half_closed_timeout: Duration,
        /// How long living streams have to finish after SIGTERM. Default: 30s.
        drain_timeout: Duration,
        /// What streams' bytes may occupy. Default: half of what the machine or its control group has.
        memory_limit: Bytes,
        /// How long a thread that has nothing to do goes on looking for work before it sleeps, where that lately paid.
        /// Default: 100us, or 0 where a control group has a CPU quota; at most 1ms; 0: not at all.
        busy_poll: Duration,
    }

    /// An account of a client.
    ClientAccount {
        /// The name. Required.
        username: String,
        /// The password.
        password: Password,
        /// A file that holds it.
        password_file: String,
        /// Or its hash: argon2id or bcrypt.
        password_hash: Password,
        /// The groups it may serve. Default: `default`.
        groups: Vec<String>,
        /// The gateway's ports it may ask for. Default: none.
        open_ports: Vec<Ports>,
    }

    /// `gateway.access`.
    Access {
        /// What happens to dials no rule matches: `allow` or `deny`. Default: allow.
        default: crate::value::Action,
        /// The rules; the first that matches decides.
        rules: Vec<Spanned<Rule>>,
    }

    /// A rule: either `allow` or `deny`, and whom it is about.
    Rule {
        /// Targets that are allowed.
        allow: Vec<Spanned<HostPattern>>,
        /// Targets that are denied.
        deny: Vec<Spanned<HostPattern>>,
        /// Only for these users.
        users: Vec<String>,
        /// Only for users of these groups.
        groups: Vec<String>,
        /// Only through these fronts: `http`, `socks5`, `sni`, `port`. Those who come in by `proxy.mixed` speak HTTP or
        /// SOCKS5.
        fronts: Vec<String>,
        /// Only for these protocols.
        protocols: Vec<Protocol>,
    }

    /// `gateway.limits`. A user is a name in a group, the first of several: the same name in another one is another user.
    Limits {
        /// The most streams at once; a UDP association is one, however many destinations it has. Default: by the limit of
        /// open files.
        max_connections: usize,
        /// The most streams of one user at once, counted alike. Default: no limit.
        per_user_connections: usize,
        /// The most dials of one user under way at once, not answered so far; further ones wait for a place, and
        /// destinations of a UDP association, whose datagrams do not wait, are refused at once. Default: 512.
        per_user_dials: usize,
        /// Waiting for a free place.
        queue: Queue,
        /// How long a dial waits while no client of its group is there. Default: 3s.
        wait_for_client: Duration,
        /// Dials per second. Default: no limit.
        rate: Rate,
        /// Bytes per second. Default: no limit.
        bandwidth: Bandwidth,
    }

    /// `gateway.limits.queue`.
    Queue {
        /// The most dials that wait. Default: 1024.
        size: usize,
        /// The longest one waits. Default: 5s.
        timeout: Duration,
    }

    /// `gateway.limits.rate`.
    Rate {
        /// What is counted by. Default: user.
        key: Key,
        /// Dials per second. Required.
        per_second: u32,
        /// Dials at once. Default: as `per_second`.
        burst: u32,
    }

    /// `gateway.limits.bandwidth`. Requires `up`, `down`, or both.
    Bandwidth {
        /// What is counted by. Default: user.
        key: Key,
        /// Bytes per second towards targets. Default: no limit.
        up: Bytes,
        /// Bytes per second towards users. Default: no limit.
        down: Bytes,
    }

    /// An entry of `gateway.routes`.
    Route {
        /// The targets. Required.
        targets: Vec<Spanned<HostPattern>>,
        /// The group that serves them, for users who hold it. Required.
        group: String,
    }

    /// `gateway.balance`.
    Balance {
        /// How a client is chosen. Default: `least_loaded`.
        strategy: Strategy,
        /// What `sticky` goes by. Default: user.
        sticky_by: StickyBy,
        /// On how many other clients a dial is tried that reached no target. Default: 2, the most.
        retries: u32,
    }

    /// `client`.
    Client {
        /// The gateway or gateways, `host:port`. Required.
        gateway_addr: Gateways,
        /// Certificates trusted besides the system's, PEM; one that equals the gateway's own is enough.
        gateway_tls_cert: String,
        /// The client's name at the gateway. Required.
        client_id: String,
        /// The group it serves. Default: `default`.
        group_id: String,
        /// Tunnels to keep open to each gateway: a number, or `{ min, max }` for more while all are full. Default: 1, and `max`
        /// as `min`.
        replicas: Replicas,
        /// What it logs in with.
        auth_username: String,
        /// The password.
        auth_password: Password,
        /// A file that holds it.
        auth_password_file: String,
        /// The client's own certificate chain, PEM, where the gateway demands one.
        tls_cert: String,
        /// Its private key, PEM.
        tls_key: String,
        /// Targets that are not dialled; wins over `allowed_hosts`. A name is judged as it was asked for, before the
        /// system completes it or follows an alias: forbid short forms, or the addresses, too.
        forbidden_hosts: Vec<Spanned<HostPattern>>,
        /// The only targets dialled. Default: everything not forbidden.
        allowed_hosts: Vec<Spanned<HostPattern>>,
        /// What may travel. Default: tcp and udp.
        protocols: Vec<Protocol>,
        /// If present, only these services are dialled.
        limit: Vec<Spanned<LocalService>>,
        /// Ports of the gateway that lead to services here.
        open_ports: Vec<Spanned<OpenPort>>,
        /// How often a silent tunnel is asked for a sign of life. Default: 20s.
        ping_interval: Duration,
        /// How long that may take. Default: 10s.
        ping_timeout: Duration,
        /// How long connecting to a target, or to the gateway, may take. Default: 10s.
        connect_timeout: Duration,
        /// How long a stream may be silent; 0 = for ever. Default: 1h.
        idle_timeout: Duration,
        /// How long a half-closed stream may make no progress; 0 = for ever. Default: 10m.
        half_closed_timeout: Duration,
        /// How long living streams have to finish after SIGTERM. Default: 30s.
        drain_timeout: Duration,
        /// What streams' bytes may occupy. Default: half of what the machine or its control group has.
        memory_limit: Bytes,
        /// How long a thread that has nothing to do goes on looking for work before it sleeps, where that lately paid.
        /// Default: 100us, or 0 where a control group has a CPU quota; at most 1ms; 0: not at all.
        busy_poll: Duration,
    }

    /// An entry of `client.limit`.
    LocalService {
        /// A name for people.
        name: String,
        /// Where it is: `host:port`. Required.
        addr: Spanned<HostPattern>,
        /// Its protocol. Default: tcp.
        protocol: Protocol,
    }

    /// An entry of `client.open_ports`.
    OpenPort {
        /// The gateway's port. Required.
        remote_port: u16,
        /// Where the service is, seen from the client. Default: 127.0.0.1.
        local_host: String,
        /// Its port. Required.
        local_port: u16,
        /// Its protocol. Default: tcp.
        protocol: Protocol,
    }

    /// `admin`.
    Admin {
        /// Where `/metrics`, `/healthz` and `/readyz` are served. Required.
        listen_addr: Spanned<ListenAddr>,
        /// How many users a gateway's metrics tell apart by name; those beyond share `other`. Default: 0, nobody.
        user_labels: u16,
    }
}
