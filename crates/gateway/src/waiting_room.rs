//! Those who have connected and not logged in yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// A bounded room: when one more comes in, the one that has waited longest goes. So a crowd that never logs in
/// costs a bounded amount, and a client that does, which takes a few round trips, is let through all the same.
#[derive(Clone, Debug)]
pub(crate) struct WaitingRoom(Arc<Room>);

#[derive(Debug)]
struct Room {
    places: usize,
    /// In the order of arrival, so in the order of their numbers too.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    line: VecDeque<(u64, CancellationToken)>,
}

/// One who waits. Leaves the room on drop.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    number: u64,
    evicted: CancellationToken,
}

impl WaitingRoom {
    /// A room with `places`, at least one.
    pub(crate) fn new(places: usize) -> Self {
        Self(Arc::new(Room { places: places.max(1), waiting: Mutex::default() }))
    }

    /// Comes in; the oldest goes if there is no place left.
    pub(crate) fn enter(&self) -> Place {
        let evicted = CancellationToken::new();
        let mut waiting = self.0.lock();
        let number = waiting.next;
        waiting.next += 1;
        let oldest = if waiting.line.len() >= self.0.places { waiting.line.pop_front() } else { None };
        waiting.line.push_back((number, evicted.clone()));
        drop(waiting);
        if let Some((_, oldest)) = oldest {
            oldest.cancel();
        }
        Place { room: self.0.clone(), number, evicted }
    }
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it holds the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Ready when somebody else needs the place.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.room.lock();
        if let Ok(index) = waiting.line.binary_search_by_key(&self.number, |(number, _)| *number) {
            waiting.line.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w8_the_oldest_goes_when_the_room_is_full() {
        let room = WaitingRoom::new(2);
        let (first, second) = (room.enter(), room.enter());
        assert!(!first.evicted.is_cancelled());
        let third = room.enter();
        assert!(first.evicted.is_cancelled());
        assert!(!second.evicted.is_cancelled() && !third.evicted.is_cancelled());
    }

    #[test]
    fn a_place_left_is_free_again() {
        let room = WaitingRoom::new(2);
        let first = room.enter();
        drop(room.enter());
        let _second = room.enter();
        assert!(!first.evicted.is_cancelled());
        drop(first);
        assert_eq!(room.0.lock().line.len(), 1);
    }
}
