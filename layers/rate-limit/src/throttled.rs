use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

use crate::bandwidth::{Bucket, Limits, Turn, Way};

/// A stream that passes so many bytes per second, shared with the other streams of its key. See
/// [`BandwidthLayer`](crate::BandwidthLayer).
///
/// Ends, resets and flushes are never delayed.
pub struct Throttled<T> {
    inner: T,
    /// Boxed: most gateways limit nothing, and their streams should not carry the room for it.
    throttle: Option<Box<Throttle>>,
}

impl<T> Throttled<T> {
    pub(crate) fn new(inner: T, throttle: Option<Throttle>) -> Self {
        Self { inner, throttle: throttle.map(Box::new) }
    }

    /// The stream inside.
    pub const fn get_ref(&self) -> &T {
        &self.inner
    }
}

impl<T: fmt::Debug> fmt::Debug for Throttled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttled")
            .field("inner", &self.inner)
            .field("limited", &self.throttle.is_some())
            .finish()
    }
}

impl<T: AsyncBufRead + Unpin> Throttled<T> {
    /// How many bytes may be taken, of at most `wanted` that are there; 0 at the end. Asks what is there first, so
    /// that no turn is promised to a stream with nothing to say.
    fn poll_readable(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let there = ready!(Pin::new(&mut self.inner).poll_fill_buf(cx))?.len().min(wanted);
        match &mut self.throttle {
            Some(throttle) if there > 0 => throttle.poll_turn(cx, Way::Down, there).map(Ok),
            _ => Poll::Ready(Ok(there)),
        }
    }
}

impl<T: AsyncRead + AsyncBufRead + Unpin> AsyncRead for Throttled<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.throttle.is_none() {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        let readable = ready!(this.poll_readable(cx, buf.remaining()))?;
        let bytes = ready!(Pin::new(&mut this.inner).poll_fill_buf(cx))?;
        buf.put_slice(&bytes[..readable]);
        Pin::new(this).consume(readable);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncBufRead + Unpin> AsyncBufRead for Throttled<T> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.throttle.is_none() {
            return Pin::new(&mut this.inner).poll_fill_buf(cx);
        }
        let readable = ready!(this.poll_readable(cx, usize::MAX))?;
        let bytes = ready!(Pin::new(&mut this.inner).poll_fill_buf(cx))?;
        Poll::Ready(Ok(&bytes[..readable]))
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        if let Some(throttle) = &mut self.throttle {
            throttle.took(Way::Down, amount);
        }
        Pin::new(&mut self.inner).consume(amount);
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Throttled<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(throttle) = this.throttle.as_mut().filter(|_| !buf.is_empty()) else {
            return Pin::new(&mut this.inner).poll_write(cx, buf);
        };
        let writable = ready!(throttle.poll_turn(cx, Way::Up, buf.len()));
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, &buf[..writable]))?;
        throttle.took(Way::Up, written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wanted = bufs.iter().fold(0_usize, |sum, buf| sum.saturating_add(buf.len()));
        let Some(throttle) = this.throttle.as_mut().filter(|_| wanted > 0) else {
            return Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        };
        let writable = ready!(throttle.poll_turn(cx, Way::Up, wanted));
        let inner = Pin::new(&mut this.inner);
        let written = ready!(match whole_within(bufs, writable) {
            // Not even the first fits: a part of it.
            [] => {
                let first = bufs.iter().find(|buf| !buf.is_empty()).expect("there are bytes to write");
                inner.poll_write(cx, &first[..writable])
            }
            whole => inner.poll_write_vectored(cx, whole),
        })?;
        throttle.took(Way::Up, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The first of `bufs` that together hold no more than `most` bytes, and at least one.
fn whole_within<'a, 'b>(bufs: &'a [IoSlice<'b>], most: usize) -> &'a [IoSlice<'b>] {
    let mut bytes = 0;
    let whole = bufs.iter().take_while(|buf| {
        bytes += buf.len();
        bytes <= most
    });
    let whole = &bufs[..whole.count()];
    if whole.iter().all(|buf| buf.is_empty()) { &[] } else { whole }
}

// === Throttle ===

/// The limits on one stream.
pub(crate) struct Throttle {
    limits: Arc<Limits>,
    bucket: Arc<Bucket>,
    lanes: [Lane; 2],
}

/// One way of a stream.
#[derive(Default)]
struct Lane {
    /// What may pass, now or when it is time; nothing left of it: the next bytes need a turn.
    turn: Turn,
    waits: bool,
    /// Made when first needed, then kept for the next time.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Throttle {
    pub(crate) fn new(bucket: Arc<Bucket>, limits: Arc<Limits>) -> Self {
        Self { limits, bucket, lanes: Default::default() }
    }

    /// How many of `wanted` bytes, one at least, may pass; waits for a turn if there is none.
    fn poll_turn(&mut self, cx: &mut Context<'_>, way: Way, wanted: usize) -> Poll<usize> {
        let lane = &mut self.lanes[way as usize];
        if lane.turn.bytes == 0 {
            lane.turn = self.limits.reserve(&self.bucket, way, wanted);
            lane.look(&self.limits, &self.bucket, way);
        }
        while lane.waits {
            let timer = lane.timer.as_mut().expect("who waits has a time");
            ready!(timer.as_mut().poll(cx));
            lane.look(&self.limits, &self.bucket, way);
        }
        Poll::Ready(lane.turn.bytes.min(wanted))
    }

    fn took(&mut self, way: Way, bytes: usize) {
        let left = &mut self.lanes[way as usize].turn.bytes;
        *left = left.saturating_sub(bytes);
    }
}

impl Lane {
    /// Sees whether the turn has come, and else when to look again.
    fn look(&mut self, limits: &Limits, bucket: &Bucket, way: Way) {
        let at = limits.wait(bucket, way, &mut self.turn);
        self.waits = at.is_some();
        if let Some(at) = at {
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(at),
                None => self.timer = Some(Box::pin(sleep_until(at))),
            }
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        for way in [Way::Up, Way::Down] {
            self.limits.give_back(&self.bucket, way, self.lanes[way as usize].turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use anyproxy_core::{Account, ByteStream, Dial, DialService as _, Front, Target};
    use tokio::io::{
        AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, duplex, join, repeat, sink,
    };
    use tokio::task::JoinSet;
    use tokio::time::{Instant, advance, sleep, timeout};
    use tokio_test::{assert_pending, assert_ready_ok, task};
    use tower::service_fn;
    use tower_layer::Layer as _;
    use tower_test::mock;

    use super::*;
    use crate::{Bandwidth, BandwidthLayer, Key};

    const MIB: usize = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn bytes_come_down_at_the_rate_and_up_at_theirs() {
        let layer = BandwidthLayer::new(per_user().down(MIB as u64).up(2 * MIB as u64));
        let mut stream = stream(&layer, "alice", endless()).await;
        let start = Instant::now();
        read(&mut stream, 10 * MIB).await;
        assert_about(start.elapsed(), Duration::from_secs(10));
        let start = Instant::now();
        stream.write_all(&vec![0; 20 * MIB]).await.unwrap();
        assert_about(start.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_one_way_leaves_the_other_alone() {
        let layer = BandwidthLayer::new(per_user().down(1024));
        let mut stream = stream(&layer, "alice", endless()).await;
        let start = Instant::now();
        stream.write_all(&vec![0; 20 * MIB]).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_of_one_user_get_equal_shares_and_another_user_a_whole_one() {
        let layer = BandwidthLayer::new(per_user().down(MIB as u64));
        let mut readers = JoinSet::new();
        for user in ["alice", "alice", "alice", "alice", "bob"] {
            let mut stream = stream(&layer, user, endless()).await;
            readers.spawn(async move {
                let mut bytes = 0;
                let mut buf = vec![0; 64 * 1024];
                let reading = async {
                    loop {
                        bytes += stream.read(&mut buf).await.unwrap();
                    }
                };
                let _: Result<(), _> = timeout(Duration::from_secs(20), reading).await;
                (user, bytes)
            });
        }
        for (user, bytes) in readers.join_all().await {
            let share = if user == "alice" { 5 * MIB } else { 20 * MIB };
            assert!(bytes.abs_diff(share) < share / 20, "{user} {bytes}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_one_after_another_are_no_faster_than_one() {
        let layer = BandwidthLayer::new(per_user().down(MIB as u64));
        let start = Instant::now();
        for _ in 0..100 {
            let mut stream = stream(&layer, "alice", endless()).await;
            read(&mut stream, MIB / 10).await;
        }
        assert_about(start.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_with_nothing_to_say_has_no_timer_and_takes_no_turn() {
        let layer = BandwidthLayer::new(per_user().down(1024));
        let (mut near, mut far) = piped(&layer, "alice").await;
        let mut buf = [0; 8];
        let mut idle = task::spawn(near.read(&mut buf));
        assert_pending!(idle.poll());
        advance(Duration::from_secs(3600)).await;
        assert_pending!(idle.poll());
        far.write_all(b"keystrok").await.unwrap();
        assert!(idle.is_woken());
        assert_eq!(assert_ready_ok!(idle.poll()), 8);
        drop(idle);
        assert!(near.throttle.unwrap().lanes.iter().all(|lane| lane.timer.is_none()));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_taken_from_the_target_before_its_turn() {
        let layer = BandwidthLayer::new(per_user().down(1024));
        let mut stream = stream(&layer, "alice", endless()).await;
        // What may be ahead, and one turn beyond it.
        read(&mut stream, 1024).await;
        let mut wait = task::spawn(stream.fill_buf_once());
        assert_pending!(wait.poll());
        drop(wait);
        assert_eq!(stream.get_ref().reader().buffer().len(), 8192 - 1024, "still with the target's side");
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_a_stream_that_waits_gives_its_turn_back() {
        let layer = BandwidthLayer::new(per_user().down(1024));
        let mut first = stream(&layer, "alice", endless()).await;
        read(&mut first, 1024).await;
        for _ in 0..100 {
            let mut waiting = stream(&layer, "alice", endless()).await;
            assert_pending!(task::spawn(waiting.fill_buf_once()).poll());
        }
        let start = Instant::now();
        read(&mut first, 1024).await;
        assert!(start.elapsed() <= Duration::from_secs(1), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn ends_and_shutdowns_are_not_delayed() {
        let layer = BandwidthLayer::new(per_user().up(1).down(1));
        let (mut near, mut far) = piped(&layer, "alice").await;
        let start = Instant::now();
        near.shutdown().await.unwrap();
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_through_is_what_was_sent() {
        let layer = BandwidthLayer::new(per_user().up(MIB as u64).down(MIB as u64));
        let (near, far) = piped(&layer, "alice").await;
        let sent: Vec<u8> = (0..MIB).map(|n| (n / 7 % 251) as u8).collect();
        let (mut near_in, mut near_out) = tokio::io::split(near);
        let (mut far_in, mut far_out) = tokio::io::split(far);
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let _ = tokio::join!(
            async { near_out.write_all(&sent).await.and(near_out.shutdown().await) },
            async { far_out.write_all(&sent).await.and(far_out.shutdown().await) },
            far_in.read_to_end(&mut up),
            near_in.read_to_end(&mut down),
        );
        assert!(up == sent && down == sent);
    }

    #[tokio::test(start_paused = true)]
    async fn vectored_writes_pass_whole_slices_and_never_more_than_the_turn() {
        let layer = BandwidthLayer::new(per_user().up(64 * 1024));
        let calls = Calls::default();
        let mut stream = stream(&layer, "alice", join(BufReader::new(repeat(0)), calls.clone())).await;
        assert!(stream.is_write_vectored());
        let (small, large) = (vec![0; 400], vec![0; 4000]);
        let slices = |bufs: &[&Vec<u8>]| -> usize { bufs.iter().map(|buf| buf.len()).sum() };

        let bufs = [&small, &small];
        assert_eq!(stream.write_vectored(&bufs.map(|buf| IoSlice::new(buf))).await.unwrap(), slices(&bufs));
        let bufs = [&small, &small, &large];
        assert_eq!(stream.write_vectored(&bufs.map(|buf| IoSlice::new(buf))).await.unwrap(), 800);
        let bufs = [&large, &small];
        let empty = [IoSlice::new(&[]), IoSlice::new(&large)];
        // What is left of the turn before.
        assert_eq!(stream.write_vectored(&bufs.map(|buf| IoSlice::new(buf))).await.unwrap(), 224);
        assert_eq!(stream.write_vectored(&empty).await.unwrap(), 1024);
        assert_eq!(*calls.0.lock().unwrap(), ["vectored 2", "vectored 2", "plain 224", "plain 1024"]);
    }

    #[tokio::test(start_paused = true)]
    async fn living_streams_follow_a_change() {
        let (layer, handle) = BandwidthLayer::pair(per_user().down(MIB as u64));
        let mut stream = stream(&layer, "alice", endless()).await;
        read(&mut stream, MIB).await;
        handle.replace(per_user().down(4 * MIB as u64));
        let start = Instant::now();
        read(&mut stream, 40 * MIB).await;
        assert_about(start.elapsed(), Duration::from_secs(10));
        handle.replace(None);
        sleep(Duration::from_secs(1)).await;
        let start = Instant::now();
        read(&mut stream, 40 * MIB).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_raised_limit_holds_for_those_who_wait_and_for_streams_to_come() {
        let (layer, handle) = BandwidthLayer::pair(per_user().down(2 * 1024));
        let crowd = crowd(&layer).await;
        let start = Instant::now();
        handle.replace(per_user().down(100 * MIB as u64));
        read(&mut stream(&layer, "alice", endless()).await, 1).await;
        assert!(start.elapsed() < Duration::from_millis(10), "{:?}", start.elapsed());
        crowd.join_all().await;
        assert!(start.elapsed() <= Duration::from_millis(1_100), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_taken_away_is_taken_from_those_who_wait() {
        for taken in [None, Some(per_user().up(1))] {
            let (layer, handle) = BandwidthLayer::pair(per_user().down(2 * 1024));
            let crowd = crowd(&layer).await;
            let start = Instant::now();
            handle.replace(taken);
            crowd.join_all().await;
            assert!(start.elapsed() <= Duration::from_millis(1_100), "{:?}", start.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_whose_limit_gave_way_to_one_by_another_key_follow_the_next_by_their_own_or_its_end() {
        let (layer, handle) = BandwidthLayer::pair(per_user().down(MIB as u64));
        let mut old = stream(&layer, "alice", endless()).await;
        let per_source = |bytes: usize| Bandwidth::new(Key::Source).down(bytes as u64);
        handle.replace(per_source(4 * MIB));
        let mut new = stream(&layer, "alice", endless()).await;
        for (settings, old_rate, new_rate) in [
            (Some(per_source(8 * MIB)), Some(MIB), Some(8 * MIB)),
            (Some(per_user().down(2 * MIB as u64)), Some(2 * MIB), Some(8 * MIB)),
            (None, None, None),
            (Some(per_source(4 * MIB)), None, Some(4 * MIB)),
        ] {
            handle.replace(settings);
            for (stream, rate) in [(&mut old, old_rate), (&mut new, new_rate)] {
                // What was promised before passes as it was promised.
                sleep(Duration::from_secs(1)).await;
                let start = Instant::now();
                read(stream, 40 * MIB).await;
                match rate {
                    Some(rate) => {
                        assert_about(start.elapsed(), Duration::from_secs((40 * MIB / rate) as u64))
                    }
                    None => assert_eq!(start.elapsed(), Duration::ZERO),
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lowered_limit_keeps_turns_as_they_were_promised_and_forgives_no_more() {
        let (layer, handle) = BandwidthLayer::pair(per_user().down(100 * MIB as u64));
        let mut first = stream(&layer, "alice", BufReader::with_capacity(MIB, endless())).await;
        assert_eq!(first.fill_buf_once().await, 64 * 1024);
        handle.replace(per_user().down(1024));
        let mut second = stream(&layer, "alice", endless()).await;
        let start = Instant::now();
        assert_eq!(second.fill_buf_once().await, 1024);
        assert_eq!(start.elapsed(), Duration::ZERO);
        let mut crowd = Vec::new();
        for _ in 0..20 {
            let mut waiting = stream(&layer, "alice", endless()).await;
            assert_pending!(task::spawn(waiting.fill_buf_once()).poll());
            crowd.push(waiting);
        }
        // Has a turn left that took less than a millisecond, and would take a minute now.
        drop(first);
        read(&mut stream(&layer, "alice", endless()).await, 1).await;
        assert_about(start.elapsed(), Duration::from_secs(21));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_without_streams_and_debts_is_forgotten() {
        let (layer, handle) = BandwidthLayer::pair(per_user().down(MIB as u64));
        let mut living = stream(&layer, "alice", endless()).await;
        for n in 0..500 {
            read(&mut stream(&layer, &format!("user{n}"), endless()).await, 1).await;
        }
        assert!(handle.keys() > 400);
        for _ in 0..100 {
            sleep(Duration::from_millis(10)).await;
            stream(&layer, "bob", endless()).await;
        }
        assert!(handle.keys() <= 2, "{}", handle.keys());
        read(&mut living, 1).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_debt_outlives_the_stream_that_made_it() {
        let layer = BandwidthLayer::new(per_user().down(1024));
        read(&mut stream(&layer, "alice", endless()).await, 1024).await;
        for _ in 0..70 {
            advance(Duration::from_millis(10)).await;
            stream(&layer, "bob", endless()).await;
        }
        let start = Instant::now();
        read(&mut stream(&layer, "alice", endless()).await, 1024).await;
        assert!(start.elapsed() > Duration::from_millis(200), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_dial_leaves_nothing_and_a_clone_starts_unready() {
        let (layer, handle) = BandwidthLayer::pair(per_user().down(1));
        let (mut limit, mut inner) = mock::spawn_layer::<Dial, (), _>(layer);
        inner.allow(1);
        assert_ready_ok!(limit.poll_ready());
        inner.allow(0);
        assert_pending!(limit.clone().poll_ready());
        let answer = limit.call(dial("alice"));
        inner.next_request().await.unwrap().1.send_error("no");
        assert_eq!(answer.await.unwrap_err().to_string(), "no");
        assert_eq!(handle.keys(), 0);
    }

    #[tokio::test]
    async fn an_unlimited_stream_is_passed_through_and_carries_a_pointer() {
        let calls = Calls::default();
        let inner = join(BufReader::new(repeat(0)), calls.clone());
        let mut stream = stream(&BandwidthLayer::unlimited(), "alice", inner).await;
        let bufs = [IoSlice::new(&[0; 100_000]), IoSlice::new(&[0; 100_000])];
        assert_eq!(stream.write_vectored(&bufs).await.unwrap(), 200_000);
        assert_eq!(*calls.0.lock().unwrap(), ["vectored 2"]);
        assert_eq!(size_of::<Throttled<[usize; 4]>>(), size_of::<[usize; 5]>());
    }

    // === what the tests need ===

    fn per_user() -> Bandwidth {
        Bandwidth::new(Key::User)
    }

    fn dial(user: &str) -> Dial {
        let target = Target::parse("a:1").unwrap();
        let mut dial = Dial::tcp(target, "192.0.2.1:4000".parse().unwrap(), Front::HTTP);
        dial.identity = Account::new(user, ["blue"]).into();
        dial
    }

    /// `inner` as `user` gets it through `layer`.
    async fn stream<T: ByteStream>(layer: &BandwidthLayer, user: &str, inner: T) -> Throttled<T> {
        let inner = Arc::new(Mutex::new(Some(inner)));
        let dials = layer.layer(service_fn(move |_: Dial| {
            let inner = inner.lock().unwrap().take().unwrap();
            async move { Ok::<_, io::Error>(inner) }
        }));
        dials.dial(dial(user)).await.unwrap()
    }

    /// Sends and takes without end.
    fn endless() -> tokio::io::Join<BufReader<tokio::io::Repeat>, tokio::io::Sink> {
        join(BufReader::new(repeat(7)), sink())
    }

    async fn piped(layer: &BandwidthLayer, user: &str) -> (Throttled<BufReader<DuplexStream>>, DuplexStream) {
        let (near, far) = duplex(4096);
        (stream(layer, user, BufReader::new(near)).await, far)
    }

    async fn read(stream: &mut (impl AsyncRead + Unpin), bytes: usize) {
        stream.read_exact(&mut vec![0; bytes]).await.unwrap();
    }

    /// 60 downloads of alice's that have gone on for 4 s at 2 KiB/s. Each waits for its turn.
    async fn crowd(layer: &BandwidthLayer) -> JoinSet<()> {
        let mut crowd = JoinSet::new();
        for _ in 0..60 {
            let mut stream = stream(layer, "alice", endless()).await;
            crowd.spawn(async move {
                let _: Result<_, _> = timeout(Duration::from_secs(4), read(&mut stream, MIB)).await;
                read(&mut stream, 1).await;
            });
        }
        sleep(Duration::from_secs(4)).await;
        crowd
    }

    #[track_caller]
    fn assert_about(took: Duration, expected: Duration) {
        assert!(took.abs_diff(expected) < expected / 20, "{took:?}, expected {expected:?}");
    }

    impl<T: AsyncRead + AsyncBufRead + Unpin> Throttled<T> {
        async fn fill_buf_once(&mut self) -> usize {
            std::future::poll_fn(|cx| {
                Pin::new(&mut *self).poll_fill_buf(cx).map(|bytes| bytes.unwrap().len())
            })
            .await
        }
    }

    /// Writes down how it was written to.
    #[derive(Clone, Default)]
    struct Calls(Arc<Mutex<Vec<String>>>);

    impl AsyncWrite for Calls {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().unwrap().push(format!("plain {}", buf.len()));
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.0.lock().unwrap().push(format!("vectored {}", bufs.len()));
            Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
}
