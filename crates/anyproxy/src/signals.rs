//! SIGTERM and SIGINT drain, a second one stops now, SIGHUP is noted.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The signals this process listens to from now on.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes the signals from the system's hands.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Runs `work` with a token that the first signal to stop cancels. `None` when a second one came: then `work`
    /// was dropped where it stood.
    pub(crate) async fn run<F, Fut>(mut self, work: F) -> Option<Fut::Output>
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future,
    {
        let stop = CancellationToken::new();
        let mut work = std::pin::pin!(work(stop.clone()));
        loop {
            tokio::select! {
                output = &mut work => return Some(output),
                () = self.stopping() => {
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
    async fn stopping(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => tracing::info!("SIGHUP ignored: the file is read at start only"),
            }
        }
    }
}
