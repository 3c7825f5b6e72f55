use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use anyproxy_core::Identity;
use metrics::{Counter, Gauge, counter, gauge};

use crate::figures::Verdict;

/// The label of users beyond those that have one of their own; also of a user who is called so.
const OTHER: &str = "other";
/// The label of users who were not asked for a name; also of one who is called so.
const NOBODY: &str = "-";

/// Figures by user, for the first so many users seen: six series each. A name once known stays for good, since a
/// counter that goes and comes back reads as a restart.
#[derive(Debug)]
pub(crate) struct Users {
    most: usize,
    known: RwLock<HashMap<Box<str>, Arc<UserFigures>>>,
    /// Those two are beside the number.
    nobody: OnceLock<Arc<UserFigures>>,
    other: OnceLock<Arc<UserFigures>>,
}

/// The handles of one user.
#[derive(Debug)]
pub(crate) struct UserFigures {
    ok: Counter,
    failed: Counter,
    cancelled: Counter,
    pub(crate) open: Gauge,
    pub(crate) up: Counter,
    pub(crate) down: Counter,
}

impl Users {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, known: RwLock::default(), nobody: OnceLock::new(), other: OnceLock::new() }
    }

    pub(crate) fn of(&self, identity: &Identity) -> Arc<UserFigures> {
        match identity.user().unwrap_or(NOBODY) {
            NOBODY => take(&self.nobody, NOBODY),
            OTHER => take(&self.other, OTHER),
            user => self.known(user).unwrap_or_else(|| take(&self.other, OTHER)),
        }
    }

    /// Those of a user by name; `None` beyond the number.
    fn known(&self, user: &str) -> Option<Arc<UserFigures>> {
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(figures) = known.get(user) {
                return Some(figures.clone());
            }
            if known.len() >= self.most {
                return None;
            }
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= self.most && !known.contains_key(user) {
            return None;
        }
        Some(known.entry(user.into()).or_insert_with(|| Arc::new(UserFigures::new(user))).clone())
    }
}

fn take(figures: &OnceLock<Arc<UserFigures>>, user: &str) -> Arc<UserFigures> {
    figures.get_or_init(|| Arc::new(UserFigures::new(user))).clone()
}

impl UserFigures {
    fn new(user: &str) -> Self {
        let dials = |verdict: &'static str| counter!("anyproxy_user_dials_total", "user" => user.to_owned(), "verdict" => verdict);
        let bytes = |direction: &'static str| counter!("anyproxy_user_bytes_total", "user" => user.to_owned(), "direction" => direction);
        Self {
            ok: dials("ok"),
            failed: dials("failed"),
            cancelled: dials("cancelled"),
            open: gauge!("anyproxy_user_streams_open", "user" => user.to_owned()),
            up: bytes("up"),
            down: bytes("down"),
        }
    }

    pub(crate) const fn dials(&self, verdict: Verdict) -> &Counter {
        match verdict {
            Verdict::Ok => &self.ok,
            Verdict::Refused(_) => &self.failed,
            Verdict::Cancelled => &self.cancelled,
        }
    }
}
