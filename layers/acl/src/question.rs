use anyproxy_core::{Dial, Identity, Network, Target};

/// What a policy is asked: may this user reach this target, over this network, through this front?
///
/// Borrowed, so that asking costs nothing: a gateway makes it of a [`Dial`], a client of the open it got.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Where to.
    pub target: &'a Target,
    /// Stream or datagrams.
    pub network: Network,
    /// For whom.
    pub identity: &'a Identity,
    /// The name of the front the user came through.
    pub front: &'a str,
}

impl<'a> From<&'a Dial> for Question<'a> {
    fn from(dial: &'a Dial) -> Self {
        Self {
            target: &dial.target,
            network: dial.network,
            identity: &dial.identity,
            front: dial.front.as_str(),
        }
    }
}
