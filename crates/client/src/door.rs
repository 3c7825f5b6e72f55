//! How the tunnels of a pool come in: one after the other, until the gateway has let one in.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, MutexGuard};

/// Behind an open door all may come at once. At a shut one they take turns, so that a wrong password is said by one tunnel
/// and not by all: the gateway counts wrong logins by their source, and others may have the same.
#[derive(Debug, Default)]
pub(crate) struct Door {
    turn: Mutex<()>,
    open: AtomicBool,
}

impl Door {
    /// Waits for one's turn; `None` if nobody has to. It lasts until it is dropped.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the line.
    pub(crate) async fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        if self.is_open() {
            return None;
        }
        let turn = self.turn.lock().await;
        // Whoever was before may have been let in.
        (!self.is_open()).then_some(turn)
    }

    /// The gateway has let a tunnel in.
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Relaxed);
    }

    /// Whether it would let another in is not known any more.
    pub(crate) fn shut(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::task::spawn;
    use tokio_test::{assert_pending, assert_ready};

    use super::*;

    #[test]
    fn one_after_the_other_until_one_was_let_in_and_then_all() {
        let door = Door::default();
        let (mut first, mut second, mut third) = (spawn(door.turn()), spawn(door.turn()), spawn(door.turn()));
        let turn = assert_ready!(first.poll());
        assert_pending!(second.poll());
        assert_pending!(third.poll());
        drop(turn);
        let turn = assert_ready!(second.poll());
        assert!(turn.is_some(), "the first was not let in");
        assert_pending!(third.poll());
        door.open();
        drop(turn);
        assert!(assert_ready!(third.poll()).is_none());
        assert!(assert_ready!(spawn(door.turn()).poll()).is_none());
        door.shut();
        assert!(assert_ready!(spawn(door.turn()).poll()).is_some());
    }
}
