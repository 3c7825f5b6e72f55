//! SIGTERM and SIGINT drain, a second one stops now, SIGHUP asks for the file to be read again.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// SIGHUPs: those that come while one is being served are one more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hangups(Arc<Notify>);

impl Hangups {
    /// Waits for the next one.
    pub(crate) async fn next(&self) {
        self.0.notified().await;
    }
}

/// SIGHUP alone, from now on: one that comes before somebody asks for it is kept.
pub(crate) struct Hangup(Signal);

impl Hangup {
    /// Takes it from the system's hands. Within a runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }
}

/// The signals this process listens to from now on.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Hangup,
}

impl Signals {
    /// Takes the others from the system's hands, too. Until then they end the process: nothing is there to be drained.
    pub(crate) fn listen(hangup: Hangup) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup,
        })
    }

    /// Runs `work` with a token that the first signal to stop cancels, and the SIGHUPs. `None` when a second one came: then
    /// `work` was dropped where it stood.
    pub(crate) async fn run<F, Fut>(mut self, work: F) -> Option<Fut::Output>
    where
        F: FnOnce(CancellationToken, Hangups) -> Fut,
        Fut: Future,
    {
        let (stop, hangups) = (CancellationToken::new(), Hangups::default());
        let mut work = std::pin::pin!(work(stop.clone(), hangups.clone()));
        loop {
            tokio::select! {
                output = &mut work => return Some(output),
                () = self.stopping(&hangups) => {
                    if stop.is_cancelled() {
                        tracing::warn!("stopping now");
                        return None;
                    }
                    tracing::info!("draining; a second signal stops at once");
                    stop.cancel();
                }
            }
        }
    }

    /// Until a signal to stop comes.
    async fn stopping(&mut self, hangups: &Hangups) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.0.recv() => hangups.0.notify_one(),
            }
        }
    }
}
