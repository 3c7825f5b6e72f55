//! Which client serves an association: the first that served a flow of it, for as long as one of its flows lives.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyproxy_core::Association;

use crate::client::Client;

/// The pinned associations. As many entries as associations with living flows: the last flow's guard removes it.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<HashMap<Association, Weak<Pin>>>);

/// Held by every flow of an association.
#[derive(Debug)]
pub(crate) struct Pin {
    association: Association,
    client: Client,
    /// The tunnel of that client; its sockets for the association belong to one tunnel.
    session: AtomicU64,
    pins: Arc<Pins>,
}

/// The association's flows leave from another client, which is alive.
pub(crate) struct PinnedElsewhere;

impl Pins {
    /// The client that serves the association now.
    pub(crate) fn client(&self, association: Association) -> Option<Arc<str>> {
        let pin = self.lock().get(&association).and_then(Weak::upgrade)?;
        Some(pin.client.id().clone())
    }

    /// Joins the association's flows at `client`, or makes it theirs if they have no living client.
    pub(crate) fn hold(
        self: &Arc<Self>,
        association: Association,
        client: &Client,
    ) -> Result<Arc<Pin>, PinnedElsewhere> {
        let mut pins = self.lock();
        // Dropped after the lock: the last pin's drop takes it again.
        let old = pins.get(&association).and_then(Weak::upgrade);
        match old {
            Some(pin) if pin.client.id() == client.id() => {
                drop(pins);
                Ok(pin)
            }
            Some(pin) if pin.client.is_usable() => {
                drop(pins);
                drop(pin);
                Err(PinnedElsewhere)
            }
            old => {
                let pin = Arc::new(Pin {
                    association,
                    client: client.clone(),
                    session: AtomicU64::new(0),
                    pins: self.clone(),
                });
                pins.insert(association, Arc::downgrade(&pin));
                drop(pins);
                drop(old);
                Ok(pin)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Association, Weak<Pin>>> {
        // Nothing panics while it holds the lock, and a map of weak pointers is never half right.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pin {
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
