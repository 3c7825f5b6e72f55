//! The tunnels to one gateway: as few as are asked for, and more while all of them are full.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyproxy_core::Target;
use anyproxy_tunnel::ClientTunnel;
use anyproxy_workers::{Pulse, Seats};
use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::client::Shared;
use crate::config::Replicas;
use crate::door::Door;
use crate::supervisor::supervise;
use crate::udp::Associations;

/// How often it is looked how full tunnels are.
const LOOK: Duration = Duration::from_secs(1);

/// So many looks in a row that find all full make one tunnel more. One look may meet a moment.
const FULL_LOOKS: u32 = 3;

/// So many in a row that find none full make one less: a minute, since what was just needed may be again.
const CALM_LOOKS: u32 = 60;

/// Keeps the tunnels to one gateway.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    gateway: Target,
    door: Arc<Door>,
    stop: CancellationToken,
    places: Vec<Arc<Place>>,
    /// Given back, and still carrying what began on them.
    draining: Vec<ClientTunnel>,
    /// Of the places, and of those given back that have not noticed yet.
    supervisors: JoinSet<()>,
    demand: Demand,
}

/// A tunnel of a pool, whether or not it stands at the moment.
pub(crate) struct Place {
    standing: Mutex<Option<Standing>>,
    /// That of the thread that serves it, if it was put on one.
    thread: Option<Pulse>,
    /// Cancelled when the pool does without it, or the client stops.
    pub(crate) leave: CancellationToken,
}

/// A tunnel that stands.
pub(crate) struct Standing {
    pub(crate) tunnel: ClientTunnel,
    pub(crate) associations: Arc<Associations>,
}

impl Pool {
    pub(crate) fn new(shared: Arc<Shared>, gateway: Target, stop: CancellationToken) -> Self {
        Self {
            shared,
            gateway,
            door: Arc::default(),
            stop,
            places: Vec::new(),
            draining: Vec::new(),
            supervisors: JoinSet::new(),
            demand: Demand::default(),
        }
    }

    /// Until the client stops, or no thread is left that a tunnel could be supervised on.
    pub(crate) async fn keep(mut self) {
        let replicas = self.shared.config.replicas;
        while self.places.len() < replicas.min {
            self.add();
        }
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = self.supervisors.join_next() => match ended {
                    None => return,
                    Some(Ok(())) => {}
                    // Its thread is gone.
                    Some(Err(error)) => tracing::error!(%error, "a tunnel is not supervised any more"),
                },
                _ = looks.tick(), if replicas.min < replicas.max && !self.stop.is_cancelled() => self.look(replicas),
            }
        }
    }

    fn add(&mut self) {
        let seat = self.shared.config.seats.as_ref().map(Seats::take);
        let place = Arc::new(Place {
            standing: Mutex::default(),
            thread: seat.as_ref().map(|seat| seat.pulse().clone()),
            leave: self.stop.child_token(),
        });
        self.places.push(place.clone());
        let (shared, gateway, door, stop) =
            (self.shared.clone(), self.gateway.clone(), self.door.clone(), self.stop.clone());
        let supervisor = always(place.clone(), move || {
            supervise(shared.clone(), gateway.clone(), door.clone(), place.clone(), stop.clone())
        });
        match seat {
            None => self.supervisors.spawn(supervisor),
            Some(seat) => {
                let thread = seat.handle().clone();
                self.supervisors.spawn_on(seat.keep(supervisor), &thread)
            }
        };
    }

    fn look(&mut self, replicas: Replicas) {
        // Where every thread is busy one more tunnel only takes from the others.
        let spread = self.shared.config.seats.as_ref().is_some_and(Seats::is_any_idle);
        let streams = self.places.iter().map(|place| place.streams()).sum();
        let full = self.places.iter().filter(|place| place.is_full(spread)).count();
        self.draining.retain(|tunnel| !tunnel.is_closed());
        let (tunnels, draining) = (self.places.len(), self.draining.len());
        match self.demand.look(replicas, &Sight { tunnels, draining, full, streams }) {
            None => {}
            Some(Change::More) => {
                tracing::info!(gateway = %self.gateway, tunnels = tunnels + 1, "all tunnels are full: one more");
                self.add();
            }
            Some(Change::Less) => self.give_back(),
        }
    }

    /// Does without the tunnel that is worth least; its streams may finish. One that carries datagrams of a user is kept:
    /// those for new destinations would go by another, and leave from another port (RFC 4787 section 4.1).
    fn give_back(&mut self) {
        let idle = (0..self.places.len()).rev().filter(|place| !self.places[*place].has_associations());
        let Some(place) = idle.min_by_key(|place| self.places[*place].worth()) else { return };
        let place = self.places.swap_remove(place);
        tracing::info!(gateway = %self.gateway, tunnels = self.places.len(), "no tunnel was full: one less");
        self.draining.extend(place.standing().take().map(|standing| standing.tunnel));
        place.leave.cancel();
    }
}

/// Supervises `place` until that is left: one who panics is followed by another, so that a mistake costs a tunnel for a
/// moment and not for ever.
async fn always<F: Future<Output = ()>>(place: Arc<Place>, supervise: impl Fn() -> F) {
    let mut backoff = Backoff::default();
    loop {
        let begun = Instant::now();
        // What it left half done was about a tunnel that is given up here.
        if AssertUnwindSafe(supervise()).catch_unwind().await.is_ok() {
            return;
        }
        let wait = backoff.lost(begun.elapsed(), fastrand::f64());
        tracing::error!("a supervisor of a tunnel failed: another follows");
        if let Some(standing) = place.standing().take() {
            standing.tunnel.drain();
        }
        if place.leave.run_until_cancelled(sleep(wait)).await.is_none() {
            return;
        }
    }
}

impl Place {
    /// Notes the tunnel that stands here now, or that none does.
    pub(crate) fn set(&self, standing: Option<Standing>) {
        *self.standing() = standing;
    }

    fn standing(&self) -> MutexGuard<'_, Option<Standing>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> usize {
        self.worth().unwrap_or_default()
    }

    /// One that does not stand is done without first, then that with the fewest streams.
    fn worth(&self) -> Option<usize> {
        self.standing().as_ref().map(|standing| standing.tunnel.streams())
    }

    fn has_associations(&self) -> bool {
        self.standing().as_ref().is_some_and(|standing| !standing.associations.is_empty())
    }

    /// `spread`: there is a thread with moments left.
    fn is_full(&self, spread: bool) -> bool {
        let is_busy = spread && self.thread.as_ref().is_some_and(Pulse::is_busy);
        let standing = self.standing();
        let tunnel = standing.as_ref().map(|standing| &standing.tunnel);
        tunnel.is_some_and(|tunnel| tunnel.is_full() || (is_busy && tunnel.streams() > 0))
    }
}

// === When there are more or fewer ===

/// What was seen at the latest looks.
#[derive(Debug, Default)]
struct Demand {
    /// Looks in a row at which all tunnels were full,
    full: u32,
    /// and at which none was.
    calm: u32,
}

/// What is seen at one look.
struct Sight {
    tunnels: usize,
    /// Those that were given back and still stand: connections of the gateway like the others.
    draining: usize,
    /// Those that are full. One that does not stand is not.
    full: usize,
    /// Streams of all of them.
    streams: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    More,
    Less,
}

impl Demand {
    fn look(&mut self, replicas: Replicas, sight: &Sight) -> Option<Change> {
        // A stream stays where it began, so a tunnel for each is as much as helps.
        let all_full = sight.full == sight.tunnels && sight.streams > sight.tunnels;
        self.full = if all_full { self.full.saturating_add(1) } else { 0 };
        self.calm = if sight.full == 0 { self.calm.saturating_add(1) } else { 0 };
        let change = if self.full >= FULL_LOOKS && sight.tunnels + sight.draining < replicas.max {
            Change::More
        } else if self.calm >= CALM_LOOKS && sight.tunnels > replicas.min {
            Change::Less
        } else {
            return None;
        };
        *self = Self::default();
        Some(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICAS: Replicas = Replicas { min: 1, max: 3 };

    /// The number of tunnels after so many looks, of which so many find each tunnel full, or none.
    struct Model {
        demand: Demand,
        tunnels: usize,
        draining: usize,
    }

    impl Model {
        fn looks(&mut self, looks: u32, full: bool, streams: usize) -> usize {
            for _ in 0..looks {
                let full = if full { self.tunnels } else { 0 };
                let (tunnels, draining) = (self.tunnels, self.draining);
                match self.demand.look(REPLICAS, &Sight { tunnels, draining, full, streams }) {
                    None => {}
                    Some(Change::More) => self.tunnels += 1,
                    Some(Change::Less) => self.tunnels -= 1,
                }
            }
            self.tunnels
        }
    }

    fn model(tunnels: usize) -> Model {
        Model { demand: Demand::default(), tunnels, draining: 0 }
    }

    #[test]
    fn a_pool_grows_while_all_are_full_and_no_further_than_its_most() {
        let mut model = model(1);
        assert_eq!(model.looks(FULL_LOOKS - 1, true, 16), 1);
        assert_eq!(model.looks(1, true, 16), 2, "three seconds");
        assert_eq!(model.looks(FULL_LOOKS - 1, true, 16), 2, "and three more for the next one");
        assert_eq!(model.looks(1, true, 16), 3);
        assert_eq!(model.looks(1000, true, 16), 3);
    }

    #[test]
    fn what_still_drains_counts_towards_the_most() {
        let mut model = Model { draining: 1, ..model(1) };
        assert_eq!(model.looks(1000, true, 16), 2);
        model.draining = 0;
        assert_eq!(model.looks(1, true, 16), 3);
    }

    #[test]
    fn a_moment_is_not_enough() {
        let mut model = model(1);
        for _ in 0..100 {
            assert_eq!(model.looks(FULL_LOOKS - 1, true, 16), 1);
            assert_eq!(model.looks(1, false, 16), 1);
        }
    }

    #[test]
    fn more_tunnels_than_streams_help_nobody() {
        assert_eq!(model(1).looks(100, true, 1), 1);
        assert_eq!(model(1).looks(100, true, 2), 2);
    }

    #[test]
    fn one_that_is_not_full_has_room_for_those_who_come() {
        let mut demand = Demand::default();
        let sight = Sight { tunnels: 2, draining: 0, full: 1, streams: 16 };
        assert!((0..200).all(|_| demand.look(REPLICAS, &sight).is_none()), "nor is it calm");
    }

    #[test]
    fn a_calm_minute_gives_one_back_and_no_more_than_to_the_least() {
        let mut model = model(3);
        assert_eq!(model.looks(CALM_LOOKS - 1, false, 16), 3);
        assert_eq!(model.looks(1, false, 16), 2);
        assert_eq!(model.looks(CALM_LOOKS - 1, false, 16), 2);
        assert_eq!(model.looks(1, true, 16), 2, "not calm");
        assert_eq!(model.looks(CALM_LOOKS - 1, false, 16), 2);
        assert_eq!(model.looks(1, false, 0), 1);
        assert_eq!(model.looks(1000, false, 0), 1);
    }
}
