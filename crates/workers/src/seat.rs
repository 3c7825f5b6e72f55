use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::runtime::Handle;

use crate::{Crew, Pulse, Waits};

/// Threads, each with a runtime, and who sits where. Cheap to clone; clones are the same threads.
#[derive(Clone)]
pub struct Workers(Arc<[Worker]>);

#[derive(Debug)]
struct Worker {
    handle: Handle,
    pulse: Pulse,
    tunnels: AtomicUsize,
    users: AtomicUsize,
}

impl Worker {
    const fn count(&self, kind: Kind) -> &AtomicUsize {
        match kind {
            Kind::Tunnel => &self.tunnels,
            Kind::User => &self.users,
        }
    }
}

impl Workers {
    /// The runtime this is called in, whatever its flavour, and no other: everybody sits there.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[must_use]
    pub fn here() -> Self {
        Self::new([(Handle::current(), Pulse::still())])
    }

    /// So many threads (at least one): that of the runtime this is called in, which should be of the
    /// `current_thread` flavour and whose [`Pulse`] is `first`, and the others new. They end with the [`Crew`].
    ///
    /// # Errors
    ///
    /// If the system has no more threads, or no more descriptors for their runtimes.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn start(threads: usize, first: Pulse) -> io::Result<(Self, Crew)> {
        let (crew, others) = Crew::start(threads.saturating_sub(1))?;
        Ok((Self::new([(Handle::current(), first)].into_iter().chain(others)), crew))
    }

    fn new(threads: impl IntoIterator<Item = (Handle, Pulse)>) -> Self {
        let worker = |(handle, pulse)| Worker {
            handle,
            pulse,
            tunnels: AtomicUsize::new(0),
            users: AtomicUsize::new(0),
        };
        Self(threads.into_iter().map(worker).collect())
    }

    /// How long each of the threads, once it has nothing to do, goes on looking for work before it sleeps:
    /// [`Pulse::set_busy_poll`]. Those of [`here`](Self::here) sleep as their runtime has it.
    pub fn set_busy_poll(&self, limit: Duration) {
        for worker in &*self.0 {
            worker.pulse.set_busy_poll(limit);
        }
    }

    /// How the waits of all threads for something to do have ended.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.0.iter().map(|worker| worker.pulse.waits()).sum()
    }

    /// Seats for tunnels: each where the fewest are, and among those rather not where the thread is busy.
    #[must_use]
    pub fn tunnels(&self) -> Seats {
        Seats { workers: self.clone(), kind: Kind::Tunnel }
    }

    /// Seats for users: each beside tunnels, where the fewest users are; or, while that thread is busy, on whichever
    /// is least so.
    #[must_use]
    pub fn users(&self) -> Seats {
        Seats { workers: self.clone(), kind: Kind::User }
    }

    /// The place for one more tunnel.
    fn for_tunnel(&self) -> usize {
        self.least(|worker| Some((worker.tunnels.load(Ordering::Relaxed), worker.pulse.is_busy())))
    }

    /// The place for one more user.
    fn for_user(&self) -> usize {
        let has_tunnels = self.0.iter().any(|worker| worker.tunnels.load(Ordering::Relaxed) > 0);
        let place = self.least(|worker| {
            let suits = !has_tunnels || worker.tunnels.load(Ordering::Relaxed) > 0;
            suits.then(|| worker.users.load(Ordering::Relaxed))
        });
        if self.0.len() > 1 && self.0[place].pulse.is_busy() {
            return self.least(|worker| Some(worker.pulse.percent()));
        }
        place
    }

    /// The first of those with the least; those with none do not count.
    fn least<T: Ord>(&self, of: impl Fn(&Worker) -> Option<T>) -> usize {
        let rated = self.0.iter().enumerate().filter_map(|(index, worker)| Some((of(worker)?, index)));
        rated.min().map_or(0, |(_, index)| index)
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|worker| (&worker.tunnels, &worker.users))).finish()
    }
}

// === Seats ===

/// Where newcomers of one kind are put.
#[derive(Clone, Debug)]
pub struct Seats {
    workers: Workers,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tunnel,
    User,
}

impl Seats {
    /// Whether there is a thread that has moments left.
    #[must_use]
    pub fn is_any_idle(&self) -> bool {
        self.workers.0.iter().any(|worker| !worker.pulse.is_busy())
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.workers.0.iter().map(|worker| worker.count(self.kind).load(Ordering::Relaxed)).sum()
    }

    /// A seat for one more.
    #[must_use]
    pub fn take(&self) -> Seat {
        let place = match self.kind {
            Kind::Tunnel => self.workers.for_tunnel(),
            Kind::User => self.workers.for_user(),
        };
        let seat = Seat { workers: self.workers.clone(), place: place as u32, kind: self.kind };
        seat.count().fetch_add(1, Ordering::Relaxed);
        seat
    }
}

/// A place on a thread, taken until it is dropped.
pub struct Seat {
    workers: Workers,
    place: u32,
    kind: Kind,
}

impl Seat {
    /// The runtime of the thread.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.worker().handle
    }

    /// How much the thread works.
    #[must_use]
    pub fn pulse(&self) -> &Pulse {
        &self.worker().pulse
    }

    /// Whether it is the thread this is called on.
    #[must_use]
    pub fn is_here(&self) -> bool {
        Handle::try_current().is_ok_and(|here| here.id() == self.handle().id())
    }

    /// Whether both are on one thread.
    #[must_use]
    pub fn is_beside(&self, other: &Self) -> bool {
        self.handle().id() == other.handle().id()
    }

    fn worker(&self) -> &Worker {
        &self.workers.0[self.place as usize]
    }

    fn count(&self) -> &AtomicUsize {
        self.worker().count(self.kind)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.count().fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("place", &self.place).field("kind", &self.kind).finish()
    }
}

pin_project! {
    /// A future that keeps its seat until it is dropped.
    #[derive(Debug)]
    pub struct Seated<F> {
        #[pin]
        future: F,
        seat: Seat,
    }
}

impl Seat {
    /// `future` on this seat. It still is to be spawned there: on [`handle`](Self::handle).
    pub const fn keep<F>(self, future: F) -> Seated<F> {
        Seated { future, seat: self }
    }
}

impl<F: Future> Future for Seated<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn tunnels_spread_and_users_sit_beside_them() {
        let (workers, _crew) = Workers::start(3, Pulse::still()).unwrap();
        let first = workers.tunnels().take();
        assert!(first.is_here(), "one tunnel, one thread: nothing is handed over at all");
        let users: Vec<_> = (0..3).map(|_| workers.users().take()).collect();
        assert!(users.iter().all(|user| user.is_beside(&first)));

        let second = workers.tunnels().take();
        assert!(!second.is_beside(&first));
        let user = workers.users().take();
        assert!(user.is_beside(&second), "where there are fewer users");
        let third = workers.tunnels().take();
        assert!(!third.is_beside(&first) && !third.is_beside(&second));
        assert!(workers.tunnels().take().is_here(), "the fourth of three");
    }

    #[tokio::test]
    async fn a_seat_is_free_again_when_it_is_dropped() {
        let (workers, _crew) = Workers::start(2, Pulse::still()).unwrap();
        drop(workers.tunnels().take());
        assert!(workers.tunnels().take().is_here());
        drop(workers.users().take());
        assert_eq!(format!("{workers:?}"), "[(0, 0), (0, 0)]");
        let seat = workers.users().take();
        assert_eq!((workers.users().taken(), workers.tunnels().taken()), (1, 0));
        drop(seat.keep(std::future::pending::<()>()));
        assert_eq!(format!("{workers:?}"), "[(0, 0), (0, 0)]");
    }

    #[test]
    fn a_seat_is_small() {
        assert!(size_of::<Seat>() <= 24, "every user's task has one");
    }

    #[tokio::test]
    async fn without_a_tunnel_users_spread() {
        let (workers, _crew) = Workers::start(2, Pulse::still()).unwrap();
        let (one, other) = (workers.users().take(), workers.users().take());
        assert!(!one.is_beside(&other));
    }

    #[test]
    fn a_thread_without_a_moment_left_gets_no_more_users_until_it_has() {
        let (runtime, pulse) = Pulse::runtime().unwrap();
        runtime.block_on(async {
            let (workers, _crew) = Workers::start(2, pulse).unwrap();
            let tunnel = workers.tunnels().take();
            // A moment without work, from which on it is watched, and then a task that does not let go. What is
            // judged is time, so time must pass.
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(workers.users().take().is_beside(&tunnel));
            tokio::spawn(async { thread::sleep(Duration::from_millis(300)) }).await.unwrap();
            assert!(!workers.users().take().is_beside(&tunnel));
            let second = workers.tunnels().take();
            assert!(!workers.tunnels().take().is_beside(&tunnel), "both have one, and this one is busy");
            drop(second);
            // And a rest.
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(workers.users().take().is_beside(&tunnel));
        });
    }

    #[tokio::test]
    async fn work_runs_where_its_seat_is_and_ends_with_the_crew() {
        let (workers, crew) = Workers::start(2, Pulse::still()).unwrap();
        let _first = workers.tunnels().take();
        let seat = workers.tunnels().take();
        let (say, heard) = oneshot::channel();
        let (alive, dead) = oneshot::channel::<()>();
        let handle = seat.handle().clone();
        handle.spawn(seat.keep(async move {
            let _alive = alive;
            let _ = say.send(thread::current().name().map(str::to_owned));
            std::future::pending::<()>().await;
        }));
        assert_eq!(heard.await.unwrap().as_deref(), Some("anyproxy-1"));
        crew.stop(Duration::from_secs(10));
        assert!(dead.await.is_err(), "dropped with its thread");
        assert_eq!(format!("{workers:?}"), "[(1, 0), (0, 0)]");
    }
}
