//! Which client of a group serves an association: the first that served a flow of it, for as long as one of its flows
//! there lives, so that a target sees one source port. Routes may send flows of one association to several groups, and in
//! each it has a client of its own. Where there is no flow, the client that granted the association itself is only the
//! first of its group to be asked: a layer may take the first flow elsewhere.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyproxy_core::Association;

use crate::client::Client;

/// The pinned associations, by group. As many entries as associations, each times the groups it has living flows in, which
/// are at most those of its user: the last flow's guard removes it.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<HashMap<Key, Weak<Pin>>>);

/// An association, and the group that a client must be of to have it.
type Key = (Association, Arc<str>);

/// A client with an association, or its group's part of one.
#[derive(Debug)]
pub(crate) struct Pin {
    association: Association,
    client: Client,
    /// Flows under way and living; without any, the pin gives way.
    flows: AtomicUsize,
    /// The tunnel of that client; its sockets for the association belong to one tunnel.
    session: AtomicU64,
    pins: Arc<Pins>,
}

/// Held by every flow of an association in a group, and by what keeps the association itself.
#[derive(Debug)]
pub(crate) struct Hold {
    pin: Arc<Pin>,
    flows: usize,
}

/// The association's flows leave from another client of the group, which is alive.
pub(crate) struct PinnedElsewhere;

impl Pins {
    /// The client of the group that serves the association now.
    pub(crate) fn client(&self, association: Association, group: &Arc<str>) -> Option<Arc<str>> {
        let pin = self.lock().get(&(association, group.clone())).and_then(Weak::upgrade)?;
        Some(pin.client.id().clone())
    }

    /// Joins the association at `client`, or makes it the association's if it has no living client of that group with a
    /// flow. `flow` is whether it is one that joins.
    pub(crate) fn hold(
        self: &Arc<Self>,
        association: Association,
        client: &Client,
        flow: bool,
    ) -> Result<Hold, PinnedElsewhere> {
        let key = (association, client.group().clone());
        let mut pins = self.lock();
        // Dropped after the lock: the last pin's drop takes it again.
        let old = pins.get(&key).and_then(Weak::upgrade);
        let joined = match &old {
            Some(pin) if pin.client.id() == client.id() => Ok(pin.clone()),
            Some(pin) if pin.has_flows() && pin.client.is_usable() => Err(PinnedElsewhere),
            _ => {
                let pin = Arc::new(Pin {
                    association,
                    client: client.clone(),
                    flows: AtomicUsize::new(0),
                    session: AtomicU64::new(0),
                    pins: self.clone(),
                });
                pins.insert(key, Arc::downgrade(&pin));
                Ok(pin)
            }
        };
        // Counted under the lock, so that nobody takes the association elsewhere meanwhile.
        let held = joined.map(|pin| Hold::new(pin, usize::from(flow)));
        drop(pins);
        drop(old);
        held
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Weak<Pin>>> {
        // Nothing panics while it holds the lock, and a map of weak pointers is never half right.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    fn new(pin: Arc<Pin>, flows: usize) -> Self {
        pin.flows.fetch_add(flows, Ordering::Relaxed);
        Self { pin, flows }
    }

    pub(crate) fn pin(&self) -> &Pin {
        &self.pin
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.pin.flows.fetch_sub(self.flows, Ordering::Relaxed);
    }
}

impl Pin {
    fn has_flows(&self) -> bool {
        self.flows.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn session(&self) -> u64 {
        self.session.load(Ordering::Relaxed)
    }

    pub(crate) fn set_session(&self, session: u64) {
        self.session.store(session, Ordering::Relaxed);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let key = (self.association, self.client.group().clone());
        let mut pins = self.pins.lock();
        // A pin that took its place stays.
        if pins.get(&key).is_some_and(|pin| std::ptr::eq(pin.as_ptr(), self)) {
            pins.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use anyproxy_tunnel::frame::{ClientHello, GatewayHello};
    use anyproxy_tunnel::{Config, WebSocket, accept, connect};
    use tokio::io::duplex;

    use super::*;
    use crate::account::ClientAccount;
    use crate::client::Link;
    use crate::registry::{Common, DEFAULT_OPEN_TIMEOUT};

    /// A client whose tunnel stands.
    async fn client(id: &str, group: &str) -> Client {
        let (near, far) = duplex(64 * 1024);
        let gateway = async {
            let accepting = accept(WebSocket::server(near), Config::default()).await.unwrap();
            accepting.finish(GatewayHello::new(1)).unwrap()
        };
        let hello = ClientHello::new(id, 1);
        let far = connect(WebSocket::client(far), hello, Config::default());
        tokio::spawn(async move { far.await.unwrap().3.await });
        let (tunnel, driver) = gateway.await;
        tokio::spawn(driver);
        let account = Arc::new(ClientAccount::new("east", [group]));
        let common = Arc::new(Common::new(DEFAULT_OPEN_TIMEOUT));
        Client::new(id.into(), group.into(), account, 1, Link::new(tunnel, 1), common)
    }

    #[tokio::test]
    async fn an_association_has_one_client_in_each_group_and_gives_each_back() {
        let [one, other, green] =
            [client("one", "blue").await, client("other", "blue").await, client("green", "green").await];
        let (pins, association) = (Arc::new(Pins::default()), Association::new());
        let hold = |client| pins.hold(association, client, true).ok();
        let first = hold(&one).unwrap();
        let elsewhere = hold(&green).expect("it is of another group");
        assert!(hold(&other).is_none());
        let pinned = |client: &Client| pins.client(association, client.group());
        assert_eq!((pinned(&one), pinned(&green)), (Some("one".into()), Some("green".into())));
        drop(first);
        assert_eq!((pinned(&one), pinned(&green)), (None, Some("green".into())));
        let second = hold(&other).unwrap();
        drop(elsewhere);
        assert_eq!((pinned(&one), pinned(&green)), (Some("other".into()), None));
        drop(second);
        assert!(pins.lock().is_empty());
    }
}
