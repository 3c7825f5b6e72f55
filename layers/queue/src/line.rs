//! Seats, and the line in front of them: one mutex, its own counters, everything in it a few steps long.

use std::collections::{HashMap, VecDeque, hash_map};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use anyproxy_core::{Association, BoxError, Dial, Digest, DigestMap, Network};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use crate::error::{Overloaded, TooManyConnections};

/// How many streams there may be, and who may wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The most streams at once (default: unlimited); 0 lets nobody in. What a process can carry follows from its
    /// descriptors and its memory. All flows of an association are one.
    pub max_connections: usize,
    /// The most streams of one user at once, waiting dials included (default: unlimited). Users are told
    /// apart by name and group, anonymous ones by their network ([`Dial::who`]).
    pub per_user_connections: usize,
    /// The most dials of one user under way at once, not answered so far (default: 512); further ones wait in the line. A
    /// tunnel has room for 1,024: one user's scan of ports that nobody answers is to leave half of it to others. Flows of
    /// an association count too, and are refused at once, as datagrams do not wait.
    pub per_user_dials: usize,
    /// The most dials that wait (default: 1,024); 0 = nobody waits. A longer line serves nobody sooner.
    pub waiting: usize,
    /// How long a dial waits (default: 5 s). Longer than users wait, and seats go to those who have left.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_connections: usize::MAX,
            per_user_connections: usize::MAX,
            per_user_dials: 512,
            waiting: 1024,
            timeout: Duration::from_secs(5),
        }
    }
}

/// How it stands now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Seats taken: living streams and dials under way.
    pub running: usize,
    /// Dials that wait.
    pub waiting: usize,
}

/// The seats and the line.
#[derive(Debug, Default)]
pub(crate) struct Line(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    settings: Settings,
    /// Nobody waits any more.
    closed: bool,
    running: usize,
    waiting: usize,
    /// Users with a seat or a place in the line; nobody else.
    users: DigestMap<User>,
    /// Those of them who wait, each once, whose turn is next in front.
    turns: VecDeque<Digest>,
    next_ticket: u64,
    /// An association is one connection of its user, however many flows it has.
    associations: HashMap<Association, Weak<Seat>>,
}

#[derive(Debug, Default)]
struct User {
    running: usize,
    /// Of those the ones that are not answered yet, and of flows besides.
    dialling: usize,
    waiting: VecDeque<Ticket>,
}

/// A place in the line. Its number finds it again.
#[derive(Debug)]
struct Ticket {
    number: u64,
    verdict: oneshot::Sender<Result<(), Overloaded>>,
}

/// A seat; free again when dropped. A stream holds it until its last byte.
#[derive(Debug)]
pub struct Permit {
    _hold: Hold,
}

#[derive(Debug)]
enum Hold {
    One { _seat: Seat },
    Shared { _seat: Arc<Seat> },
}

#[derive(Debug)]
struct Seat {
    line: Arc<Line>,
    key: Digest,
    association: Option<Association>,
}

/// A dial under way; over when dropped, which is when it was answered or given up.
#[derive(Debug)]
pub(crate) struct UnderWay {
    line: Arc<Line>,
    key: Digest,
}

/// A dial in the line.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// `None` once the wait is over.
    place: Option<Place>,
    verdict: oneshot::Receiver<Result<(), Overloaded>>,
    deadline: Pin<Box<Sleep>>,
}

#[derive(Debug)]
struct Place {
    line: Arc<Line>,
    key: Digest,
    number: u64,
    association: Option<Association>,
}

/// What a dial gets at once.
pub(crate) enum Entry {
    Seated(Permit, UnderWay),
    Waiting(Waiter),
    Refused(BoxError),
}

// === impl Line ===

impl Line {
    pub(crate) fn new(settings: Settings) -> Self {
        Self(Mutex::new(State { settings, ..State::default() }))
    }

    /// Gives a dial a seat, a place in the line, or a refusal.
    pub(crate) fn enter(self: &Arc<Self>, dial: &Dial) -> Entry {
        let key = dial.who();
        let association = match dial.network {
            Network::Tcp => None,
            Network::Udp(association) => Some(association),
        };
        let mut state = self.lock();
        let settings = state.settings;
        if let Some(seat) =
            association.and_then(|association| state.associations.get(&association)?.upgrade())
        {
            let user = state.users.entry(key).or_default();
            if user.dialling >= settings.per_user_dials {
                // Before the seat, which may be the last to hold it, and then wants the lock.
                drop(state);
                return Entry::Refused(Overloaded::LineFull.into());
            }
            user.dialling += 1;
            return Entry::Seated(Permit { _hold: Hold::Shared { _seat: seat } }, self.under_way(key));
        }
        let has_seats = state.running < settings.max_connections;
        let user = state.users.entry(key);
        if connections(&user) >= settings.per_user_connections {
            return Entry::Refused(TooManyConnections.into());
        }
        // Whoever waits keeps all seats taken, or has as many dials under way as they may: nobody is overtaken here.
        if has_seats && dials(&user) < settings.per_user_dials {
            user.or_default().take_seat();
            state.running += 1;
            let permit = self.seat(&mut state, key, association);
            return Entry::Seated(permit, self.under_way(key));
        }
        if state.closed {
            return Entry::Refused(Overloaded::Closed.into());
        }
        if !state.make_room(key) {
            return Entry::Refused(Overloaded::LineFull.into());
        }
        let (number, verdict) = state.wait(key);
        let deadline = Box::pin(sleep(state.settings.timeout));
        drop(state);
        let place = Some(Place { line: self.clone(), key, number, association });
        Entry::Waiting(Waiter { place, verdict, deadline })
    }

    /// Puts settings in place. Streams that are more than may be now live on; dials that are more than may wait are
    /// turned away.
    pub(crate) fn set(&self, settings: Settings) {
        let mut state = self.lock();
        state.settings = settings;
        state.seat_next();
        while state.waiting > settings.waiting {
            let Some(longest) = state.longest() else { break };
            state.turn_away_last(longest);
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        self.lock().settings
    }

    pub(crate) fn status(&self) -> Status {
        let state = self.lock();
        Status { running: state.running, waiting: state.waiting }
    }

    /// Turns all away who wait, and whoever would wait from now on.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for key in std::mem::take(&mut state.turns) {
            let Some(user) = state.users.get_mut(&key) else { continue };
            let waiting = std::mem::take(&mut user.waiting);
            let is_empty = user.is_empty();
            state.waiting -= waiting.len();
            for ticket in waiting {
                let _ = ticket.verdict.send(Err(Overloaded::Closed));
            }
            if is_empty {
                state.users.remove(&key);
            }
        }
    }

    /// Whether nothing at all is kept.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.running == 0
            && state.waiting == 0
            && state.users.is_empty()
            && state.turns.is_empty()
            && state.associations.is_empty()
    }

    /// For a dial that is counted already.
    fn under_way(self: &Arc<Self>, key: Digest) -> UnderWay {
        UnderWay { line: self.clone(), key }
    }

    /// The permit for a seat that is counted already.
    fn seat(self: &Arc<Self>, state: &mut State, key: Digest, association: Option<Association>) -> Permit {
        let seat = Seat { line: self.clone(), key, association };
        let hold = match association {
            None => Hold::One { _seat: seat },
            Some(association) => {
                let seat = Arc::new(seat);
                state.associations.insert(association, Arc::downgrade(&seat));
                Hold::Shared { _seat: seat }
            }
        };
        Permit { _hold: hold }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// Whether the line has a place for one more dial of this user. A full line takes it from the user who has the
    /// most, if those are more than the newcomer's would be.
    fn make_room(&mut self, key: Digest) -> bool {
        if self.waiting < self.settings.waiting {
            return true;
        }
        let places = |key: Digest| self.users.get(&key).map_or(0, |user| user.waiting.len());
        match self.longest() {
            Some(longest) if self.settings.waiting > 0 && places(longest) > places(key) + 1 => {
                self.turn_away_last(longest);
                true
            }
            _ => false,
        }
    }

    fn longest(&self) -> Option<Digest> {
        self.turns.iter().max_by_key(|key| self.users.get(key).map_or(0, |user| user.waiting.len())).copied()
    }

    fn wait(&mut self, key: Digest) -> (u64, oneshot::Receiver<Result<(), Overloaded>>) {
        let (verdict, receiver) = oneshot::channel();
        let number = self.next_ticket;
        self.next_ticket += 1;
        let user = self.users.entry(key).or_default();
        if user.waiting.is_empty() {
            self.turns.push_back(key);
        }
        user.waiting.push_back(Ticket { number, verdict });
        self.waiting += 1;
        (number, receiver)
    }

    /// Gives free seats to those who wait and may dial, one user after the other.
    fn seat_next(&mut self) {
        let mut turn = 0;
        while self.running < self.settings.max_connections {
            let Some(&key) = self.turns.get(turn) else { return };
            if self.users.get(&key).is_some_and(|user| user.dialling >= self.settings.per_user_dials) {
                // Their turn stays: they go on with the first of their dials that is answered.
                turn += 1;
                continue;
            }
            self.turns.remove(turn);
            let Some(user) = self.users.get_mut(&key) else { continue };
            let Some(ticket) = user.waiting.pop_front() else { continue };
            user.take_seat();
            if !user.waiting.is_empty() {
                self.turns.push_back(key);
            }
            self.waiting -= 1;
            self.running += 1;
            // A waiter leaves the line under this lock, so whoever is in it is still there to hear.
            let _ = ticket.verdict.send(Ok(()));
        }
    }

    fn turn_away_last(&mut self, key: Digest) {
        let Some(user) = self.users.get_mut(&key) else { return };
        if let Some(ticket) = user.waiting.pop_back() {
            self.waiting -= 1;
            let _ = ticket.verdict.send(Err(Overloaded::LineFull));
        }
        self.tidy(key);
    }

    /// Takes a waiter out; `false` if it was called up already.
    fn leave(&mut self, key: Digest, number: u64) -> bool {
        let Some(user) = self.users.get_mut(&key) else { return false };
        let Ok(index) = user.waiting.binary_search_by_key(&number, |ticket| ticket.number) else {
            return false;
        };
        user.waiting.remove(index);
        self.waiting -= 1;
        self.tidy(key);
        true
    }

    fn release(&mut self, key: Digest) {
        self.running -= 1;
        if let hash_map::Entry::Occupied(mut user) = self.users.entry(key) {
            user.get_mut().running -= 1;
            // Whoever waits has a turn; whoever does not, has none to forget.
            if user.get().is_empty() {
                user.remove();
            }
        }
        self.seat_next();
    }

    /// A dial of this user is over.
    fn answered(&mut self, key: Digest) {
        if let hash_map::Entry::Occupied(mut user) = self.users.entry(key) {
            user.get_mut().dialling -= 1;
            let waits = !user.get().waiting.is_empty();
            if user.get().is_empty() {
                user.remove();
            }
            if waits {
                self.seat_next();
            }
        }
    }

    /// Forgets what is empty.
    fn tidy(&mut self, key: Digest) {
        let Some(user) = self.users.get(&key) else { return };
        if !user.waiting.is_empty() {
            return;
        }
        if user.is_empty() {
            self.users.remove(&key);
        }
        if let Some(index) = self.turns.iter().position(|other| *other == key) {
            self.turns.remove(index);
        }
    }
}

// === impl User ===

impl User {
    /// One more stream, whose dial begins.
    const fn take_seat(&mut self) {
        self.running += 1;
        self.dialling += 1;
    }

    fn is_empty(&self) -> bool {
        self.running == 0 && self.dialling == 0 && self.waiting.is_empty()
    }
}

/// Living streams and waiting dials of one user; one look-up serves the question and what follows from it.
fn connections(user: &hash_map::Entry<'_, Digest, User>) -> usize {
    match user {
        hash_map::Entry::Occupied(user) => user.get().running + user.get().waiting.len(),
        hash_map::Entry::Vacant(_) => 0,
    }
}

/// Dials of one user that are under way.
fn dials(user: &hash_map::Entry<'_, Digest, User>) -> usize {
    match user {
        hash_map::Entry::Occupied(user) => user.get().dialling,
        hash_map::Entry::Vacant(_) => 0,
    }
}

// === impl Seat ===

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.line.lock();
        if let Some(association) = self.association
            // Another seat may have taken its place: two first flows at once.
            && state.associations.get(&association).is_some_and(|seat| std::ptr::eq(seat.as_ptr(), self))
        {
            state.associations.remove(&association);
        }
        state.release(self.key);
    }
}

// === impl UnderWay ===

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.line.lock().answered(self.key);
    }
}

// === impl Waiter ===

impl Future for Waiter {
    type Output = Result<(Permit, UnderWay), Overloaded>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match Pin::new(&mut self.verdict).poll(cx) {
            Poll::Ready(Ok(Ok(()))) => {
                // Polled after its end it would have no place; a future may then do what it likes.
                let Some(place) = self.place.take() else { return Poll::Pending };
                let Place { line, key, association, .. } = place;
                let mut state = line.lock();
                let permit = line.seat(&mut state, key, association);
                drop(state);
                Poll::Ready(Ok((permit, line.under_way(key))))
            }
            Poll::Ready(Ok(Err(refused))) => {
                self.place = None;
                Poll::Ready(Err(refused))
            }
            // The line is gone, which its place keeps alive.
            Poll::Ready(Err(_)) => Poll::Ready(Err(Overloaded::LineFull)),
            Poll::Pending => {
                if self.deadline.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.give_up();
                Poll::Ready(Err(Overloaded::TooLate))
            }
        }
    }
}

impl Waiter {
    /// Leaves the line; a seat that was given meanwhile goes to the next.
    fn give_up(&mut self) {
        let Some(place) = self.place.take() else { return };
        let mut state = place.line.lock();
        if !state.leave(place.key, place.number) && matches!(self.verdict.try_recv(), Ok(Ok(()))) {
            state.answered(place.key);
            state.release(place.key);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.give_up();
    }
}
