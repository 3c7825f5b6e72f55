use std::pin::pin;
use std::task::{Context, Poll};

/// Ends a task's turn although it has more to do; always pending.
///
/// `cx.waker().wake_by_ref()` puts a task back in line at once, and it may be polled dozens of times before the runtime
/// looks at its sockets again: a keystroke that came meanwhile waits all that time. So the task is woken as
/// [`yield_now`](tokio::task::yield_now) does it: as a rule when all that were ready had their turn and the sockets were
/// looked at. Outside a tokio runtime it is woken at once.
pub fn end_turn<T>(cx: &mut Context<'_>) -> Poll<T> {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn what_comes_meanwhile_is_seen_before_the_next_turn() {
        let (mut near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let mut far = tokio::net::UnixStream::from_std(far).unwrap();
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = turns.clone();
        let reader = tokio::spawn(async move {
            far.read_u8().await.unwrap();
            counted.load(Ordering::Relaxed)
        });
        tokio::spawn(poll_fn(move |cx| match turns.fetch_add(1, Ordering::Relaxed) {
            0 => {
                near.write_all(b"x").unwrap();
                end_turn(cx)
            }
            1..200 => end_turn(cx),
            _ => Poll::Ready(()),
        }));
        assert_eq!(reader.await.unwrap(), 1);
    }
}
