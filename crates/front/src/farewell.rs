use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::Connection;

/// How long, and for how many bytes, a user may go on talking after the last answer.
const PATIENCE: (Duration, usize) = (Duration::from_secs(1), 64 * 1024);

/// Ends a connection so that the last answer arrives: ends the way to the user, and for a moment reads what they
/// still send. (Closing a socket with bytes unread makes the kernel send a reset, and a reset makes the user's kernel
/// forget the answer.)
///
/// Takes a second at most, and 64 KiB.
///
/// # Errors
///
/// Those of the connection, which is over in any case.
///
/// # Cancel safety
///
/// Dropping the future closes the connection at once.
pub async fn farewell<U: Connection>(mut user: U) -> io::Result<()> {
    let (patience, mut bytes) = PATIENCE;
    let ended = timeout(patience, async {
        user.shutdown().await?;
        let mut buf = [0; 1024];
        while bytes > 0 {
            match user.read(&mut buf).await? {
                0 => break,
                read => bytes = bytes.saturating_sub(read),
            }
        }
        Ok(())
    });
    ended.await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_farewell_reads_on_but_not_for_ever() {
        let (mut user, near) = duplex(64);
        let talk = async {
            while user.write_all(&[0; 64]).await.is_ok() {}
            user.read_to_end(&mut Vec::new()).await
        };
        let (ended, talked) = tokio::join!(farewell(near), talk);
        ended.unwrap();
        assert_eq!(talked.unwrap(), 0);

        let (_silent, near) = duplex(64);
        farewell(near).await.unwrap();
    }
}
