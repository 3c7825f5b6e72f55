use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::CloseReason;

/// The work of one tunnel: owns the carrier and the multiplexer, and ends with the tunnel. (skeleton)
///
/// Spawn it in a tracker that outlives it. Dropping it kills the tunnel: its streams read as reset.
#[must_use = "nothing moves unless the driver is spawned"]
pub struct Driver {}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl Future for Driver {
    type Output = CloseReason;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<CloseReason> {
        unimplemented!()
    }
}
