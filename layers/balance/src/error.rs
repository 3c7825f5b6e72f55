use std::error::Error;
use std::fmt;

use anyproxy_core::{Outcome, Refusal};

/// Nobody serves the group of this dial now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoClient;

impl fmt::Display for NoClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no client serves the user's group")
    }
}

impl Error for NoClient {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(const { &Refusal::new("balance", Outcome::NoClient) })
    }
}
