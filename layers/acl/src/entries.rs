use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::Question;
use crate::pattern::Ports;
use crate::rule::Condition;

/// No rule: more than the number of any.
pub(crate) const NONE: u32 = u32::MAX;

/// So many runs are tried one by one before it pays to ask which conditions can hold at all.
const FEW: usize = 8;

/// What one rule says about one host or range: at which ports, for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) rule: u32,
    pub(crate) condition: u32,
    pub(crate) ports: Ports,
}

/// All that the rules say about one host or range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    /// The least rule among them.
    pub(crate) least: u32,
    /// Its runs, from and to.
    runs: (u32, u32),
}

impl Default for Slice {
    fn default() -> Self {
        Self { least: NONE, runs: (0, 0) }
    }
}

/// What the rules of one condition say about one host or range.
#[derive(Clone, Copy, Debug)]
struct Run {
    condition: u32,
    least: u32,
    steps: (u32, u32),
}

/// The first rule for a port; steps of a run are disjoint and in order.
#[derive(Clone, Copy, Debug)]
struct Step {
    ports: Ports,
    rule: u32,
}

/// The entries of a list, arranged so that the least rule that matches is found without walking through them.
///
/// Entries of one host are grouped by condition into runs, and the ports of a run are cut into steps of which each
/// knows its first rule. A host with a few runs tries them all. One with many looks only at those conditions that
/// can hold for this user: those that name neither users nor groups, those that name the user, and those that name
/// one of the groups held. So a hundred thousand rules on one host cost the same as one, whether they differ in
/// users, groups or ports.
///
/// What stays linear: rules on the *same* host that name the *same* user in as many *different* conditions
/// (`users: [alice, u1]`, `users: [alice, u2]`, …).
#[derive(Debug, Default)]
pub(crate) struct Entries {
    runs: Vec<Run>,
    steps: Vec<Step>,
    conditions: Conditions,
}

/// The different conditions of a list, and which of them can hold for whom.
#[derive(Debug, Default)]
pub(crate) struct Conditions {
    all: Vec<Condition>,
    numbers: HashMap<Condition, u32>,
    /// Those that name neither users nor groups.
    open: Vec<u32>,
    by_user: HashMap<Arc<str>, Vec<u32>>,
    /// Those that name groups, but no users.
    by_group: HashMap<Arc<str>, Vec<u32>>,
}

// === impl Conditions ===

impl Conditions {
    /// The number of a condition; equal ones have the same.
    pub(crate) fn number(&mut self, condition: Condition) -> u32 {
        if let Some(number) = self.numbers.get(&condition) {
            return *number;
        }
        let number = u32::try_from(self.all.len()).expect("conditions are no more than rules");
        for user in &condition.users {
            self.by_user.entry(user.clone()).or_default().push(number);
        }
        if condition.users.is_empty() {
            for group in &condition.groups {
                self.by_group.entry(group.clone()).or_default().push(number);
            }
            if condition.groups.is_empty() {
                self.open.push(number);
            }
        }
        self.all.push(condition.clone());
        self.numbers.insert(condition, number);
        number
    }

    pub(crate) fn get(&self, number: u32) -> &Condition {
        &self.all[number as usize]
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Condition> {
        self.all.iter()
    }

    /// Ends the time of [`number`](Self::number): what only that needs is given back.
    fn seal(&mut self) {
        self.numbers = HashMap::new();
    }

    /// The conditions that can hold, as lists in ascending order.
    fn candidates<'a>(&'a self, question: &Question<'a>) -> impl Iterator<Item = &'a [u32]> {
        let user = question.identity.user().and_then(|user| self.by_user.get(user));
        let groups = question.identity.groups().filter_map(|group| self.by_group.get(group));
        [&self.open].into_iter().chain(user).chain(groups).map(Vec::as_slice)
    }
}

// === impl Entries ===

impl Entries {
    pub(crate) fn new(mut conditions: Conditions) -> Self {
        conditions.seal();
        Self { conditions, ..Self::default() }
    }

    pub(crate) const fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Adds all entries of one host or range.
    pub(crate) fn add(&mut self, mut entries: Vec<Entry>) -> Slice {
        entries.sort_unstable_by_key(|entry| (entry.condition, entry.rule));
        let start = self.runs.len();
        for run in entries.chunk_by(|one, other| one.condition == other.condition) {
            let steps = self.steps.len();
            self.add_steps(run);
            let steps = (index(steps), index(self.steps.len()));
            self.runs.push(Run { condition: run[0].condition, least: run[0].rule, steps });
        }
        let least = entries.iter().map(|entry| entry.rule).min().unwrap_or(NONE);
        Slice { least, runs: (index(start), index(self.runs.len())) }
    }

    /// Sweeps over the ports where entries begin and end; the least of those open is the one that counts.
    fn add_steps(&mut self, entries: &[Entry]) {
        if let [only] = entries {
            self.steps.push(Step { ports: only.ports, rule: only.rule });
            return;
        }
        let mut edges: Vec<(u32, bool, usize)> = Vec::with_capacity(2 * entries.len());
        for (at, entry) in entries.iter().enumerate() {
            edges.push((entry.ports.from.into(), true, at));
            edges.push((u32::from(entry.ports.to) + 1, false, at));
        }
        edges.sort_unstable();
        let first_step = self.steps.len();
        let mut open: BTreeSet<usize> = BTreeSet::new();
        for (edge, next) in edges.iter().zip(edges.iter().skip(1).map(|edge| edge.0).chain([0])) {
            let (port, opens, at) = *edge;
            if opens {
                open.insert(at)
            } else {
                open.remove(&at)
            };
            // Entries of a run are in the order of their rules.
            if let Some(least) = open.first()
                && port < next
            {
                self.push_step(first_step, port, next - 1, entries[*least].rule);
            }
        }
    }

    fn push_step(&mut self, first_step: usize, from: u32, to: u32, rule: u32) {
        let port = |port| u16::try_from(port).expect("an entry ends at the last port at most");
        let (from, to) = (port(from), port(to));
        match self.steps[first_step..].last_mut() {
            Some(last) if last.rule == rule && last.ports.to.checked_add(1) == Some(from) => {
                last.ports.to = to
            }
            _ => self.steps.push(Step { ports: Ports { from, to }, rule }),
        }
    }

    /// The least rule of a slice that matches the question and is less than `best`; else `best`.
    pub(crate) fn least(&self, slice: Slice, question: &Question<'_>, mut best: u32) -> u32 {
        if slice.least >= best {
            return best;
        }
        let runs = &self.runs[slice.runs.0 as usize..slice.runs.1 as usize];
        if runs.len() <= FEW {
            for run in runs {
                best = self.least_of_run(run, question, best);
            }
            return best;
        }
        for candidates in self.conditions.candidates(question) {
            // Both are in the order of conditions: the shorter is walked, the longer searched.
            if candidates.len() < runs.len() {
                for condition in candidates {
                    if let Ok(at) = runs.binary_search_by_key(condition, |run| run.condition) {
                        best = self.least_of_run(&runs[at], question, best);
                    }
                }
            } else {
                for run in runs.iter().filter(|run| candidates.binary_search(&run.condition).is_ok()) {
                    best = self.least_of_run(run, question, best);
                }
            }
        }
        best
    }

    fn least_of_run(&self, run: &Run, question: &Question<'_>, best: u32) -> u32 {
        if run.least >= best {
            return best;
        }
        let port = question.target.port();
        let steps = &self.steps[run.steps.0 as usize..run.steps.1 as usize];
        let at = steps.partition_point(|step| step.ports.to < port);
        match steps.get(at) {
            Some(step)
                if step.ports.from <= port
                    && step.rule < best
                    && self.conditions.get(run.condition).holds(question) =>
            {
                step.rule
            }
            _ => best,
        }
    }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).expect("a list of 2^32 patterns fits no memory")
}
