use std::io;

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;

use crate::Connection;

/// What is made room for at once.
const READ: usize = 1024;

/// The most early data taken while nobody is there for it. Beyond it the user waits, as TCP makes them.
const EARLY: usize = 16 * 1024;

/// Ready when the user has gone before there was an answer: by an error, or by an end with nothing said. What they say
/// meanwhile is kept in `early`, up to 16 KiB, and an end behind it is the end of what they say.
///
/// # Cancel safety
///
/// Cancel safe: what was read is in `early`.
pub async fn gone<U: Connection>(user: &mut U, early: &mut BytesMut) {
    if listen(user, early).await.is_ok_and(|ended| !ended || !early.is_empty()) {
        std::future::pending().await
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
        std::future::pending().await
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
