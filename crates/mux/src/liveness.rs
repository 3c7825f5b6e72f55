use std::time::{Duration, Instant};

use crate::{Config, PeerError};

/// A timer that fires this much too late tells of a process that was stopped, not of a silent peer.
const PAUSE: Duration = Duration::from_secs(1);

/// Pings at the start, each sent when the one before is answered. One alone may meet a peer that has just been started and
/// is at something else, and the least of all round trips decides for the life of the tunnel how large windows are.
pub(crate) const FIRST_PINGS: u32 = 8;

/// Whether the peer is there, and how far away it is.
///
/// Some pings at the start, then one each interval; the peer is dead when it has neither answered for the timeout nor
/// given a sign of life within it, or when it has not answered for three times the timeout, whatever else it does. Signs
/// of life are frames, and that a full carrier moves: on a slow line a ping is behind all that the carrier holds.
#[derive(Debug)]
pub(crate) struct Liveness {
    interval: Duration,
    timeout: Duration,
    next_ping: Instant,
    asked: Option<Asked>,
    number: u64,
    /// The latest sign of life.
    alive: Instant,
    /// The number of the last ping of the peer. Older ones need no answer any more: a peer that pings and does not
    /// read costs one number.
    answer: Option<u64>,
    smoothed: Option<Duration>,
    least: Option<Duration>,
}

/// A ping without an answer.
#[derive(Debug)]
struct Asked {
    /// When it was due; it may wait for the carrier from then on.
    since: Instant,
    /// When it was handed to the carrier.
    sent: Option<Instant>,
    /// Whether a pause of this process was forgiven already.
    forgiven: bool,
}

impl Liveness {
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        Self {
            interval: config.ping_interval,
            timeout: config.ping_timeout,
            next_ping: now,
            asked: None,
            number: 0,
            alive: now,
            answer: None,
            smoothed: None,
            least: None,
        }
    }

    /// Something came from the peer, or moves towards it.
    pub(crate) fn alive(&mut self, now: Instant) {
        self.alive = now;
    }

    pub(crate) fn handle_ping(&mut self, number: u64) {
        self.answer = Some(number);
    }

    /// The time the answer took; `None` if nobody asked.
    pub(crate) fn handle_pong(&mut self, now: Instant, number: u64) -> Option<Duration> {
        let sent = self.asked.as_ref().filter(|_| number == self.number)?.sent?;
        self.asked = None;
        let rtt = now.saturating_duration_since(sent);
        if self.number < FIRST_PINGS.into() {
            self.next_ping = now;
        }
        // RFC 6298 section 2: an eighth of each new value.
        self.smoothed = Some(self.smoothed.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
        self.least = Some(self.least.map_or(rtt, |least| least.min(rtt)));
        Some(rtt)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<(), PeerError> {
        if let Some(deadline) = self.answer_deadline().filter(|deadline| now >= *deadline) {
            match &mut self.asked {
                Some(asked) if !asked.forgiven && now - deadline > PAUSE => {
                    // The answer may lie unread in the carrier since before the pause.
                    asked.since = now;
                    asked.forgiven = true;
                }
                _ => return Err(PeerError::PingTimeout(self.timeout)),
            }
        }
        if self.asked.is_none() && now >= self.next_ping {
            self.number += 1;
            self.asked = Some(Asked { since: now, sent: None, forgiven: false });
            self.next_ping = now + self.interval;
        }
        Ok(())
    }

    pub(crate) fn poll_pong(&mut self) -> Option<u64> {
        self.answer.take()
    }

    pub(crate) fn poll_ping(&mut self, now: Instant) -> Option<u64> {
        let asked = self.asked.as_mut().filter(|asked| asked.sent.is_none())?;
        asked.sent = Some(now);
        Some(self.number)
    }

    pub(crate) fn has_output(&self) -> bool {
        self.answer.is_some() || self.asked.as_ref().is_some_and(|asked| asked.sent.is_none())
    }

    pub(crate) fn poll_timeout(&self) -> Instant {
        self.answer_deadline().unwrap_or(self.next_ping)
    }

    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// The shortest round trip seen: that of the line, without what waits in it.
    pub(crate) fn least(&self) -> Option<Duration> {
        self.least
    }

    fn answer_deadline(&self) -> Option<Instant> {
        let since = self.asked.as_ref()?.since;
        Some((since.max(self.alive) + self.timeout).min(since + 3 * self.timeout))
    }
}
