//! Where a stream's handle and the driver meet.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use anyproxy_mux::frame::{MIN_WINDOW, ResetCode, StreamId};
use anyproxy_mux::{Chunks, Memory, Share};
use bytes::{BufMut as _, Bytes, BytesMut};

use crate::StreamReset;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Datagrams that wait on one stream, each way, those with the multiplexer included. One more is not taken from the
/// writer, or dropped on its way to the reader.
const MAX_DATAGRAMS: usize = 256;

/// Bytes of datagrams that wait on one stream, each way and beside the multiplexer; none where memory is short.
const MAX_DATAGRAM_BYTES: u64 = 1024 * 1024;

/// Bytes of datagrams that a reader is handed at once.
const DATAGRAM_BATCH: usize = 16 * 1024;

/// What a reader must have taken before the driver is told, while it has more to read. Half of what a busy
/// stream has at least: often enough that the sender does not run dry, rarely enough that reading costs few wake-ups.
const REPORT: u32 = 64 * 1024;

/// The same for a reader that has nothing left. A sender waits for more credit with less than a quarter of the smallest
/// window, and gets it when what it has and what was not reported are half of a window. So less than a quarter may be
/// kept back here: with more, a window of a little more than the smallest would leave both ends waiting for each other.
const REPORT_WHEN_EMPTY: u32 = MIN_WINDOW / 4;

// === Cell ===

/// The part of a stream that its handle and the driver share.
///
/// The lock is held for a few lines and never while something is copied, woken or sent. There is one per stream,
/// idle ones too, so it is small: 104 bytes with its counts, and an idle stream has nothing else here.
///
/// Whoever may wait for a fact looks for it under the lock and leaves its waker there; whoever makes it true takes the
/// waker under the same lock. `model` plays this.
pub(crate) struct Cell {
    /// The stream's number; 0 until the multiplexer gave it one.
    id: AtomicU32,
    /// Bytes, or datagrams, taken from the writer that have not left. Beside the lock, so that a writer sees its room
    /// without it.
    unsent: AtomicU32,
    state: Mutex<State>,
}

#[cfg(not(test))]
const _: () = assert!(size_of::<Cell>() + 2 * size_of::<usize>() <= 104, "an idle cell is small");

#[derive(Default)]
pub(crate) struct State {
    /// Received, and not yet in the handle.
    inbox: Chunks,
    /// Written, and not yet with the multiplexer.
    outbox: Chunks,
    aside: Option<Box<Aside>>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Read bytes that the multiplexer has not heard of.
    consumed: u32,
    /// In the doorbell's list.
    rung: bool,
    /// The writer has said its last byte,
    fin_asked: bool,
    /// and the multiplexer knows.
    fin_taken: bool,
    /// The peer has said its last byte: the reader's end is clean, whatever follows.
    fin_received: bool,
    /// The peer reset the stream, or the tunnel is lost.
    reset: Option<StreamReset>,
    /// The handle is gone, or called `reset`, before both ways were finished.
    dropped: Option<ResetCode>,
    /// The multiplexer knows the stream no more.
    closed: bool,
}

/// What only some streams have.
#[derive(Debug)]
enum Aside {
    /// A stream of datagrams, instead of inbox and outbox.
    Flow { inbox: Queue, outbox: Queue },
    /// A lost stream: what its reader may still keep, which the multiplexer does not count any more.
    Kept(Share),
}

#[derive(Debug)]
struct Queue {
    datagrams: VecDeque<Bytes>,
    /// Their bytes.
    share: Share,
}

impl Queue {
    fn new(memory: &Memory) -> Self {
        Self { datagrams: VecDeque::new(), share: memory.aside() }
    }

    /// Whether there is room for one more of `bytes`.
    fn fits(&self, bytes: usize) -> bool {
        self.datagrams.len() < MAX_DATAGRAMS
            && self.share.held() + bytes as u64 <= MAX_DATAGRAM_BYTES
            && !self.share.memory().is_short()
    }

    fn push(&mut self, datagram: Bytes) -> bool {
        let fits = self.fits(datagram.len());
        if fits {
            self.share.set(self.share.held() + datagram.len() as u64);
            self.datagrams.push_back(datagram);
        }
        fits
    }

    fn pop(&mut self) -> Option<Bytes> {
        let datagram = self.datagrams.pop_front()?;
        self.share.set(self.share.held() - datagram.len() as u64);
        if self.datagrams.is_empty() {
            self.datagrams = VecDeque::new();
        }
        Some(datagram)
    }

    fn take(&mut self) -> VecDeque<Bytes> {
        self.share.set(0);
        mem::take(&mut self.datagrams)
    }
}

/// What the driver finds when it answers a ring.
pub(crate) struct Rung {
    pub(crate) outbox: Chunks,
    pub(crate) datagrams: VecDeque<Bytes>,
    pub(crate) consumed: u32,
    pub(crate) fin: bool,
    pub(crate) dropped: Option<ResetCode>,
}

impl Cell {
    /// A cell without a number. `datagrams` says that the stream was opened for udp.
    pub(crate) fn new(datagrams: bool, memory: &Memory) -> Arc<Self> {
        let flow = || Box::new(Aside::Flow { inbox: Queue::new(memory), outbox: Queue::new(memory) });
        let aside = datagrams.then(flow);
        Arc::new(Self {
            id: AtomicU32::new(0),
            unsent: AtomicU32::new(0),
            state: Mutex::new(State { aside, ..State::default() }),
        })
    }

    pub(crate) fn id(&self) -> Option<StreamId> {
        StreamId::new(self.id.load(Ordering::Acquire))
    }

    pub(crate) fn set_id(&self, id: StreamId) {
        self.id.store(id.get(), Ordering::Release);
    }

    pub(crate) fn unsent(&self) -> u32 {
        self.unsent.load(Ordering::Acquire)
    }

    /// A panic within these few lines would be a bug; the next one to come must not pay for it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- for the handle ---

    /// Hands `data` to the driver: whether it must be rung.
    pub(crate) fn push(&self, data: Bytes, memory: &Memory) -> io::Result<bool> {
        let mut state = self.lock();
        state.check_writable()?;
        // In use from here on: many writers may fill their buffers before the driver gets its turn.
        memory.take(data.len() as u64);
        self.unsent.fetch_add(data.len() as u32, Ordering::AcqRel);
        state.outbox.push(data);
        Ok(state.ring())
    }

    /// Waits until the writer may hold more than it does; `limit` is the most.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>, limit: u32) -> Poll<io::Result<u32>> {
        let room = limit.saturating_sub(self.unsent());
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        let mut state = self.lock();
        state.check_writable()?;
        // Bytes may have left meanwhile; from here on whoever sees them leave sees the waker.
        match limit.saturating_sub(self.unsent()) {
            0 => {
                store(&mut state.writer, cx);
                Poll::Pending
            }
            room => Poll::Ready(Ok(room)),
        }
    }

    /// Waits until there is room for a datagram of `bytes`. What the multiplexer has of them takes room too: it would
    /// drop them, and the writer would not hear of it. Where memory is short, nobody says when it is not any more.
    pub(crate) fn poll_datagram_room(&self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        state.check_writable()?;
        let has_room = (self.unsent() as usize) < MAX_DATAGRAMS;
        if has_room && state.flow().is_some_and(|(_, outbox)| outbox.fits(bytes)) {
            return Poll::Ready(Ok(()));
        }
        store(&mut state.writer, cx);
        Poll::Pending
    }

    /// Hands a whole datagram to the driver: whether there was room for it, and whether the driver must be rung.
    pub(crate) fn push_datagram(&self, datagram: Bytes) -> io::Result<(bool, bool)> {
        let mut state = self.lock();
        state.check_writable()?;
        let kept = (self.unsent() as usize) < MAX_DATAGRAMS
            && state.flow().is_some_and(|(_, outbox)| outbox.push(datagram));
        self.unsent.fetch_add(u32::from(kept), Ordering::AcqRel);
        Ok((kept, kept && state.ring()))
    }

    /// Waits until all that was written has left.
    pub(crate) fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if self.unsent() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(reset) = state.reset {
            return Poll::Ready(Err(reset.into()));
        }
        store(&mut state.writer, cx);
        Poll::Pending
    }

    /// Ends the writer's way, and waits until all of it has left: also, whether the driver must be rung.
    pub(crate) fn poll_finish(&self, cx: &mut Context<'_>) -> (Poll<io::Result<()>>, bool) {
        let mut state = self.lock();
        if state.fin_taken && self.unsent() == 0 {
            return (Poll::Ready(Ok(())), false);
        }
        if let Some(reset) = state.reset {
            return (Poll::Ready(Err(reset.into())), false);
        }
        store(&mut state.writer, cx);
        let asked = mem::replace(&mut state.fin_asked, true);
        (Poll::Pending, !asked && state.ring())
    }

    /// Gives the stream up: whether the driver must be rung. `unread` is what the handle still held for its reader.
    pub(crate) fn abandon(&self, code: ResetCode, owed: u32, unread: bool, memory: &Memory) -> bool {
        let mut state = self.lock();
        (state.reader, state.writer) = (None, None);
        state.consumed = state.consumed.saturating_add(owed);
        let read = state.fin_received && state.inbox.is_empty() && !unread;
        let written = state.fin_taken && self.unsent() == 0;
        if !(read && written) {
            state.dropped.get_or_insert(code);
            state.inbox = Chunks::new();
            if let Some(Aside::Kept(_)) = state.aside.as_deref() {
                state.aside = None;
            }
            state.take_outbox(memory);
        }
        (state.dropped.is_some() || state.consumed > 0) && state.ring()
    }

    // --- for the driver ---

    /// Takes what the handle wants done. It rings again for whatever comes after.
    pub(crate) fn answer(&self, memory: &Memory) -> Option<Rung> {
        let mut state = self.lock();
        state.rung = false;
        (!state.closed).then(|| Rung {
            outbox: state.take_outbox(memory),
            datagrams: state.flow().map(|(_, outbox)| outbox.take()).unwrap_or_default(),
            consumed: mem::take(&mut state.consumed),
            fin: state.fin_asked && !state.fin_taken,
            dropped: state.dropped,
        })
    }

    /// Received bytes, for the reader. The waker, if it waits.
    pub(crate) fn receive(&self, data: Bytes) -> Option<Waker> {
        let mut state = self.lock();
        if state.dropped.is_some() {
            return None;
        }
        state.inbox.push_received(data);
        state.reader.take()
    }

    /// A received datagram: whether there was room for it, and the waker of a reader that waits.
    pub(crate) fn receive_datagram(&self, datagram: &[u8]) -> (bool, Option<Waker>) {
        // A copy: only its own bytes are counted, and a slice would keep the whole message that it came in.
        let datagram = Bytes::copy_from_slice(datagram);
        let mut state = self.lock();
        let kept = state.dropped.is_none() && state.flow().is_some_and(|(inbox, _)| inbox.push(datagram));
        (kept, if kept { state.reader.take() } else { None })
    }

    /// So many written bytes have left, or one datagram of as many. The waker of a writer that waits, if it should go on.
    pub(crate) fn sent(&self, bytes: u32, low_water: u32) -> Option<Waker> {
        let mut state = self.lock();
        let (bytes, low_water) = match state.flow() {
            Some(_) => (1, MAX_DATAGRAMS as u32 / 2),
            None => (bytes, low_water),
        };
        let after = self.unsent.fetch_sub(bytes, Ordering::AcqRel).saturating_sub(bytes);
        let go_on = after <= if state.fin_asked { 0 } else { low_water };
        if go_on { state.writer.take() } else { None }
    }

    /// The multiplexer knows of the end of the writer's way.
    pub(crate) fn fin_taken(&self) -> Option<Waker> {
        let mut state = self.lock();
        state.fin_taken = true;
        state.writer.take()
    }

    /// The peer has said its last byte.
    pub(crate) fn fin_received(&self) -> Option<Waker> {
        let mut state = self.lock();
        state.fin_received = true;
        state.reader.take()
    }

    /// The peer reset the stream, or the tunnel is lost.
    pub(crate) fn reset(&self, why: StreamReset, memory: &Memory) -> [Option<Waker>; 2] {
        let mut state = self.lock();
        state.reset.get_or_insert(why);
        // Nobody will report that these have left.
        state.take_outbox(memory);
        [state.reader.take(), state.writer.take()]
    }

    /// Memory ran short: what was received is dropped, and the reader sees a reset instead of an end. Of the `held` bytes
    /// some may be in its hands already.
    pub(crate) fn discard(&self, held: u32, memory: &Memory) -> [Option<Waker>; 2] {
        let mut state = self.lock();
        let inbox = mem::take(&mut state.inbox);
        state.fin_received = false;
        drop(state);
        self.keep_account(held.saturating_sub(inbox.len() as u32), memory);
        self.reset(StreamReset::Limit, memory)
    }

    /// The multiplexer counts these bytes no more, and the reader may keep them for long: they count here from now on,
    /// until the stream is dropped.
    pub(crate) fn keep_account(&self, bytes: u32, memory: &Memory) {
        let mut state = self.lock();
        if bytes > 0 && state.dropped.is_none() && state.aside.is_none() {
            let mut share = memory.aside();
            share.set(bytes.into());
            state.aside = Some(Box::new(Aside::Kept(share)));
        }
    }

    /// The multiplexer knows the stream no more: nobody need ring for it.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }
}

impl State {
    /// Marks the cell as rung: whether it was not, so that it must be put on the list.
    fn ring(&mut self) -> bool {
        !self.closed && !mem::replace(&mut self.rung, true)
    }

    /// What waits for the driver, which counts it as in use from here on, or drops it.
    fn take_outbox(&mut self, memory: &Memory) -> Chunks {
        memory.give_back(self.outbox.len() as u64);
        mem::take(&mut self.outbox)
    }

    fn check_writable(&self) -> io::Result<()> {
        if let Some(reset) = self.reset {
            Err(reset.into())
        } else if self.fin_asked {
            Err(io::ErrorKind::BrokenPipe.into())
        } else {
            Ok(())
        }
    }

    fn flow(&mut self) -> Option<(&mut Queue, &mut Queue)> {
        match self.aside.as_deref_mut() {
            Some(Aside::Flow { inbox, outbox }) => Some((inbox, outbox)),
            Some(Aside::Kept(_)) | None => None,
        }
    }

    /// Whether anything may still come of the stream: of one that is lost a clean end, unless that was read. Where memory
    /// is short, an end that nobody has come to yet is not worth what it keeps.
    pub(crate) fn check_alive(&self, all_read: bool) -> io::Result<()> {
        let Some(reset) = self.reset else { return Ok(()) };
        let is_read = all_read && self.inbox.is_empty();
        let is_short = match self.aside.as_deref() {
            Some(Aside::Kept(share)) => share.memory().is_short(),
            _ => false,
        };
        if !self.fin_received || is_read || is_short { Err(reset.into()) } else { Ok(()) }
    }

    /// Moves what was received into `reading`, which is empty and stays so at a clean end. `owed` are bytes read since
    /// the last call. Also, whether the driver must be rung.
    pub(crate) fn poll_inbox(
        &mut self,
        cx: &mut Context<'_>,
        owed: u32,
        reading: &mut Chunks,
    ) -> (Poll<io::Result<()>>, bool) {
        self.consumed = self.consumed.saturating_add(owed);
        if let Some((inbox, _)) = self.flow() {
            inbox.pop_framed(reading);
        } else {
            mem::swap(&mut self.inbox, reading);
        }
        let (poll, report) = if !reading.is_empty() {
            (Poll::Ready(Ok(())), REPORT)
        } else if self.fin_received {
            (Poll::Ready(Ok(())), 1)
        } else if let Some(reset) = self.reset {
            (Poll::Ready(Err(reset.into())), 1)
        } else {
            store(&mut self.reader, cx);
            (Poll::Pending, REPORT_WHEN_EMPTY)
        };
        (poll, self.consumed >= report && self.ring())
    }

    /// Adds `owed` to what was read: whether the driver must be rung.
    pub(crate) fn report(&mut self, owed: u32) -> bool {
        self.consumed = self.consumed.saturating_add(owed);
        self.consumed >= REPORT && self.ring()
    }

    /// Whether the peer had said its last byte.
    pub(crate) fn is_finished(&self) -> bool {
        self.fin_received
    }

    /// Waits for a reset: for one whose stream nobody reads yet.
    pub(crate) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.reset.is_some() || self.closed {
            return Poll::Ready(());
        }
        store(&mut self.reader, cx);
        Poll::Pending
    }
}

impl Queue {
    /// Moves some datagrams into `reading`, each behind its length.
    fn pop_framed(&mut self, reading: &mut Chunks) {
        let mut framed = BytesMut::new();
        while framed.len() < DATAGRAM_BATCH
            && let Some(datagram) = self.pop()
        {
            framed.reserve(2 + datagram.len());
            // The frame that brought it carries at most 64 KiB; one of exactly that has no length here.
            let Ok(length) = u16::try_from(datagram.len()) else { continue };
            framed.put_u16(length);
            framed.put_slice(&datagram);
        }
        reading.push(framed.freeze());
    }
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell").field("id", &self.id).field("unsent", &self.unsent).finish_non_exhaustive()
    }
}

fn store(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

// === Bell ===

/// The doorbell of a driver: which cells want something, each once until it is answered.
#[derive(Debug, Default)]
pub(crate) struct Bell(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    cells: Vec<Arc<Cell>>,
    /// Taken by the first ring: one wake-up per turn of the driver is enough.
    driver: Option<Waker>,
    /// The driver is gone.
    off: bool,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a cell on the list that was not on it (see [`State::ring`]), and wakes the driver.
    pub(crate) fn ring(&self, cell: &Arc<Cell>) {
        let driver = {
            let mut list = self.lock();
            if list.off {
                return;
            }
            list.cells.push(cell.clone());
            list.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Wakes the driver for something that is not on the list.
    pub(crate) fn wake(&self) {
        let driver = self.lock().driver.take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Moves the list into `cells`, and wakes `cx` when it grows again.
    pub(crate) fn answer(&self, cx: &Context<'_>, cells: &mut Vec<Arc<Cell>>) {
        let mut list = self.lock();
        mem::swap(&mut list.cells, cells);
        store(&mut list.driver, cx);
    }

    /// Nobody answers any more.
    pub(crate) fn turn_off(&self) {
        let mut list = self.lock();
        list.off = true;
        list.driver = None;
        // Outside of the lock, for the last handle of a cell may be in there.
        let cells = mem::take(&mut list.cells);
        drop(list);
        drop(cells);
    }
}

#[cfg(test)]
mod model;
