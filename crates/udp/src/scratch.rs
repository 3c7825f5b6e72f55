use std::cell::Cell;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// More than the longest datagram, whose length is a `u16`.
const LENGTH: usize = 64 * 1024;

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Memory for the moment of a receive, 64 KiB and one piece per thread: thousands of idle sockets hold none.
///
/// Given back on drop. Hold it within one `poll`, never across an await; if it is taken twice at once, the second
/// piece is a new one and one of the two goes away afterwards. What is in it is whatever the last user left.
pub struct Scratch(Vec<u8>);

impl Scratch {
    /// Takes this thread's piece.
    #[must_use]
    pub fn take() -> Self {
        let mut spare = SPARE.take();
        if spare.is_empty() {
            spare = vec![0; LENGTH];
        }
        Self(spare)
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scratch")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SPARE.set(std::mem::take(&mut self.0));
    }
}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
