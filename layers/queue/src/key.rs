use std::sync::Arc;

use anyproxy_core::{Dial, SourcePrefix};

/// Whose turn it is: a user, or, of those who were not asked who they are, the network they come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    User(Arc<str>),
    Source(SourcePrefix),
}

impl Key {
    pub(crate) fn of(dial: &Dial) -> Self {
        match dial.identity.user() {
            Some(_) => Self::User(dial.identity.key()),
            None => Self::Source(dial.source.into()),
        }
    }
}
