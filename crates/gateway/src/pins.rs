//! Which client serves an association: the first that served a flow of it, for as long as one of its flows lives.
//! Where there is none, the one that granted the association itself is only the first to be asked: a route may take the
//! first flow elsewhere.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyproxy_core::Association;

use crate::client::Client;

/// The pinned associations. As many entries as associations with living flows: the last flow's guard removes it.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<HashMap<Association, Weak<Pin>>>);

/// A client with an association.
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

/// Held by every flow of an association, and by what keeps the association itself.
#[derive(Debug)]
pub(crate) struct Hold {
    pin: Arc<Pin>,
    flows: usize,
}

/// The association's flows leave from another client, which is alive.
pub(crate) struct PinnedElsewhere;

impl Pins {
    /// The client that serves the association now.
    pub(crate) fn client(&self, association: Association) -> Option<Arc<str>> {
        let pin = self.lock().get(&association).and_then(Weak::upgrade)?;
        Some(pin.client.id().clone())
    }

    /// Joins the association at `client`, or makes it the association's if it has no living client with a flow.
    /// `flow` is whether it is one that joins.
    pub(crate) fn hold(
        self: &Arc<Self>,
        association: Association,
        client: &Client,
        flow: bool,
    ) -> Result<Hold, PinnedElsewhere> {
        let mut pins = self.lock();
        // Dropped after the lock: the last pin's drop takes it again.
        let old = pins.get(&association).and_then(Weak::upgrade);
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
                pins.insert(association, Arc::downgrade(&pin));
                Ok(pin)
            }
        };
        // Counted under the lock, so that nobody takes the association elsewhere meanwhile.
        let held = joined.map(|pin| Hold::new(pin, usize::from(flow)));
        drop(pins);
        drop(old);
        held
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Association, Weak<Pin>>> {
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
        let mut pins = self.pins.lock();
        // A pin that took its place stays.
        if pins.get(&self.association).is_some_and(|pin| std::ptr::eq(pin.as_ptr(), self)) {
            pins.remove(&self.association);
        }
    }
}
