//! Whether a line that was full has moved.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

/// Wakes the driver when a connection that took no more takes something again, and remembers that it did.
///
/// It tells a slow line from a dead one. How many bytes the carrier has passed on does not: TLS takes much at once and lets
/// nobody see how it leaves. But at the bottom is a socket, and its kernel wakes those who wait to write because the peer has
/// acknowledged something.
#[derive(Debug)]
pub(crate) struct Progress {
    state: Arc<State>,
    /// Wakes through `state`.
    waker: Waker,
}

#[derive(Debug, Default)]
struct State {
    moved: AtomicBool,
    driver: Mutex<Option<Waker>>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let state = Arc::<State>::default();
        Self { waker: Waker::from(state.clone()), state }
    }

    /// The context to write with: whoever waits in it wakes `cx`, and is known to have been woken.
    pub(crate) fn watch(&self, cx: &Context<'_>) -> Context<'_> {
        let mut driver = self.state.driver.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *driver {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *driver = Some(cx.waker().clone()),
        }
        Context::from_waker(&self.waker)
    }

    /// Whether the line has moved since this was last asked.
    pub(crate) fn take(&self) -> bool {
        self.state.moved.swap(false, Ordering::Relaxed)
    }
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.moved.store(true, Ordering::Relaxed);
        let driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::Poll;

    use tokio::io::{AsyncReadExt as _, AsyncWrite as _, duplex};

    use super::*;

    #[tokio::test]
    async fn only_what_had_to_wait_is_progress_and_each_once() {
        let (mut near, mut far) = duplex(10);
        let (progress, driver) = (Progress::new(), Arc::<State>::default());
        let driven = Waker::from(driver.clone());
        let mut write = |bytes: &[u8]| {
            let mut cx = progress.watch(&Context::from_waker(&driven));
            Pin::new(&mut near).poll_write(&mut cx, bytes)
        };
        let woken = || driver.moved.swap(false, Ordering::Relaxed);
        assert!(matches!(write(&[0; 10]), Poll::Ready(Ok(10))));
        far.read_exact(&mut [0; 5]).await.unwrap();
        assert!(!progress.take() && !woken(), "there was room");
        assert!(matches!(write(&[0; 10]), Poll::Ready(Ok(5))));
        for _ in 0..2 {
            assert!(write(&[0; 10]).is_pending());
            assert!(!progress.take() && !woken(), "nothing moves");
            far.read_exact(&mut [0; 5]).await.unwrap();
            assert!(woken() && progress.take() && !progress.take());
            assert!(matches!(write(&[0; 5]), Poll::Ready(Ok(5))));
        }
    }
}
