use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder as ThreadBuilder, JoinHandle};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::Pulse;

/// The threads that were started; their owner. Dropped, it tells them to end and does not wait.
#[derive(Debug)]
#[must_use = "dropped, it ends its threads"]
pub struct Crew(Vec<Hand>);

/// One thread.
#[derive(Debug)]
struct Hand {
    /// How long its runtime may take to end. Dropped without a word: no time at all.
    stop: oneshot::Sender<Duration>,
    thread: JoinHandle<()>,
}

impl Crew {
    /// Starts `threads`, and returns once each has its runtime.
    pub(crate) fn start(threads: usize) -> io::Result<(Self, Vec<(Handle, Pulse)>)> {
        let (mut crew, mut running) = (Vec::new(), Vec::new());
        for number in 1..=threads {
            let (started, runtime) = sync_channel(1);
            let (stop, stopped) = oneshot::channel();
            let thread = ThreadBuilder::new()
                .name(format!("anyproxy-{number}"))
                .spawn(move || work(&started, stopped))?;
            running.push(first_word(&runtime)?);
            crew.push(Hand { stop, thread });
        }
        Ok((Self(crew), running))
    }

    /// Ends the threads and waits for them. What still runs on them is dropped; a call that blocks is waited for no
    /// longer than `limit`.
    pub fn stop(self, limit: Duration) {
        let (stops, threads): (Vec<_>, Vec<_>) =
            self.0.into_iter().map(|hand| (hand.stop, hand.thread)).unzip();
        for stop in stops {
            let _ = stop.send(limit);
        }
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// What a thread does: runs its tasks until it is told to stop.
fn work(started: &SyncSender<io::Result<(Handle, Pulse)>>, stopped: oneshot::Receiver<Duration>) {
    let (runtime, pulse) = match Pulse::runtime() {
        Ok(watched) => watched,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let _ = started.send(Ok((runtime.handle().clone(), pulse)));
    let limit = runtime.block_on(stopped).unwrap_or_default();
    runtime.shutdown_timeout(limit);
}

fn first_word(thread: &Receiver<io::Result<(Handle, Pulse)>>) -> io::Result<(Handle, Pulse)> {
    thread.recv().unwrap_or_else(|_| Err(io::Error::other("a thread ended before it began")))
}
