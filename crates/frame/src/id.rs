use std::{fmt, num::NonZeroU32};

/// The number of a stream within its tunnel: 1, 2, 3, … in the order in which the gateway opened them.
///
/// Numbers are never used twice. When they run out the tunnel is replaced by a new one. The value 0 in a
/// frame's header means the tunnel itself, so it is no `StreamId`, and `Option<StreamId>` takes four bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(NonZeroU32);

impl StreamId {
    /// The number of the first stream of every tunnel.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The stream with this number; `None` for 0, which is the tunnel.
    pub const fn new(id: u32) -> Option<Self> {
        match NonZeroU32::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The number after this one; `None` when they have run out.
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({})", self.0)
    }
}
