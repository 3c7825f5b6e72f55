//! The handles, one set for each front, taken once.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use anyproxy_core::{Ending, Front, Network, Outcome};
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

use crate::refusals::Refusals;

/// Every outcome a dial or a login can have, as labels; the last is for those that later versions add.
const OUTCOMES: [&str; 17] = [
    "ok",
    "login_required",
    "locked_out",
    "denied",
    "limited",
    "overloaded",
    "no_client",
    "unresolved",
    "network_unreachable",
    "host_unreachable",
    "refused",
    "tunnel_lost",
    "timed_out",
    "unsupported_command",
    "invalid_target",
    "internal",
    "cancelled",
];

/// Tells the recorder what each metric means. Called once, after the recorder is installed.
pub fn describe() {
    describe_counter!("anyproxy_dials_total", "Dials by front, network and outcome");
    describe_gauge!("anyproxy_streams_open", "Streams that live now");
    describe_counter!("anyproxy_streams_ended_total", "Streams that ended, by how");
    describe_histogram!("anyproxy_dial_seconds", Unit::Seconds, "Time a dial took, by phase");
    describe_counter!(
        "anyproxy_bytes_total",
        Unit::Bytes,
        "Bytes carried, up towards targets, down towards users"
    );
    describe_counter!("anyproxy_logins_total", "Logins by front and outcome");
    describe_counter!(
        "anyproxy_user_dials_total",
        "Dials by user and verdict, of as many users as are told apart"
    );
    describe_gauge!("anyproxy_user_streams_open", "Streams that live now, by user");
    describe_counter!("anyproxy_user_bytes_total", Unit::Bytes, "Bytes carried, by user and direction");
    describe_counter!("anyproxy_refusals_total", "Dials and logins that a layer refused, by outcome");
}

/// All handles.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// A handful of fronts at most: a program's fronts are part of the program.
    fronts: RwLock<Vec<Arc<FrontFigures>>>,
    /// Taken with the first front's.
    phases: OnceLock<Arc<Phases>>,
    refusals: Arc<Refusals>,
}

#[derive(Debug)]
pub(crate) struct Phases {
    pub(crate) queue: Histogram,
    pub(crate) open: Histogram,
    pub(crate) connect: Histogram,
    pub(crate) total: Histogram,
    pub(crate) first_byte: Histogram,
}

impl Figures {
    pub(crate) fn of(&self, front: Front) -> Arc<FrontFigures> {
        let known =
            |fronts: &[Arc<FrontFigures>]| fronts.iter().find(|figures| figures.front == front).cloned();
        if let Some(figures) = known(&self.fronts.read().unwrap_or_else(PoisonError::into_inner)) {
            return figures;
        }
        let mut fronts = self.fronts.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(figures) = known(&fronts) {
            return figures;
        }
        let phases = self.phases.get_or_init(Arc::default).clone();
        let figures = Arc::new(FrontFigures::new(front, phases, self.refusals.clone()));
        fronts.push(figures.clone());
        figures
    }
}

impl Default for Phases {
    fn default() -> Self {
        let phase = |phase: &'static str| histogram!("anyproxy_dial_seconds", "phase" => phase);
        Self {
            queue: phase("queue"),
            open: phase("open"),
            connect: phase("connect"),
            total: phase("total"),
            first_byte: phase("first_byte"),
        }
    }
}

/// The handles of one front.
#[derive(Debug)]
pub(crate) struct FrontFigures {
    front: Front,
    tcp: [Counter; OUTCOMES.len()],
    udp: [Counter; OUTCOMES.len()],
    logins: [Counter; OUTCOMES.len()],
    whole: Counter,
    abandoned: Counter,
    reset: Counter,
    pub(crate) open: Gauge,
    pub(crate) up: Counter,
    pub(crate) down: Counter,
    pub(crate) phases: Arc<Phases>,
    pub(crate) refusals: Arc<Refusals>,
}

impl FrontFigures {
    fn new(front: Front, phases: Arc<Phases>, refusals: Arc<Refusals>) -> Self {
        let name = front.as_str();
        let dials = |network: &'static str| {
            OUTCOMES.map(|outcome| {
                counter!("anyproxy_dials_total", "front" => name, "network" => network, "outcome" => outcome)
            })
        };
        let ended =
            |end: Ending| counter!("anyproxy_streams_ended_total", "front" => name, "end" => end.as_str());
        let bytes = |direction: &'static str| counter!("anyproxy_bytes_total", "front" => name, "direction" => direction);
        Self {
            front,
            tcp: dials("tcp"),
            udp: dials("udp"),
            logins: OUTCOMES
                .map(|outcome| counter!("anyproxy_logins_total", "front" => name, "outcome" => outcome)),
            whole: ended(Ending::Whole),
            abandoned: ended(Ending::Abandoned),
            reset: ended(Ending::Reset),
            open: gauge!("anyproxy_streams_open", "front" => name),
            up: bytes("up"),
            down: bytes("down"),
            phases,
            refusals,
        }
    }

    pub(crate) fn dials(&self, network: Network, verdict: Verdict) -> &Counter {
        let counters = if network.is_udp() { &self.udp } else { &self.tcp };
        &counters[verdict.index()]
    }

    pub(crate) fn logins(&self, verdict: Verdict) -> &Counter {
        &self.logins[verdict.index()]
    }

    pub(crate) const fn ended(&self, ending: Ending) -> &Counter {
        match ending {
            Ending::Whole => &self.whole,
            Ending::Reset => &self.reset,
            _ => &self.abandoned,
        }
    }
}

/// What became of a dial or a login.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict {
    Ok,
    Refused(Outcome),
    Cancelled,
}

impl Verdict {
    fn index(self) -> usize {
        let label = match self {
            Self::Ok => "ok",
            Self::Refused(outcome) => outcome.as_str(),
            Self::Cancelled => "cancelled",
        };
        OUTCOMES.iter().position(|known| *known == label).unwrap_or(OUTCOMES.len() - 2)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_outcome_has_a_counter_of_its_own() {
        let retry_after = Duration::ZERO;
        let all = [
            Outcome::LoginRequired,
            Outcome::LockedOut { retry_after },
            Outcome::Denied,
            Outcome::Limited { retry_after },
            Outcome::Overloaded { retry_after },
            Outcome::NoClient,
            Outcome::Unresolved,
            Outcome::NetworkUnreachable,
            Outcome::HostUnreachable,
            Outcome::Refused,
            Outcome::TunnelLost,
            Outcome::TimedOut,
            Outcome::UnsupportedCommand,
            Outcome::InvalidTarget,
            Outcome::Internal,
        ];
        for outcome in all {
            assert_eq!(OUTCOMES[Verdict::Refused(outcome).index()], outcome.as_str());
        }
    }
}
