use std::collections::VecDeque;

use anyproxy_frame::StreamId;

/// Which stream is next.
///
/// Deficit round-robin in two lists, as in FQ-CoDel (RFC 8290 section 4.1): a stream that was silent and has
/// something to say comes first, for one quantum; whoever says more goes to the other list and takes turns. So a
/// keystroke never waits for more than the frame under way, however many streams are busy. A stream that runs dry
/// in the first list waits once in the second, or it could come back first for ever.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    fresh: VecDeque<StreamId>,
    busy: VecDeque<StreamId>,
}

/// The list a stream stands in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Place {
    #[default]
    None,
    Fresh,
    Busy,
}

impl Schedule {
    pub(crate) fn push(&mut self, id: StreamId, place: Place) {
        match place {
            Place::Fresh => self.fresh.push_back(id),
            Place::Busy => self.busy.push_back(id),
            Place::None => {}
        }
    }

    /// Whose turn it is, and where it stands.
    pub(crate) fn first(&self) -> Option<(StreamId, Place)> {
        match self.fresh.front() {
            Some(&id) => Some((id, Place::Fresh)),
            None => self.busy.front().map(|&id| (id, Place::Busy)),
        }
    }

    /// Takes the first out of its list.
    pub(crate) fn pop(&mut self) {
        let list = if self.fresh.is_empty() { &mut self.busy } else { &mut self.fresh };
        list.pop_front();
        if list.is_empty() && list.capacity() > KEPT {
            *list = VecDeque::new();
        }
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.fresh.len() + self.busy.len() == 1
    }

    pub(crate) fn has_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Entries that an empty queue keeps room for, so that a crowd long gone costs nothing.
pub(crate) const KEPT: usize = 256;
