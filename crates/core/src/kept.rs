//! Bytes that are read once and kept, without a copy from hand to hand.

use std::cell::Cell;
use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

thread_local! {
    /// Memory for the moment of a read, one piece per thread: thousands of idle relays hold none.
    static SPARE: Cell<BytesMut> = Cell::new(BytesMut::new());
    static LENT: Cell<Option<Bytes>> = const { Cell::new(None) };
}

/// What `reader` has next, at most `limit` bytes; empty at its end.
///
/// Few bytes are copied out of the thread's memory, many keep it and the next read takes new: what is handed out is at
/// least half full.
pub fn poll_read_bytes<R>(reader: Pin<&mut R>, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<Bytes>>
where
    R: AsyncRead + ?Sized,
{
    let mut spare = SPARE.take();
    if spare.capacity() < limit {
        spare = BytesMut::with_capacity(limit);
    }
    let result = poll_read_buf(reader, cx, &mut (&mut spare).limit(limit));
    let bytes = match result {
        Poll::Ready(Ok(read)) if read >= spare.capacity() / 2 => mem::take(&mut spare).freeze(),
        _ => Bytes::copy_from_slice(&spare),
    };
    spare.clear();
    SPARE.set(spare);
    result.map_ok(|_| bytes)
}

/// Calls `write` with `bytes`, and lets whoever they end at keep them without a copy: with [`share`].
///
/// `AsyncWrite` shows a sink bytes, and one that would keep them must copy them. A writer whose bytes can be shared says so
/// with this, past all wrappers in between, which need not know of it: one that passes on other bytes has them copied. It
/// holds for this thread until `write` returns, and for the bytes of the latest call where calls are nested.
pub fn lend<T>(bytes: &Bytes, write: impl FnOnce(&[u8]) -> T) -> T {
    /// Nothing is lent any more, whether `write` returned or panicked.
    struct End;

    impl Drop for End {
        fn drop(&mut self) {
            LENT.set(None);
        }
    }

    let _end = End;
    LENT.set(Some(bytes.clone()));
    write(bytes)
}

/// `bytes`, to keep: a share of what is [lent](lend) if they are a part of it, else a copy.
#[must_use]
pub fn share(bytes: &[u8]) -> Bytes {
    let lent = LENT.take();
    let whole = lent.as_ref().filter(|whole| is_within(bytes, whole));
    let kept = whole.map_or_else(|| Bytes::copy_from_slice(bytes), |whole| whole.slice_ref(bytes));
    LENT.set(lent);
    kept
}

fn is_within(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::task::Waker;

    use super::*;

    fn read(mut from: &[u8], limit: usize) -> Bytes {
        let read = poll_read_bytes(Pin::new(&mut from), &mut Context::from_waker(Waker::noop()), limit);
        assert!(matches!(&read, Poll::Ready(Ok(bytes)) if bytes.len() <= limit));
        match read {
            Poll::Ready(Ok(bytes)) => bytes,
            _ => Bytes::new(),
        }
    }

    #[test]
    fn many_bytes_keep_their_memory_and_few_do_not() {
        let few = read(&[1; 10], 1_000);
        let memory = SPARE.take();
        assert!(memory.is_empty() && memory.capacity() >= 1_000);
        let place = memory.as_ptr();
        SPARE.set(memory);
        let many = read(&[2; 2_000], 1_000);
        assert_eq!(many.as_ptr(), place, "where it was read");
        assert_eq!(SPARE.take().capacity(), 0);
        assert_eq!((few, many), (vec![1; 10].into(), vec![2; 1_000].into()));
        assert!(read(&[], 1_000).is_empty(), "an end");
    }

    /// Whether somebody beside `bytes` has a share of its memory.
    fn is_shared(bytes: &Bytes) -> bool {
        !bytes.is_unique()
    }

    #[test]
    fn a_part_of_what_is_lent_is_kept_without_a_copy() {
        let bytes = Bytes::from(b"bytes".to_vec());
        let kept = lend(&bytes, |bytes| share(&bytes[1..3]));
        assert_eq!(kept, b"yt"[..]);
        assert_eq!(kept.as_ptr(), bytes[1..].as_ptr());
        drop(kept);
        assert!(!is_shared(&bytes));
    }

    #[test]
    fn other_bytes_are_copied() {
        let (bytes, others) = (Bytes::from(b"bytes".to_vec()), b"others".to_vec());
        let kept = lend(&bytes, |_| share(&others));
        assert_eq!(kept, others);
        assert!(!is_shared(&bytes));
        assert_eq!(lend(&bytes, |_| share(&[])), b""[..]);
    }

    #[test]
    fn what_was_lent_is_not_lent_any_more() {
        let bytes = Bytes::from(b"bytes".to_vec());
        lend(&bytes, |_| ());
        let _kept = share(&bytes);
        assert!(!is_shared(&bytes));
        let panicked = catch_unwind(AssertUnwindSafe(|| lend(&bytes, |_| panic!("in a write"))));
        assert!(panicked.is_err() && !is_shared(&bytes));
    }
}
