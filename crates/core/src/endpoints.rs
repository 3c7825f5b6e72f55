use std::future::Future;
use std::sync::Arc;

use crate::{Dial, DialService};

/// How much a member of a group carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// Dials under way and living streams.
    pub streams: usize,
    /// Bytes that wait to leave on the way to it.
    pub unsent: usize,
}

/// One member of a group: a dial service with a name and a load.
pub trait Endpoint: DialService {
    /// The member's name: unique in its group and lasting over reconnects. What ejection remembers and sticky
    /// strategies hash.
    fn name(&self) -> &str;

    /// What it carries now. A dial counts from `call` on until its stream's last byte, or a burst would go to one
    /// member.
    fn load(&self) -> Load;
}

/// The members of a group, as a balancer and a waiting line see them: who may serve this dial now.
///
/// A gateway's registry of clients is one; a test's fixed list is another.
pub trait Endpoints: Clone + Send + Sync + 'static {
    /// One member.
    type Endpoint: Endpoint;

    /// Those who may serve `dial` now: the present and healthy ones. Does not allocate on its usual path.
    fn snapshot(&self, dial: &Dial) -> Arc<[Self::Endpoint]>;

    /// Ready as soon as somebody may serve `dial`. Looks at the present first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops waiting.
    fn served(&self, dial: &Dial) -> impl Future<Output = ()> + Send + 'static;
}
