//! What is remembered of members: failures in a row, ejections, answer times.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyproxy_core::{Endpoint, FOR_EVER};
use tokio::time::Instant;

/// When a member is left out, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Failures in a row that eject a member (default: 5); 0 = never. Few, and one lost packet empties a group; many,
    /// and users wait for a member that is gone.
    pub failures: u32,
    /// How long the first ejection lasts (default: 10 s). Each one that follows without a success between lasts as much
    /// longer.
    pub base: Duration,
    /// The longest ejection (default: 5 min).
    pub max: Duration,
}

impl Default for Ejection {
    fn default() -> Self {
        Self { failures: 5, base: Duration::from_secs(10), max: Duration::from_secs(5 * 60) }
    }
}

/// Members remembered before those are forgotten that nothing was heard of for [`FORGET`]. Names come from clients.
const MAX_MEMBERS: usize = 4096;

/// Longer than any ejection by default, so that its count is not forgotten while it lasts.
const FORGET: Duration = Duration::from_secs(10 * 60);

/// How fast an answer time is forgotten: after this long without a new one, it counts a third.
const DECAY: Duration = Duration::from_secs(10);

/// Answer times below this are equal, and one who has not answered yet is taken to be as fast: it is tried, and not
/// flooded. In seconds.
const FLOOR: f64 = 0.001;

/// The health of all members, by name.
#[derive(Debug, Default)]
pub(crate) struct Health {
    members: Mutex<HashMap<Arc<str>, Member>>,
    /// How many members have failures against them; with none, which is usual, nothing is looked up.
    troubled: AtomicUsize,
}

#[derive(Debug)]
struct Member {
    failures: u32,
    ejections: u32,
    until: Option<Instant>,
    /// In seconds, and when it was last measured.
    latency: Option<(f64, Instant)>,
    heard: Instant,
}

/// The answer times, for one choice.
pub(crate) struct Latencies<'a> {
    members: MutexGuard<'a, HashMap<Arc<str>, Member>>,
    now: Instant,
}

impl Health {
    /// Those of `members` that are not ejected; all of them if all are.
    pub(crate) fn present<E: Endpoint>(&self, members: Arc<[E]>) -> Arc<[E]> {
        if self.troubled.load(Ordering::Relaxed) == 0 {
            return members;
        }
        let now = Instant::now();
        let health = self.lock();
        let is_out = |member: &E| health.get(member.name()).is_some_and(|member| member.is_out(now));
        if !members.iter().any(is_out) {
            return members;
        }
        let present: Arc<[E]> = members.iter().filter(|member| !is_out(member)).cloned().collect();
        if present.is_empty() { members } else { present }
    }

    /// The member answered: the user's stream, or a failure that is the target's.
    pub(crate) fn answered(&self, name: &str, latency: Option<Duration>) {
        if latency.is_none() && self.troubled.load(Ordering::Relaxed) == 0 {
            return;
        }
        let now = Instant::now();
        let mut members = self.lock();
        let Some(member) = member(&mut members, name, now, latency.is_some()) else { return };
        if let Some(latency) = latency {
            member.measure(latency, now);
        }
        member.heard = now;
        if member.failures > 0 {
            (member.failures, member.ejections, member.until) = (0, 0, None);
            self.troubled.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The member failed. It is ejected if that was once too often and one of `others` is not out.
    pub(crate) fn failed<E: Endpoint>(&self, name: &str, rule: Ejection, others: &[E]) -> Option<Duration> {
        if rule.failures == 0 {
            return None;
        }
        let now = Instant::now();
        let mut members = self.lock();
        let is_out = |member: &E| members.get(member.name()).is_some_and(|member| member.is_out(now));
        let is_last = !others.iter().any(|other| other.name() != name && !is_out(other));
        let member = member(&mut members, name, now, true)?;
        if member.failures == 0 {
            self.troubled.fetch_add(1, Ordering::Relaxed);
        }
        member.heard = now;
        member.failures = member.failures.saturating_add(1);
        if member.failures < rule.failures || member.is_out(now) || is_last {
            return None;
        }
        member.ejections = member.ejections.saturating_add(1);
        let time = rule.base.saturating_mul(member.ejections).min(rule.max).min(FOR_EVER);
        member.until = Some(now + time);
        Some(time)
    }

    /// The names that are ejected now.
    pub(crate) fn ejected(&self) -> Vec<Arc<str>> {
        let now = Instant::now();
        let members = self.lock();
        members.iter().filter(|(_, member)| member.is_out(now)).map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn latencies(&self) -> Latencies<'_> {
        Latencies { members: self.lock(), now: Instant::now() }
    }

    fn forget(&self, members: &mut HashMap<Arc<str>, Member>, now: Instant) {
        members.retain(|_, member| now - member.heard < FORGET);
        // So many names within minutes are nobody's clients.
        if members.len() >= MAX_MEMBERS {
            members.clear();
        }
        let troubled = members.values().filter(|member| member.failures > 0).count();
        self.troubled.store(troubled, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Member>> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if members.len() >= MAX_MEMBERS {
            self.forget(&mut members, Instant::now());
        }
        members
    }
}

/// What is known of a member; if nothing is, a clean record where one is wanted.
fn member<'a>(
    members: &'a mut HashMap<Arc<str>, Member>,
    name: &str,
    now: Instant,
    create: bool,
) -> Option<&'a mut Member> {
    if create && !members.contains_key(name) {
        let clean = Member { failures: 0, ejections: 0, until: None, latency: None, heard: now };
        members.insert(name.into(), clean);
    }
    members.get_mut(name)
}

impl Member {
    fn is_out(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// A peak average: slower than ever counts whole at once, faster only bit by bit.
    fn measure(&mut self, latency: Duration, now: Instant) {
        let latency = latency.as_secs_f64();
        let average = match self.latency {
            Some((old, at)) if latency < old => {
                let keep = remains(now - at);
                old * keep + latency * (1.0 - keep)
            }
            _ => latency,
        };
        self.latency = Some((average, now));
    }
}

impl Latencies<'_> {
    /// The average answer time of a member, in seconds. It fades while nothing new is heard, so that a member that
    /// was slow once is asked again.
    pub(crate) fn of(&self, name: &str) -> f64 {
        let latency = self.members.get(name).and_then(|member| member.latency);
        latency.map_or(FLOOR, |(average, at)| average * remains(self.now - at)).max(FLOOR)
    }
}

/// The share of an old answer time that still counts after `age`.
fn remains(age: Duration) -> f64 {
    (-age.as_secs_f64() / DECAY.as_secs_f64()).exp()
}
