use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

/// How long nothing is tried after the pool had no thread. Whatever was tried then stays in the pool's queue, as an empty
/// shell, until a thread comes: one a second, and not one for each name that a user asks for.
const PAUSE: Duration = Duration::from_secs(1);

thread_local! {
    /// When the pool of this thread's runtime had no thread.
    static REFUSED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Runs `work`, which may block, on a thread of the runtime's pool, and waits for it. Within a tokio runtime.
///
/// Unlike tokio's own `spawn_blocking`, which panics then, it outlives a machine that has no thread left (`pids.max`,
/// `RLIMIT_NPROC`). The panic is caught, and stands on standard error like any other, for each thread once a second at most.
///
/// # Errors
///
/// [`ResourceBusy`](io::ErrorKind::ResourceBusy) where there is no thread, nor was within the last second: `work` is dropped.
/// Another kind if `work` panicked.
///
/// # Cancel safety
///
/// Dropping the future gives up waiting; `work` ends in its own time.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    if REFUSED.get().is_some_and(|refused| refused.elapsed() < PAUSE) {
        return Err(no_thread());
    }
    let kept = Arc::new(Mutex::new(Some(work)));
    let shell = {
        let kept = kept.clone();
        move || take(&kept).map(|work| work())
    };
    // There is no form of it that returns the failure. Nothing is left half done: tokio panics when it has let go of its
    // locks, and the shell stays in its queue. What `work` holds must not stay there with it.
    let Ok(running) = catch_unwind(AssertUnwindSafe(|| spawn_blocking(shell))) else {
        drop(take(&kept));
        REFUSED.set(Some(Instant::now()));
        return Err(no_thread());
    };
    drop(kept);
    running.await.map_err(io::Error::other)?.ok_or_else(no_thread)
}

fn take<W>(kept: &Mutex<Option<W>>) -> Option<W> {
    kept.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn no_thread() -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, "no thread is to be had")
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    /// A stack that no machine has: the system refuses each thread as if there were too many.
    fn without_threads() -> Runtime {
        Builder::new_current_thread().enable_all().thread_stack_size(1 << 50).build().unwrap()
    }

    #[test]
    fn without_a_thread_it_fails_and_what_the_work_held_is_let_go() {
        let held = Arc::new(());
        let refused = without_threads().block_on(async {
            for _ in 0..3 {
                let held = held.clone();
                let refused = run_blocking(move || drop(held)).await;
                assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
            }
            Arc::strong_count(&held)
        });
        assert_eq!(refused, 1, "while the runtime stands, and its queue");
    }

    #[test]
    fn after_a_failure_nothing_is_tried_for_a_second() {
        let runtime = Builder::new_current_thread().build().unwrap();
        REFUSED.set(Some(Instant::now()));
        assert!(runtime.block_on(run_blocking(|| ())).is_err());
        REFUSED.set(Instant::now().checked_sub(PAUSE));
        assert_eq!(runtime.block_on(run_blocking(|| 7)).unwrap(), 7);
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_of_another_kind() {
        let failed = run_blocking(|| panic!("injected")).await;
        assert_ne!(failed.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    }
}
