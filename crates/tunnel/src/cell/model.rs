//! Handles and a driver, played in many of the orders in which their steps can fall (Shuttle). A wake-up that is lost
//! is a deadlock there, and every test names what its schedule was, to be played again.

use std::future::poll_fn;
use std::sync::Arc;

use shuttle::future::{block_on, spawn};

use super::*;
use crate::Config;
use crate::shared::{Desk, Shared};

/// Schedules of each kind that each test plays.
const SCHEDULES: usize = 1_000;

/// The size of all pieces that are written.
const PIECE: usize = 8;

/// Plays `scene` by schedules drawn at random, and by ones that change seldom at chosen points, which find what needs
/// a few switches in the right places.
fn play<F: Future<Output = ()>>(scene: impl Fn() -> F + Copy + Send + Sync + 'static) {
    shuttle::check_random(move || block_on(scene()), SCHEDULES);
    shuttle::check_pct(move || block_on(scene()), SCHEDULES, 3);
}

/// What a handle and its driver share. The cell is small: one piece fills it.
#[derive(Clone)]
struct Tunnel {
    cell: Arc<Cell>,
    bell: Arc<Bell>,
    memory: Memory,
}

impl Tunnel {
    fn new() -> Self {
        let memory = Memory::new(u64::MAX);
        let cell = Cell::new(false, &memory);
        cell.set_id(StreamId::new(1).unwrap());
        Self { cell, bell: Arc::default(), memory }
    }

    fn ring_if(&self, ring: bool) {
        if ring {
            self.bell.ring(&self.cell);
        }
    }

    // --- the handle's side, as `Stream` has it ---

    async fn write(&self, data: &'static [u8]) -> io::Result<()> {
        poll_fn(|cx| self.cell.poll_room(cx, PIECE as u32)).await?;
        self.ring_if(self.cell.push(Bytes::from_static(data), &self.memory)?);
        Ok(())
    }

    async fn finish(&self) -> io::Result<()> {
        poll_fn(|cx| {
            let (poll, ring) = self.cell.poll_finish(cx);
            self.ring_if(ring);
            poll
        })
        .await
    }

    /// The next bytes, after `owed` were read; empty at a clean end.
    async fn read(&self, mut owed: u32) -> io::Result<Chunks> {
        let mut reading = Chunks::new();
        poll_fn(|cx| {
            let (poll, ring) = self.cell.lock().poll_inbox(cx, mem::take(&mut owed), &mut reading);
            self.ring_if(ring);
            poll
        })
        .await?;
        Ok(reading)
    }

    // --- the driver's ---

    /// The next time the cell rings, what it wants.
    async fn rung(&self) -> Rung {
        let mut cells = Vec::new();
        poll_fn(|cx| {
            self.bell.answer(cx, &mut cells);
            match cells.drain(..).find_map(|cell| cell.answer(&self.memory)) {
                Some(rung) => Poll::Ready(rung),
                None => Poll::Pending,
            }
        })
        .await
    }

    fn wake(&self, wakers: impl IntoIterator<Item = Option<Waker>>) {
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Takes what a writer has to say, to its end.
    async fn carry(&self) -> Vec<u8> {
        let mut carried = Vec::new();
        loop {
            let mut rung = self.rung().await;
            while !rung.outbox.is_empty() {
                carried.extend(rung.outbox.pop(PIECE / 2));
                self.wake([self.cell.sent(PIECE as u32 / 2, PIECE as u32 / 2)]);
            }
            if rung.fin {
                self.wake([self.cell.fin_taken()]);
                return carried;
            }
        }
    }
}

#[test]
fn m19_what_a_writer_says_leaves_once_and_in_order_and_its_end_is_known() {
    play(|| async {
        let tunnel = Tunnel::new();
        let driver = spawn({
            let tunnel = tunnel.clone();
            async move { tunnel.carry().await }
        });
        for piece in [b"aaaaaaaa", b"bbbbbbbb", b"cccccccc"] {
            tunnel.write(piece).await.unwrap();
        }
        tunnel.finish().await.unwrap();
        assert_eq!(driver.await.unwrap(), b"aaaaaaaabbbbbbbbcccccccc");
        assert_eq!((tunnel.cell.unsent(), tunnel.memory.used()), (0, 0));
    });
}

#[test]
fn m19_a_reader_gets_everything_and_its_credit_comes_back() {
    // One piece is all the credit there is, and the least of which the driver must hear.
    const CREDIT: u32 = REPORT_WHEN_EMPTY;
    static PIECE: [u8; CREDIT as usize] = [7; CREDIT as usize];
    play(|| async {
        let tunnel = Tunnel::new();
        let driver = spawn({
            let tunnel = tunnel.clone();
            async move {
                for _ in 0..3 {
                    tunnel.wake([tunnel.cell.receive(Bytes::from_static(&PIECE))]);
                    let mut credit = 0;
                    while credit < CREDIT {
                        credit += tunnel.rung().await.consumed;
                    }
                }
                tunnel.wake([tunnel.cell.fin_received()]);
            }
        });
        let (mut owed, mut got) = (0, 0);
        loop {
            let read = tunnel.read(owed).await.unwrap().len();
            (owed, got) = (read as u32, got + read);
            if read == 0 {
                break;
            }
        }
        assert_eq!(got, 3 * PIECE.len());
        driver.await.unwrap();
    });
}

#[test]
fn m19_whoever_waits_when_the_tunnel_is_lost_is_told() {
    for finishes in [false, true] {
        play(move || async move {
            let tunnel = Tunnel::new();
            let writer = spawn({
                let tunnel = tunnel.clone();
                // There is room for one piece, and nobody takes any.
                async move {
                    tunnel.write(b"aaaaaaaa").await?;
                    if finishes { tunnel.finish().await } else { tunnel.write(b"bbbbbbbb").await }
                }
            });
            let reader = spawn({
                let tunnel = tunnel.clone();
                async move { tunnel.read(0).await.map(|read| read.len()) }
            });
            tunnel.wake(tunnel.cell.reset(StreamReset::TunnelLost, &tunnel.memory));
            tunnel.cell.close();
            tunnel.bell.turn_off();
            writer.await.unwrap().unwrap_err();
            reader.await.unwrap().unwrap_err();
            assert_eq!(tunnel.memory.used(), 0);
        });
    }
}

#[test]
fn m19_what_a_lost_stream_keeps_counts_until_its_handle_is_dropped() {
    play(|| async {
        let tunnel = Tunnel::new();
        tunnel.wake([tunnel.cell.receive(Bytes::from_static(b"aaaaaaaa"))]);
        let reader = spawn({
            let tunnel = tunnel.clone();
            async move {
                let kept = tunnel.read(0).await;
                tunnel.cell.abandon(ResetCode::Cancelled, 0, kept.is_ok(), &tunnel.memory);
            }
        });
        tunnel.wake(tunnel.cell.discard(8, &tunnel.memory));
        tunnel.cell.close();
        reader.await.unwrap();
        drop(tunnel.cell);
        assert_eq!(tunnel.memory.used(), 0);
    });
}

#[test]
fn m19_a_driver_hears_that_a_handle_was_dropped_though_it_is_just_served() {
    play(|| async {
        let tunnel = Tunnel::new();
        let driver = spawn({
            let tunnel = tunnel.clone();
            async move { while tunnel.rung().await.dropped.is_none() {} }
        });
        tunnel.write(b"aaaaaaaa").await.unwrap();
        tunnel.ring_if(tunnel.cell.abandon(ResetCode::Cancelled, 0, false, &tunnel.memory));
        driver.await.unwrap();
        assert_eq!(tunnel.memory.used(), 0);
    });
}

#[test]
fn m19_every_command_on_the_desk_is_found() {
    play(|| async {
        let shared = Shared::new(1, &Config::default(), std::time::Instant::now());
        let desk = Desk::new(shared);
        let askers = [1, 2].map(|command| {
            let desk = desk.clone();
            spawn(async move { desk.push(command, 8).unwrap() })
        });
        let mut found = 0;
        poll_fn(|cx| {
            desk.shared.bell.answer(cx, &mut Vec::new());
            found += desk.take().commands.len();
            if found == 2 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        for asker in askers {
            asker.await.unwrap();
        }
    });
}

#[test]
fn i9_a_datagram_that_waits_to_be_read_does_not_keep_the_message_it_came_in() {
    let receive = || {
        let message = Bytes::from(vec![7; 128 * 1024]);
        let cell = Cell::new(true, &Memory::default());
        let (kept, _) = cell.receive_datagram(&message.slice(..1));
        assert!(kept && message.is_unique());
    };
    shuttle::check_random(receive, 1);
}
