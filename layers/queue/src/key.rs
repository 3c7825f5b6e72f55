use anyproxy_core::{Dial, Digest, SourcePrefix};

/// Whose turn it is: a user's, or, of those who were not asked who they are, that of the network they come from.
pub(crate) fn key(dial: &Dial) -> Digest {
    match dial.identity.user() {
        Some(_) => dial.identity.digest(),
        None => Digest::of(&SourcePrefix::from(dial.source)),
    }
}
