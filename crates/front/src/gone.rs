use std::io;

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;

use crate::Connection;

/// What is made room for at once.
const READ: usize = 1024;

/// The most early data taken while nobody is there for it. Beyond it the user waits, as TCP makes them.
const EARLY: usize = 16 * 1024;

/// Ready when the user has gone before there was an answer: by an error, or by an end with nothing said. What they say
/// meanwhile is kept in `early`, up to 16 KiB, and an end behind it is the end of what they say; from there on it takes an
/// error ([`Connection::lost`]).
///
/// # Cancel safety
///
/// Cancel safe: what was read is in `early`.
pub async fn gone<U: Connection>(user: &mut U, early: &mut BytesMut) {
    if listen(user, early).await.is_ok_and(|ended| !ended || !early.is_empty()) {
        user.lost().await;
    }
}

/// The same where a user owes nobody a word, because their target may be the first to speak: ready by an error alone. Any
/// end is the end of what they say.
///
/// # Cancel safety
///
/// Cancel safe: what was read is in `early`.
pub async fn lost<U: Connection>(user: &mut U, early: &mut BytesMut) {
    if listen(user, early).await.is_ok() {
        user.lost().await;
    }
}

/// Keeps what the user says until they end, which is `true`, or there is no more room for it.
async fn listen<U: Connection>(user: &mut U, early: &mut BytesMut) -> io::Result<bool> {
    while early.len() < EARLY {
        early.reserve(READ);
        if user.read_buf(early).await? == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use socket2::SockRef;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn s10_a_user_who_resets_has_gone_though_they_have_said_all_or_more_than_is_taken() {
        for (said, ends) in [(1, true), (EARLY, false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut user = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let mut here = listener.accept().await.unwrap().0;
            user.write_all(&vec![7; said]).await.unwrap();
            if ends {
                user.shutdown().await.unwrap();
            }
            let unread = SockRef::from(&here).try_clone().unwrap();
            let mut early = BytesMut::new();
            let mut gone = pin!(gone(&mut here, &mut early));
            while unread.peek(&mut [std::mem::MaybeUninit::uninit()]).is_ok_and(|there| there > 0) {
                let waits = poll_fn(|cx| Poll::Ready(gone.as_mut().poll(cx).is_pending())).await;
                assert!(waits, "who waits for the answer has not gone");
                tokio::task::yield_now().await;
            }
            user.abort();
            drop(user);
            gone.await;
        }
    }
}
