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
    while early.len() < EARLY {
        early.reserve(READ);
        match user.read_buf(early).await {
            Ok(0) if early.is_empty() => return,
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    std::future::pending().await
}
