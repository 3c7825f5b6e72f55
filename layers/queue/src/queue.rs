use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use anyproxy_core::{BoxError, Dial, Guarded, Journal};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::ServiceExt as _;
use tower::util::Oneshot;
use tower_layer::Layer;
use tower_service::Service;

use crate::line::{Entry, Line, Permit, Settings, Status, UnderWay, Waiter};

/// Lets at most so many streams live at once, and the others wait for a while, fairly.
///
/// All services made by one layer, and all clones, share the seats.
#[derive(Clone, Debug)]
pub struct QueueLayer {
    line: Arc<Line>,
}

/// Changes the settings of a [`Queue`] while dials run, and tells how it stands.
#[derive(Clone, Debug)]
pub struct QueueHandle {
    line: Arc<Line>,
}

/// Lets at most so many streams live at once.
///
/// Always ready: the wait is the dial's, and the service below is made ready and called only after it, so that
/// nothing is reserved there meanwhile.
#[derive(Clone, Debug)]
pub struct Queue<S> {
    inner: S,
    line: Arc<Line>,
}

// === impl QueueLayer ===

impl QueueLayer {
    /// Seats and a line of their own.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { line: Arc::new(Line::new(settings)) }
    }

    /// The same, with a handle to them.
    #[must_use]
    pub fn pair(settings: Settings) -> (Self, QueueHandle) {
        let layer = Self::new(settings);
        let handle = QueueHandle { line: layer.line.clone() };
        (layer, handle)
    }
}

impl<S> Layer<S> for QueueLayer {
    type Service = Queue<S>;

    fn layer(&self, inner: S) -> Queue<S> {
        Queue { inner, line: self.line.clone() }
    }
}

// === impl QueueHandle ===

impl QueueHandle {
    /// Puts settings in place. More seats are given to those who wait at once; with fewer, nobody is let in until
    /// enough streams have ended, and none is ended for it. A dial that waits keeps its deadline.
    pub fn replace(&self, settings: Settings) {
        self.line.set(settings);
    }

    /// Ends every wait, and lets nobody wait any more: the gateway drains. Dials that find a seat are let in as before.
    /// There is no way back.
    pub fn close(&self) {
        self.line.close();
    }

    /// The settings in place.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.line.settings()
    }

    /// How it stands now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.line.status()
    }
}

// === impl Queue ===

impl<S> Queue<S> {
    /// The service below.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Takes the service below out.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S> Service<Dial> for Queue<S>
where
    S: Service<Dial> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = Guarded<S::Response, Permit>;
    type Error = BoxError;
    type Future = ResponseFuture<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, dial: Dial) -> Self::Future {
        let state = match self.line.enter(&dial) {
            Entry::Seated(permit, under_way) => {
                State::Dialing { answer: self.inner.clone().oneshot(dial), seat: Some((permit, under_way)) }
            }
            Entry::Waiting(waiter) => State::Waiting {
                waiter,
                next: Some((self.inner.clone(), dial.clone())),
                waited: Waited::new(dial.journal),
            },
            Entry::Refused(error) => State::Refused { error: Some(error) },
        };
        ResponseFuture { state }
    }
}

// === ResponseFuture ===

pin_project! {
    /// Response future of [`Queue`].
    pub struct ResponseFuture<S: Service<Dial>> {
        #[pin]
        state: State<S>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S: Service<Dial>> {
        Waiting { #[pin] waiter: Waiter, next: Option<(S, Dial)>, waited: Waited },
        Dialing { #[pin] answer: Oneshot<S, Dial>, seat: Option<(Permit, UnderWay)> },
        Refused { error: Option<BoxError> },
    }
}

/// Writes the wait into the dial's journal, however it ends.
pub(crate) struct Waited {
    since: Instant,
    journal: Journal,
}

impl Waited {
    /// A wait that begins now.
    pub(crate) fn new(journal: Journal) -> Self {
        Self { since: Instant::now(), journal }
    }
}

impl Drop for Waited {
    fn drop(&mut self) {
        self.journal.add_queued(self.since.elapsed());
    }
}

impl<S> Future for ResponseFuture<S>
where
    S: Service<Dial>,
    S::Error: Into<BoxError>,
{
    type Output = Result<Guarded<S::Response, Permit>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Waiting { waiter, next, .. } => {
                    let seat = ready!(waiter.poll(cx));
                    let (inner, dial) = next.take().expect("polled after its end");
                    // Either way the wait is in the journal before anyone hears how it ended.
                    state.set(match seat {
                        Ok(seat) => State::Dialing { answer: inner.oneshot(dial), seat: Some(seat) },
                        Err(error) => State::Refused { error: Some(error.into()) },
                    });
                }
                StateProj::Dialing { answer, seat } => {
                    let answer = ready!(answer.poll(cx));
                    let (permit, _under_way) = seat.take().expect("polled after its end");
                    return Poll::Ready(
                        answer.map_err(Into::into).map(|stream| Guarded::new(stream, permit)),
                    );
                }
                StateProj::Refused { error } => {
                    return Poll::Ready(Err(error.take().expect("polled after its end")));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyproxy_core::{Account, Association, Front, Network, Outcome, Target};
    use tokio::io::{BufReader, DuplexStream, duplex};
    use tokio::time::advance;
    use tokio_test::task::{Spawn, spawn};
    use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok};
    use tower_test::mock;

    use super::*;
    use crate::{Overloaded, TooManyConnections};

    type Pipe = BufReader<DuplexStream>;
    type Mock = mock::Mock<Dial, Pipe>;
    type Handle = mock::Handle<Dial, Pipe>;
    type Stream = Guarded<Pipe, Permit>;

    fn dial(user: &str) -> Dial {
        let mut dial = Dial::tcp(Target::parse("t:1").unwrap(), "192.0.2.1:9".parse().unwrap(), Front::HTTP);
        dial.identity = Account::new(user, ["g"]).into();
        dial
    }

    fn queue(settings: Settings) -> (Queue<Mock>, Handle, QueueHandle) {
        let (inner, handle) = mock::pair();
        let (layer, settings) = QueueLayer::pair(settings);
        (layer.layer(inner), handle, settings)
    }

    fn seats(max_connections: usize) -> Settings {
        Settings { max_connections, ..Settings::default() }
    }

    fn call(queue: &Queue<Mock>, user: &str) -> Spawn<ResponseFuture<Mock>> {
        spawn(queue.clone().call(dial(user)))
    }

    /// Lets the dial through that is asked for next, and says whose it was.
    async fn serve(inner: &mut Handle) -> String {
        let (dial, send) = inner.next_request().await.expect("a dial");
        send.send_response(BufReader::new(duplex(1).0));
        dial.identity.user().unwrap_or("-").to_owned()
    }

    async fn stream(queue: &Queue<Mock>, inner: &mut Handle, user: &str) -> Stream {
        let mut dialing = call(queue, user);
        assert_pending!(dialing.poll());
        serve(inner).await;
        assert_ready_ok!(dialing.poll())
    }

    #[tokio::test(start_paused = true)]
    async fn l4_a_dial_too_many_is_refused_at_once_and_never_reaches_the_inner_service() {
        let (queue, mut inner, handle) = queue(Settings { waiting: 1, ..seats(1) });
        let _running = stream(&queue, &mut inner, "a").await;
        let mut waiting = call(&queue, "b");
        assert_pending!(waiting.poll());
        let error = assert_ready_err!(call(&queue, "c").poll());
        assert_eq!(error.downcast_ref(), Some(&Overloaded::LineFull));
        assert_eq!(Outcome::of(&*error).retry_after(), Some(Duration::from_secs(1)));
        assert_eq!(handle.status(), Status { running: 1, waiting: 1 });
        assert_pending!(inner.poll_request());
    }

    #[tokio::test(start_paused = true)]
    async fn l4_a_wait_ends_at_its_deadline_and_frees_its_place() {
        let (queue, mut inner, handle) = queue(seats(1));
        let _running = stream(&queue, &mut inner, "a").await;
        let mut waiting = call(&queue, "b");
        assert_pending!(waiting.poll());
        advance(Duration::from_millis(4_990)).await;
        assert_pending!(waiting.poll());
        advance(Duration::from_millis(20)).await;
        let error = assert_ready_err!(waiting.poll());
        assert_eq!(error.downcast_ref(), Some(&Overloaded::TooLate));
        assert_eq!(handle.status(), Status { running: 1, waiting: 0 });
        assert_pending!(inner.poll_request());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_in_vain_is_in_the_journal_when_its_end_is_told() {
        let (queue, mut inner, _) = queue(seats(1));
        let _running = stream(&queue, &mut inner, "a").await;
        let dials = [dial("b"), dial("c")];
        let journals = dials.each_ref().map(|dial| dial.journal.clone());
        let [mut late, mut gone] = dials.map(|dial| spawn(queue.clone().call(dial)));
        assert_pending!(late.poll());
        assert_pending!(gone.poll());
        advance(Duration::from_secs(2)).await;
        drop(gone);
        advance(Duration::from_secs(4)).await;
        assert_ready_err!(late.poll());
        assert_eq!(journals.map(|journal| journal.queued().as_secs()), [6, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn l4_a_user_who_leaves_while_waiting_frees_the_place_at_once() {
        let (queue, mut inner, handle) = queue(seats(1));
        let running = stream(&queue, &mut inner, "a").await;
        let (mut gone, mut next) = (call(&queue, "b"), call(&queue, "c"));
        assert_pending!(gone.poll());
        assert_pending!(next.poll());
        drop(gone);
        assert_eq!(handle.status().waiting, 1);
        drop(running);
        assert_pending!(next.poll());
        assert_eq!(serve(&mut inner).await, "c");
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_given_to_one_who_has_just_left_goes_to_the_next() {
        let (queue, mut inner, handle) = queue(seats(1));
        let running = stream(&queue, &mut inner, "a").await;
        let (gone, mut next) = (call(&queue, "b"), call(&queue, "c"));
        assert_pending!(next.poll());
        drop(running);
        drop(gone);
        assert_pending!(next.poll());
        assert_eq!(serve(&mut inner).await, "c");
        assert_eq!(handle.status(), Status { running: 1, waiting: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_rides_in_the_stream_until_it_is_dropped() {
        let (queue, mut inner, handle) = queue(seats(1));
        let running = stream(&queue, &mut inner, "a").await;
        let mut waiting = call(&queue, "b");
        assert_pending!(waiting.poll());
        assert_eq!(handle.status(), Status { running: 1, waiting: 1 });
        drop(running);
        assert!(waiting.is_woken());
        assert_pending!(waiting.poll());
        serve(&mut inner).await;
        drop(assert_ready_ok!(waiting.poll()));
        assert_eq!(handle.status(), Status::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dial_that_is_dropped_or_fails_frees_its_seat() {
        let (queue, mut inner, handle) = queue(seats(1));
        let mut dropped = call(&queue, "a");
        assert_pending!(dropped.poll());
        assert_eq!(handle.status().running, 1);
        drop(dropped);
        assert_eq!(handle.status().running, 0);
        let _ = inner.next_request().await;
        let mut failed = call(&queue, "a");
        assert_pending!(failed.poll());
        inner.next_request().await.unwrap().1.send_error(Outcome::Refused);
        assert_eq!(Outcome::of(&*assert_ready_err!(failed.poll())), Outcome::Refused);
        drop(failed);
        assert_eq!(handle.status(), Status::default());
    }

    #[tokio::test(start_paused = true)]
    async fn l5_a_user_at_their_limit_is_told_so_and_others_are_served() {
        let (queue, mut inner, handle) = queue(Settings { per_user_connections: 2, ..seats(10) });
        let _streams = [stream(&queue, &mut inner, "a").await, stream(&queue, &mut inner, "a").await];
        let error = assert_ready_err!(call(&queue, "a").poll());
        assert!(error.is::<TooManyConnections>());
        assert!(matches!(Outcome::of(&*error), Outcome::Limited { .. }));
        let _other = stream(&queue, &mut inner, "b").await;
        assert_eq!(handle.status().running, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn i7_one_user_s_unanswered_dials_leave_room_for_those_of_others() {
        let (queue, mut inner, handle) = queue(Settings { per_user_dials: 2, ..seats(10) });
        let mut unanswered = [call(&queue, "a"), call(&queue, "a")];
        unanswered.iter_mut().for_each(|dialing| assert_pending!(dialing.poll()));
        let asked = [inner.next_request().await.unwrap().1, inner.next_request().await.unwrap().1];
        let mut third = call(&queue, "a");
        assert_pending!(third.poll());
        assert_pending!(inner.poll_request());
        assert_eq!(handle.status(), Status { running: 2, waiting: 1 });
        let _other = stream(&queue, &mut inner, "b").await;

        // The line moves with an answer, though the stream lives on,
        let [answered, given_up] = asked;
        answered.send_response(BufReader::new(duplex(1).0));
        let _stream = assert_ready_ok!(unanswered[0].poll());
        assert_pending!(third.poll());
        assert_eq!(serve(&mut inner).await, "a");
        // and with a dial that is given up.
        let mut fourth = call(&queue, "a");
        assert_pending!(fourth.poll());
        assert_pending!(inner.poll_request());
        drop((unanswered, given_up));
        assert_pending!(fourth.poll());
        assert_eq!(serve(&mut inner).await, "a");
        drop((assert_ready_ok!(third.poll()), assert_ready_ok!(fourth.poll())));
        assert_eq!(handle.status(), Status { running: 2, waiting: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn i7_a_user_with_too_many_unanswered_dials_holds_up_nobody_behind_them() {
        let (queue, mut inner, _) = queue(Settings { per_user_dials: 1, ..seats(2) });
        let running = stream(&queue, &mut inner, "x").await;
        let mut unanswered = call(&queue, "a");
        assert_pending!(unanswered.poll());
        let (_, asked) = inner.next_request().await.unwrap();
        let (mut head, mut behind) = (call(&queue, "a"), call(&queue, "b"));
        assert_pending!(head.poll());
        assert_pending!(behind.poll());
        drop(running);
        assert!(behind.is_woken());
        assert_pending!(behind.poll());
        assert_eq!(serve(&mut inner).await, "b");
        // Their turn has stayed.
        drop(assert_ready_ok!(behind.poll()));
        assert!(!head.is_woken());
        asked.send_response(BufReader::new(duplex(1).0));
        let _stream = assert_ready_ok!(unanswered.poll());
        assert!(head.is_woken());
        assert_pending!(head.poll());
        assert_eq!(serve(&mut inner).await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn i7_a_dial_under_way_counts_until_it_is_over_though_its_seat_is_free() {
        let line = Arc::new(Line::new(Settings { per_user_dials: 1, ..seats(10) }));
        let Entry::Seated(permit, under_way) = line.enter(&dial("a")) else { panic!("there is room") };
        drop(permit);
        assert!(matches!(line.enter(&dial("a")), Entry::Waiting(_)));
        drop(under_way);
        assert!(line.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn flows_count_among_the_dials_of_their_user_and_do_not_wait() {
        let (queue, mut inner, handle) = queue(Settings { per_user_dials: 2, ..seats(10) });
        let association = Association::new();
        let flow = || spawn(queue.clone().call(Dial { network: Network::Udp(association), ..dial("a") }));
        let mut flows = [flow(), flow()];
        flows.iter_mut().for_each(|flow| assert_pending!(flow.poll()));
        assert_eq!(assert_ready_err!(flow().poll()).downcast_ref(), Some(&Overloaded::LineFull));
        for flow in &mut flows {
            serve(&mut inner).await;
            drop(assert_ready_ok!(flow.poll()));
        }
        assert_pending!(flow().poll());
        drop(flows);
        assert_eq!(handle.status(), Status::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_line_lets_nobody_wait() {
        let (queue, mut inner, handle) = queue(seats(1));
        let running = stream(&queue, &mut inner, "a").await;
        let mut waiting = call(&queue, "b");
        assert_pending!(waiting.poll());
        handle.close();
        assert_eq!(assert_ready_err!(waiting.poll()).downcast_ref(), Some(&Overloaded::Closed));
        assert_eq!(assert_ready_err!(call(&queue, "a").poll()).downcast_ref(), Some(&Overloaded::Closed));
        drop(running);
        assert!(queue.line.is_empty());
        let _seated = stream(&queue, &mut inner, "b").await;
    }

    #[tokio::test(start_paused = true)]
    async fn users_are_served_in_turn_however_many_dials_one_has() {
        let (queue, mut inner, _) = queue(seats(1));
        let mut running = Some(stream(&queue, &mut inner, "x").await);
        let mut waiting: Vec<_> = ["a", "a", "a", "a", "b", "b", "c"].map(|user| call(&queue, user)).into();
        let mut order = Vec::new();
        for _ in 0..waiting.len() {
            drop(running.take());
            for dialing in &mut waiting {
                assert_pending!(dialing.poll());
            }
            order.push(serve(&mut inner).await);
            let (index, stream) = waiting
                .iter_mut()
                .enumerate()
                .find_map(|(index, dialing)| match dialing.poll() {
                    Poll::Ready(stream) => Some((index, stream.unwrap())),
                    Poll::Pending => None,
                })
                .expect("one is served");
            running = Some(stream);
            drop(waiting.remove(index));
        }
        assert_eq!(order, ["a", "b", "c", "a", "b", "a", "a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_fills_the_line_gives_a_place_to_a_newcomer() {
        let (queue, mut inner, handle) = queue(Settings { waiting: 4, ..seats(1) });
        let _running = stream(&queue, &mut inner, "a").await;
        let mut crowd: Vec<_> = (0..4).map(|_| call(&queue, "a")).collect();
        crowd.iter_mut().for_each(|dialing| assert_pending!(dialing.poll()));
        let mut newcomer = call(&queue, "b");
        assert_pending!(newcomer.poll());
        assert!(crowd[3].is_woken());
        assert_eq!(assert_ready_err!(crowd[3].poll()).downcast_ref(), Some(&Overloaded::LineFull));
        assert_eq!(handle.status().waiting, 4);
        assert_ready_err!(call(&queue, "a").poll());
    }

    #[tokio::test(start_paused = true)]
    async fn an_association_is_one_connection_however_many_flows_it_has() {
        let (queue, mut inner, handle) = queue(Settings { per_user_connections: 1, ..seats(10) });
        let association = Association::new();
        let flow = || Dial { network: Network::Udp(association), ..dial("a") };
        let mut flows = Vec::new();
        for _ in 0..3 {
            let mut dialing = spawn(queue.clone().call(flow()));
            assert_pending!(dialing.poll());
            serve(&mut inner).await;
            flows.push(assert_ready_ok!(dialing.poll()));
        }
        assert_eq!(handle.status().running, 1);
        flows.truncate(1);
        assert_eq!(handle.status().running, 1);
        flows.clear();
        assert_eq!(handle.status(), Status::default());
    }

    #[tokio::test(start_paused = true)]
    async fn more_seats_are_given_at_once_and_fewer_end_no_stream() {
        let (queue, mut inner, handle) = queue(seats(1));
        let first = stream(&queue, &mut inner, "a").await;
        let mut waiting = call(&queue, "b");
        assert_pending!(waiting.poll());
        handle.replace(seats(2));
        assert_eq!(handle.settings(), seats(2));
        assert_pending!(waiting.poll());
        serve(&mut inner).await;
        let second = assert_ready_ok!(waiting.poll());
        handle.replace(seats(1));
        let mut waiting = call(&queue, "c");
        assert_pending!(waiting.poll());
        drop(first);
        assert!(!waiting.is_woken(), "one stream is as many as there may be now");
        drop(second);
        assert!(waiting.is_woken());
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_line_turns_the_surplus_away() {
        let (queue, mut inner, handle) = queue(seats(1));
        let _running = stream(&queue, &mut inner, "a").await;
        let mut waiting = [call(&queue, "a"), call(&queue, "a"), call(&queue, "b")];
        waiting.iter_mut().for_each(|dialing| assert_pending!(dialing.poll()));
        handle.replace(Settings { waiting: 2, ..seats(1) });
        assert_ready_err!(waiting[1].poll());
        assert_eq!(handle.status().waiting, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_inner_service_is_made_ready_only_after_the_wait() {
        let (queue, mut inner, _) = queue(seats(1));
        inner.allow(1);
        let running = stream(&queue, &mut inner, "a").await;
        inner.allow(0);
        let mut waiting = call(&queue, "b");
        assert_pending!(waiting.poll());
        drop(running);
        assert_pending!(waiting.poll());
        assert_pending!(inner.poll_request());
        inner.allow(1);
        assert_pending!(waiting.poll());
        assert_eq!(serve(&mut inner).await, "b");
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_written_into_the_journal() {
        let (queue, mut inner, _) = queue(seats(1));
        let running = stream(&queue, &mut inner, "a").await;
        let dial = dial("b");
        let journal = dial.journal.clone();
        let mut waiting = spawn(queue.clone().call(dial));
        assert_pending!(waiting.poll());
        advance(Duration::from_secs(2)).await;
        drop(running);
        assert_pending!(waiting.poll());
        assert_eq!(journal.queued(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn i9_nothing_is_left_after_any_mix_of_endings() {
        let (queue, mut inner, handle) = queue(Settings { waiting: 8, per_user_dials: 2, ..seats(4) });
        inner.allow(10_000);
        let mut dialing = Vec::new();
        let mut streams = Vec::new();
        let associations = [Association::new(), Association::new()];
        for step in 0..2_000_u32 {
            // A cheap, fixed scatter.
            let roll = step.wrapping_mul(2_654_435_761) >> 16;
            match roll % 6 {
                0 | 1 => dialing.push(call(&queue, ["a", "b", "c"][roll as usize % 3])),
                2 if !dialing.is_empty() => drop(dialing.swap_remove(roll as usize % dialing.len())),
                3 if !streams.is_empty() => {
                    drop::<Stream>(streams.swap_remove(roll as usize % streams.len()))
                }
                4 => {
                    let user = roll as usize / 6 % 2;
                    let network = Network::Udp(associations[user]);
                    let flow = Dial { network, ..dial(["a", "b"][user]) };
                    dialing.push(spawn(queue.clone().call(flow)));
                }
                _ => advance(Duration::from_millis(300)).await,
            }
            assert!(handle.status().running <= 4 && handle.status().waiting <= 8);
            // Some are given a seat, or are answered, and leave before they hear of it.
            if roll / 12 % 2 == 0 {
                continue;
            }
            while let Poll::Ready(Some((_, send))) = inner.poll_request() {
                send.send_response(BufReader::new(duplex(1).0));
            }
            dialing.retain_mut(|dialing| match dialing.poll() {
                Poll::Ready(Ok(stream)) => {
                    streams.push(stream);
                    false
                }
                Poll::Ready(Err(_)) => false,
                Poll::Pending => true,
            });
        }
        drop((dialing, streams));
        assert!(queue.line.is_empty(), "{:?}", queue.line);
    }
}
