//! SIGHUP: the file is read again, and taken over as a whole or not at all.
//!
//! What changes without anybody noticing: accounts, rules, routes, limits, how clients are chosen, certificates, how long
//! threads look for work; and where users and clients connect to: the new address is bound before the old one is closed, and
//! one that is taken is a file that is not taken over. What a new file revokes is refused from then on: requests and logins
//! of users, and tunnels of clients whose account is gone or may do less than before. Streams and UDP associations that live
//! go on; an association's new destinations are judged by the new accounts and rules. Whatever else differs is named in the
//! log and waits for a restart. A front that the file has no longer, or with accounts or TLS where it had none, or without
//! those it had, cannot wait: such a file is not taken over.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock};

use anyproxy_acl::AclHandle;
use anyproxy_auth::AccountsHandle;
use anyproxy_balance::BalanceHandle;
use anyproxy_config::File;
use anyproxy_core::run_blocking;
use anyproxy_front::Tls;
use anyproxy_gateway::Clients;
use anyproxy_http::ReuseLayer;
use anyproxy_queue::{QueueHandle, WaitHandle};
use anyproxy_rate_limit::{BandwidthHandle, RateLimitHandle};
use anyproxy_workers::Workers;
use arc_swap::ArcSwap;

use crate::failure::Failure;
use crate::listen::{Move, Place};
use crate::settings::{self, Protocol, Source};
use crate::signals::Hangups;
use crate::stack::{self, Rights};

/// A file that is read again whenever a SIGHUP comes.
pub(crate) struct Reloads {
    source: Arc<Source>,
    hangups: Hangups,
}

impl Reloads {
    pub(crate) const fn new(source: Arc<Source>, hangups: Hangups) -> Self {
        Self { source, hangups }
    }

    /// Lets `running` take over the file with each SIGHUP, for ever. One that cannot be taken over changes nothing.
    pub(crate) async fn serve<R: Running>(self, running: R) -> Infallible {
        let name = &self.source.name;
        // Both stand at zero before the first SIGHUP.
        let [ok, failed] =
            ["ok", "failed"].map(|outcome| metrics::counter!("anyproxy_reloads_total", "outcome" => outcome));
        loop {
            self.hangups.next().await;
            match self.read::<R>().await.and_then(|settings| running.take_over(settings)) {
                Ok(waiting) => {
                    tracing::info!(file = %name, "SIGHUP: the file is in force");
                    if !waiting.is_empty() {
                        let keys = waiting.join(", ");
                        tracing::warn!(file = %name, %keys, "what these keys say now waits for a restart");
                    }
                    ok.increment(1);
                }
                Err(failure) => {
                    tracing::error!(file = %name, error = %failure, "SIGHUP: the file is not taken over, all stays as it was");
                    failed.increment(1);
                }
            }
        }
    }

    /// Reads on a thread that may block: a hundred thousand rules take a while.
    async fn read<R: Running>(&self) -> Result<R::Settings, Failure> {
        let source = self.source.clone();
        let read = run_blocking(move || R::settings(&source.reload()?));
        read.await.map_err(|error| Failure::of("reading the file", error))?
    }
}

/// What goes on while its settings change.
pub(crate) trait Running {
    type Settings: Send + 'static;

    /// All that `source` says, or what is wrong with it.
    fn settings(source: &Source) -> Result<Self::Settings, Failure>;

    /// Takes over all of them or none. The keys whose change waits for a restart.
    fn take_over(&self, settings: Self::Settings) -> Result<Vec<String>, Failure>;
}

// === Gateway ===

/// The handles to a running gateway.
pub(crate) struct Gateway {
    pub(crate) acl: AclHandle,
    pub(crate) rate: RateLimitHandle,
    pub(crate) bandwidth: BandwidthHandle,
    pub(crate) wait: WaitHandle,
    pub(crate) queue: QueueHandle,
    pub(crate) reuse: ReuseLayer,
    pub(crate) balance: BalanceHandle,
    pub(crate) fronts: Vec<Front>,
    /// Where clients connect to.
    pub(crate) place: Place,
    pub(crate) clients: Clients,
    pub(crate) client_accounts: AccountsHandle,
    pub(crate) rights: Arc<ArcSwap<Rights>>,
    pub(crate) tls: Tls,
    pub(crate) workers: Workers,
    pub(crate) open_files: usize,
    pub(crate) fixed: Fixed,
}

/// A front that runs.
pub(crate) struct Front {
    pub(crate) protocol: Protocol,
    pub(crate) place: Place,
    /// `None` where everybody may come in.
    pub(crate) accounts: Option<AccountsHandle>,
    pub(crate) tls: Option<Tls>,
}

impl Running for Gateway {
    type Settings = (settings::Gateway, Fixed);

    fn settings(source: &Source) -> Result<Self::Settings, Failure> {
        let section = source.required("gateway", source.file.gateway.as_ref())?;
        let settings = settings::Gateway::new(source, section)?;
        let fixed = Fixed::of_gateway(&settings, &source.file);
        // It takes a while with many rules: here, and not where users are served.
        let _ = settings.policy.version();
        Ok((settings, fixed))
    }

    fn take_over(&self, (settings, fixed): Self::Settings) -> Result<Vec<String>, Failure> {
        let mut waiting = self.check_fronts(&settings.fronts)?;
        let moves = self.bind(&settings)?;
        // Clients know a version before dials are judged by it.
        self.clients.set_rules(settings.rules);
        self.acl.replace(settings.policy);
        self.clients.set_routes(stack::routes(settings.routes));
        self.rate.replace(settings.limits.rate);
        self.bandwidth.replace(settings.limits.bandwidth);
        self.queue.replace(settings.limits.queue(self.open_files));
        self.wait.replace(settings.limits.wait_for_client);
        self.balance.replace(settings.limits.balance);
        self.workers.set_busy_poll(settings.busy_poll);
        for settings in settings.fronts {
            let Some(front) = self.fronts.iter().find(|front| front.protocol == settings.protocol) else {
                continue;
            };
            if let (Some(handle), Some(accounts)) = (&front.accounts, settings.accounts) {
                handle.replace(accounts);
            }
            if let (Some(tls), Some(config)) = (&front.tls, settings.tls) {
                tls.replace(config);
            }
        }
        self.tls.replace(settings.tls);
        let rights = Arc::new(settings.client_accounts);
        self.rights.store(rights.clone());
        self.client_accounts.replace(settings.clients);
        // Last: whoever logged in by the old accounts is among those it looks at, or comes in after it.
        self.clients
            .retain(move |account| rights.get(&**account.name()).is_some_and(|now| now.covers(account)));
        // Those kept for coming requests were dialled under the old rules.
        self.reuse.forget();
        moves.into_iter().for_each(Move::make);
        waiting.extend(self.fixed.changed(&fixed));
        Ok(waiting)
    }
}

impl Gateway {
    /// Whether the fronts that run are in the file as they are: one that is no longer there, or no longer open to everybody,
    /// must not go on as if nothing had been said. Those that do not run yet, which wait for a restart.
    fn check_fronts(&self, fronts: &[settings::Front]) -> Result<Vec<String>, Failure> {
        let differ = |what: String| {
            Err(Failure::of(
                what,
                "a change that needs a restart; nothing of the file is in force until then",
            ))
        };
        for running in &self.fronts {
            let name = running.protocol.as_str();
            let Some(wanted) = fronts.iter().find(|wanted| wanted.protocol == running.protocol) else {
                return differ(format!("proxy.{name} is not in the file"));
            };
            if running.accounts.is_some() != wanted.accounts.is_some() {
                return differ(format!("proxy.{name} has accounts, or has them no longer"));
            }
            if running.tls.is_some() != wanted.tls.is_some() {
                return differ(format!("proxy.{name} has a certificate, or has it no longer"));
            }
        }
        let new = fronts
            .iter()
            .filter(|wanted| !self.fronts.iter().any(|running| running.protocol == wanted.protocol));
        Ok(new.map(|wanted| format!("proxy.{}", wanted.protocol.as_str())).collect())
    }

    /// Binds the addresses that differ from those in use, all or none.
    fn bind(&self, settings: &settings::Gateway) -> Result<Vec<Move<'_>>, Failure> {
        let fronts = self.fronts.iter().filter_map(|running| {
            let wanted = settings.fronts.iter().find(|wanted| wanted.protocol == running.protocol)?;
            Some((&running.place, &wanted.listen_addr))
        });
        let all = fronts.chain([(&self.place, &settings.listen_addr)]);
        all.filter_map(|(place, wanted)| place.bind(wanted).transpose()).collect()
    }
}

// === Client ===

/// The handle to a running client.
pub(crate) struct Client {
    pub(crate) handle: anyproxy_client::Handle,
    pub(crate) workers: Workers,
    pub(crate) fixed: Fixed,
}

impl Running for Client {
    type Settings = (settings::Client, Fixed);

    fn settings(source: &Source) -> Result<Self::Settings, Failure> {
        let section = source.required("client", source.file.client.as_ref())?;
        let settings = settings::Client::new(source, section)?;
        let fixed = Fixed::of_client(&settings, section, &source.file);
        Ok((settings, fixed))
    }

    fn take_over(&self, (settings, fixed): Self::Settings) -> Result<Vec<String>, Failure> {
        self.handle.set_rules(settings.config.rules);
        self.workers.set_busy_poll(settings.busy_poll);
        Ok(self.fixed.changed(&fixed))
    }
}

// === Fixed ===

/// What is read at the start only: each key with what it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fixed(BTreeMap<String, String>);

impl Fixed {
    pub(crate) fn of_gateway(settings: &settings::Gateway, file: &File) -> Self {
        let mut fixed = Self::of_file(file);
        fixed.note("gateway.open_ports_addr", &settings.open_ports_addr);
        fixed.note("gateway.idle_timeout", &settings.relay.idle_timeout);
        fixed.note("gateway.half_closed_timeout", &settings.relay.half_closed_timeout);
        fixed.note("gateway.handshake_timeout", &settings.handshake_timeout);
        fixed.note("gateway.connect_timeout", &settings.open_timeout);
        fixed.note("gateway.drain_timeout", &settings.drain_timeout);
        fixed.note("gateway.ping_interval", &settings.tunnel.mux.ping_interval);
        fixed.note("gateway.ping_timeout", &settings.tunnel.mux.ping_timeout);
        fixed.note("gateway.memory_limit", &file.gateway.as_ref().map(|gateway| &gateway.memory_limit));
        for front in &settings.fronts {
            let name = front.protocol.as_str();
            fixed.note(format!("proxy.{name}.handshake_timeout"), &front.handshake_timeout);
            fixed.note(format!("proxy.{name}.keep_alive_timeout"), &front.keep_alive_timeout);
            fixed.note(format!("proxy.{name}.udp"), &front.udp);
            // With accounts the group is theirs.
            fixed.note(
                format!("proxy.{name}.group"),
                &front.group.as_ref().filter(|_| front.accounts.is_none()),
            );
            fixed.note(format!("proxy.{name}.hosts"), &front.passthrough.hosts);
            fixed.note(format!("proxy.{name}.port"), &front.passthrough.port);
        }
        fixed
    }

    /// All but its rules.
    pub(crate) fn of_client(
        settings: &settings::Client,
        section: &anyproxy_config::Client,
        file: &File,
    ) -> Self {
        let mut fixed = Self::of_file(file);
        macro_rules! note {
            ($($key:ident),+ $(,)?) => { $( fixed.note(concat!("client.", stringify!($key)), &section.$key); )+ };
        }
        note!(
            gateway_addr,
            client_id,
            group_id,
            replicas,
            auth_username,
            connect_timeout,
            idle_timeout,
            half_closed_timeout,
            drain_timeout,
            ping_interval,
            ping_timeout,
            memory_limit,
        );
        fixed.note("client.open_ports", &settings.config.open_ports);
        fixed.note_secret(
            "client.auth_password",
            settings.config.credentials.password.expose_secret().as_bytes(),
        );
        // Certificates come anew in files of the same name.
        let files = [
            ("client.gateway_tls_cert", &section.gateway_tls_cert),
            ("client.tls_cert", &section.tls_cert),
            ("client.tls_key", &section.tls_key),
        ];
        for (key, path) in files {
            let text = path.as_ref().and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
            fixed.note_secret(key, &text);
        }
        fixed
    }

    fn of_file(file: &File) -> Self {
        let mut fixed = Self::default();
        fixed.note("log", &file.log);
        let admin = file.admin.as_ref();
        fixed.note("admin.listen_addr", &admin.and_then(|admin| Some(&admin.listen_addr.as_ref()?.value)));
        fixed.note("admin.user_labels", &admin.map(|admin| admin.user_labels));
        fixed
    }

    fn note(&mut self, key: impl Into<String>, says: &impl std::fmt::Debug) {
        self.0.insert(key.into(), format!("{says:?}"));
    }

    /// Notes a number that says whether it changed, and nothing else.
    fn note_secret(&mut self, key: &str, says: &[u8]) {
        static NUMBERS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        self.note(key, &NUMBERS.hash_one(says));
    }

    /// The keys that say something else in `other`.
    fn changed(&self, other: &Self) -> Vec<String> {
        self.0
            .iter()
            .filter(|(key, says)| other.0.get(*key) != Some(says))
            .map(|(key, _)| key.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::fixture::{CLIENT, GATEWAY, source};

    #[test]
    fn an_admin_section_that_no_start_would_take_is_not_taken_over() {
        let (source, _dir) = source(&format!("admin: {{ user_labels: 3 }}\n{GATEWAY}{CLIENT}"));
        let (gateway, client) = (Gateway::settings(&source).err(), Client::settings(&source).err());
        for failure in [gateway, client] {
            assert_eq!(failure.unwrap().to_string(), "admin: needs a listen_addr");
        }
    }

    #[test]
    fn a_file_that_there_is_no_thread_for_is_not_taken_over() {
        let (source, _dir) = source(CLIENT);
        let reloads = Reloads::new(source.into(), Hangups::default());
        // Each thread is refused: no machine has such a stack.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.thread_stack_size(1 << 50).build().unwrap();
        let failure = runtime.block_on(reloads.read::<Client>()).err().unwrap();
        assert!(failure.to_string().contains("no thread"), "{failure}");
    }
}
