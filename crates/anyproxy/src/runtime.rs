//! The runtime a command runs in.

use std::process::ExitCode;
use std::time::Duration;

use anyproxy_workers::{Pulse, Workers};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::signals::{Hangup, Hangups, Signals};

/// What each heap of the C library may keep at its end, half of it.
const KEPT: usize = 4 * 1024 * 1024;

/// The longest an end may take once everything was told to end.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// A runtime that nothing runs in yet. From its start on a SIGHUP, which would end the process, waits for the work: whoever
/// sends one need not know whether the file has been read.
pub(crate) struct Runtime {
    runtime: tokio::runtime::Runtime,
    pulse: Pulse,
    hangup: Hangup,
}

impl Runtime {
    pub(crate) fn start() -> Result<Self, Failure> {
        let (runtime, pulse) = Pulse::runtime().map_err(|error| Failure::of("runtime", error))?;
        let hangup = {
            let _inside = runtime.enter();
            Hangup::listen().map_err(|error| Failure::of("signals", error))?
        };
        Ok(Self { runtime, pulse, hangup })
    }

    /// Runs `work` to its end, or to the second signal that asks for it.
    pub(crate) fn run<F, Fut>(self, work: F) -> Result<ExitCode, Failure>
    where
        F: FnOnce(CancellationToken, Hangups, Workers) -> Fut,
        Fut: Future<Output = Result<(), Failure>>,
    {
        let Self { runtime, pulse, hangup } = self;
        keep_memory();
        let ended: Result<_, Failure> = runtime.block_on(async {
            let (workers, crew) =
                Workers::start(threads(), pulse).map_err(|error| Failure::of("threads", error))?;
            let signals = Signals::listen(hangup).map_err(|error| Failure::of("signals", error))?;
            let ended = signals.run(|stop, hangups| work(stop, hangups, workers)).await;
            // Its tasks were told to stop and had their time, as those below.
            crew.stop(LAST_MOMENT);
            Ok(ended)
        });
        // What still runs was told to stop and had its time. It is dropped here, which resets its connections: the system
        // would close them as if all had been said. Only a name lookup is not worth waiting for.
        runtime.shutdown_timeout(LAST_MOMENT);
        match ended? {
            Some(Ok(())) => Ok(ExitCode::SUCCESS),
            Some(Err(failure)) => Err(failure),
            None => Ok(ExitCode::FAILURE),
        }
    }
}

/// One for each core. The first is the program's own, and serves alone until there is a second tunnel.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Makes glibc keep what it frees.
///
/// By default it gives the end of a heap back to the system when 128 KiB of it are free, and takes it again a moment
/// later, page by page: at full speed one page for every three that pass, which is a tenth of all time. There is no safe
/// call that says otherwise, but freeing one large block does: the limits are twice what the largest such block was
/// (mallopt(3), `M_MMAP_THRESHOLD`). Its pages are never touched, so it costs nothing; elsewhere it does nothing.
fn keep_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT)));
}
