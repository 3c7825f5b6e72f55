use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use anyproxy_core::HostName;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::entries::{Conditions, Entries, Entry, NONE, Slice};
use crate::names::Names;
use crate::pattern::Hosts;
use crate::ranges::Ranges;
use crate::rule::Condition;
use crate::special::{compatible, embedded};
use crate::{Action, Networks, Origin, Pattern, Question, Rule};

/// An ordered list of rules: the first that matches decides, and where none does, the default.
///
/// Compiled when built: names into a suffix trie, ranges into a prefix trie, conditions so that only those which can
/// hold are looked at. A decision costs the same whether there are a hundred rules or a hundred thousand.
///
/// A [`Policy`](crate::Policy) is made of lists, all of which must allow.
pub struct Rules {
    title: Arc<str>,
    default: Action,
    rules: Box<[Written]>,
    entries: Entries,
    any: Slice,
    names: Names,
    four: Ranges<u32>,
    six: Ranges<u128>,
    /// All ranges of rules that deny, whatever they hold, and of those that allow.
    denied_ranges: Slice,
    allowed_ranges: Slice,
}

/// A rule as it is kept.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) action: Action,
    pub(crate) patterns: Box<[Pattern]>,
    pub(crate) condition: u32,
    pub(crate) origin: Option<Origin>,
}

/// What a list says about a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) action: Action,
    /// The rule that decides; `None` for the default.
    pub(crate) rule: Option<u32>,
    /// An earlier rule on a range that would decide otherwise, if the name turned out to be in it.
    pub(crate) unless: Option<u32>,
}

impl Rules {
    /// Compiles a list. The title says in logs and explanations which list it is: the key it has in the file.
    pub fn new(title: impl Into<Arc<str>>, default: Action, rules: impl IntoIterator<Item = Rule>) -> Self {
        let mut conditions = Conditions::default();
        let rules = rules.into_iter().map(|rule| Written::new(rule, &mut conditions)).collect();
        Self::compile(title.into(), default, rules, conditions)
    }

    /// A list of targets that are refused; everything else passes.
    pub fn forbidden(title: impl Into<Arc<str>>, targets: impl IntoIterator<Item = Listed>) -> Self {
        Self::new(title, Action::Allow, targets.into_iter().map(|target| target.rule(Action::Deny)))
    }

    /// A list of targets that pass; everything else is refused.
    pub fn allowed(title: impl Into<Arc<str>>, targets: impl IntoIterator<Item = Listed>) -> Self {
        Self::new(title, Action::Deny, targets.into_iter().map(|target| target.rule(Action::Allow)))
    }

    /// A list that refuses all networks but these.
    pub fn networks(title: impl Into<Arc<str>>, networks: Networks) -> Self {
        let others = networks.others();
        Self::new(title, Action::Allow, others.map(|others| Rule::deny([Pattern::ANY]).networks(others)))
    }

    pub(crate) fn compile(
        title: Arc<str>,
        default: Action,
        rules: Box<[Written]>,
        conditions: Conditions,
    ) -> Self {
        let sorted = Sorted::new(&rules);
        let mut entries = Entries::new(conditions);
        let any = entries.add(sorted.any);
        let denied_ranges = entries.add(sorted.denied_ranges);
        let allowed_ranges = entries.add(sorted.allowed_ranges);
        let mut names = Names::default();
        for (name, exact) in sorted.exact {
            names.set_exact(name, entries.add(exact));
        }
        for (name, below) in sorted.below {
            names.set_below(name, entries.add(below));
        }
        let mut four: Vec<_> = sorted.four.into_iter().collect();
        four.sort_unstable_by_key(|(range, _)| *range);
        let four = Ranges::new(four.into_iter().map(|(range, found)| {
            (range.network().to_bits(), range.broadcast().to_bits(), entries.add(found))
        }));
        let mut six: Vec<_> = sorted.six.into_iter().collect();
        six.sort_unstable_by_key(|(range, _)| *range);
        let six = Ranges::new(six.into_iter().map(|(range, found)| {
            (range.network().to_bits(), range.broadcast().to_bits(), entries.add(found))
        }));
        Self { title, default, rules, entries, any, names, four, six, denied_ranges, allowed_ranges }
    }

    /// Its title.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// How many rules it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether only the default decides.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a verdict on a name may have to wait for its addresses.
    pub(crate) const fn has_ranges(&self) -> bool {
        self.denied_ranges.least != NONE || self.allowed_ranges.least != NONE
    }

    pub(crate) const fn shared_title(&self) -> &Arc<str> {
        &self.title
    }

    pub(crate) const fn default_action(&self) -> Action {
        self.default
    }

    pub(crate) const fn written(&self) -> &[Written] {
        &self.rules
    }

    pub(crate) const fn conditions(&self) -> &Conditions {
        self.entries.conditions()
    }

    pub(crate) fn condition(&self, rule: &Written) -> &Condition {
        self.conditions().get(rule.condition)
    }

    /// What the list says of every target there is: denied only if all are. Rules are looked at one by one.
    pub(crate) fn judge_any(&self, question: &Question<'_>) -> Decision {
        let all = |rule: &Written| rule.patterns.contains(&Pattern::ANY);
        let decides = |rule: &Written| match rule.action {
            Action::Allow => !rule.patterns.is_empty(),
            Action::Deny => all(rule),
        };
        let holds = |rule: &Written| decides(rule) && self.condition(rule).holds(question);
        self.decision(
            (0..NONE).zip(&self.rules).find(|(_, rule)| holds(rule)).map_or(NONE, |(number, _)| number),
        )
    }

    /// What the list says of a name whose addresses are not known.
    pub(crate) fn judge_name(&self, question: &Question<'_>, name: &HostName) -> Decision {
        let rule = self.least_by_name(question, Some(name));
        let decision = self.decision(rule);
        let contrary = match decision.action {
            Action::Allow => self.denied_ranges,
            Action::Deny => self.allowed_ranges,
        };
        let unless = self.entries.least(contrary, question, rule);
        Decision { unless: (unless < rule).then_some(unless), ..decision }
    }

    /// What the list says of an address, and of the name it was found by, if it was.
    pub(crate) fn judge_address(
        &self,
        question: &Question<'_>,
        name: Option<&HostName>,
        address: IpAddr,
    ) -> Decision {
        let by_name = self.least_by_name(question, name);
        for inner in embedded(address) {
            // A rule that matches by both counts as one on the range.
            let bound = by_name.saturating_add(1);
            let rule = self.least_by_address(question, inner.into(), bound);
            if rule < bound && self.rules[rule as usize].action == Action::Deny {
                return self.decision(rule);
            }
        }
        let mut rule = self.least_by_address(question, address, by_name);
        if let Some(inner) = compatible(address) {
            rule = self.least_by_address(question, inner.into(), rule);
        }
        self.decision(rule)
    }

    /// Whether the first rule that matches the address by a range inside `bounds` allows it.
    pub(crate) fn opens(&self, question: &Question<'_>, address: IpAddr, bounds: &IpNet) -> bool {
        let rule = match (address, bounds) {
            (IpAddr::V4(address), IpNet::V4(bounds)) => {
                let (first, last) = (bounds.network().to_bits(), bounds.broadcast().to_bits());
                let inside = self.four.around(address.to_bits());
                let inside = inside.filter(|node| first <= node.first && node.last <= last);
                inside.fold(NONE, |best, node| self.entries.least(node.entries, question, best))
            }
            (IpAddr::V6(address), IpNet::V6(bounds)) => {
                let (first, last) = (bounds.network().to_bits(), bounds.broadcast().to_bits());
                let inside = self.six.around(address.to_bits());
                let inside = inside.filter(|node| first <= node.first && node.last <= last);
                inside.fold(NONE, |best, node| self.entries.least(node.entries, question, best))
            }
            _ => NONE,
        };
        self.rules.get(rule as usize).is_some_and(|rule| rule.action == Action::Allow)
    }

    /// The least rule that matches whatever the address is.
    fn least_by_name(&self, question: &Question<'_>, name: Option<&HostName>) -> u32 {
        let best = self.entries.least(self.any, question, NONE);
        let slices = name.into_iter().flat_map(|name| self.names.matching(name));
        slices.fold(best, |best, slice| self.entries.least(slice, question, best))
    }

    /// The least rule below `best` that has a range with this address in it; else `best`.
    fn least_by_address(&self, question: &Question<'_>, address: IpAddr, mut best: u32) -> u32 {
        match address {
            IpAddr::V4(address) => {
                for node in self.four.around(address.to_bits()) {
                    if node.least >= best {
                        break;
                    }
                    best = self.entries.least(node.entries, question, best);
                }
            }
            IpAddr::V6(address) => {
                for node in self.six.around(address.to_bits()) {
                    if node.least >= best {
                        break;
                    }
                    best = self.entries.least(node.entries, question, best);
                }
            }
        }
        best
    }

    fn decision(&self, rule: u32) -> Decision {
        match self.rules.get(rule as usize) {
            Some(written) => Decision { action: written.action, rule: Some(rule), unless: None },
            None => Decision { action: self.default, rule: None, unless: None },
        }
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("title", &self.title)
            .field("default", &self.default)
            .field("len", &self.rules.len())
            .finish_non_exhaustive()
    }
}

impl Written {
    pub(crate) fn new(rule: Rule, conditions: &mut Conditions) -> Self {
        let Rule { action, patterns, condition, origin } = rule;
        Self { action, patterns, condition: conditions.number(condition), origin }
    }
}

/// What the rules say, by what they say it of.
#[derive(Default)]
struct Sorted<'a> {
    any: Vec<Entry>,
    exact: HashMap<&'a HostName, Vec<Entry>>,
    below: HashMap<&'a HostName, Vec<Entry>>,
    four: HashMap<Ipv4Net, Vec<Entry>>,
    six: HashMap<Ipv6Net, Vec<Entry>>,
    denied_ranges: Vec<Entry>,
    allowed_ranges: Vec<Entry>,
}

impl<'a> Sorted<'a> {
    fn new(rules: &'a [Written]) -> Self {
        let mut sorted = Self::default();
        for (number, rule) in (0..NONE).zip(rules) {
            for pattern in &rule.patterns {
                sorted.add(
                    rule.action,
                    pattern,
                    Entry { rule: number, condition: rule.condition, ports: pattern.ports },
                );
            }
        }
        sorted
    }

    fn add(&mut self, action: Action, pattern: &'a Pattern, entry: Entry) {
        match &pattern.hosts {
            Hosts::Any => self.any.push(entry),
            Hosts::Name(name) => self.exact.entry(name).or_default().push(entry),
            Hosts::Below(name) => self.below.entry(name).or_default().push(entry),
            Hosts::Range(range) => {
                match range {
                    IpNet::V4(range) => self.four.entry(*range).or_default().push(entry),
                    IpNet::V6(range) => self.six.entry(*range).or_default().push(entry),
                }
                match action {
                    Action::Allow => self.allowed_ranges.push(entry),
                    Action::Deny => self.denied_ranges.push(entry),
                }
            }
        }
    }
}

/// One target of a list, and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The target.
    pub pattern: Pattern,
    /// Where it was written, if that is known.
    pub origin: Option<Origin>,
}

impl Listed {
    fn rule(self, action: Action) -> Rule {
        Rule::new(action, [self.pattern]).at(self.origin)
    }
}

impl From<Pattern> for Listed {
    fn from(pattern: Pattern) -> Self {
        Self { pattern, origin: None }
    }
}

/// The short form of a policy: what is forbidden, what is allowed, and over which networks.
///
/// Forbidden wins. Where nothing is allowed expressly, everything is that is not forbidden.
///
/// ```
/// use anyproxy_acl::{Lists, Pattern, Policy};
///
/// let lists = Lists {
///     forbidden: vec![Pattern::parse("169.254.0.0/16")?.into(), Pattern::parse("*.internal:22")?.into()],
///     ..Lists::default()
/// };
/// let policy = Policy::new(lists.into_rules("client")).guarded();
/// # Ok::<_, anyproxy_acl::InvalidPattern>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// Targets that are refused, whatever else says.
    pub forbidden: Vec<Listed>,
    /// The only targets that pass; empty: all.
    pub allowed: Vec<Listed>,
    /// The only networks that pass; `None`: all.
    pub networks: Option<Networks>,
}

impl Lists {
    /// The lists as lists of rules, titled `section.protocols`, `section.forbidden_hosts` and
    /// `section.allowed_hosts`; those that say nothing are left out.
    pub fn into_rules(self, section: &str) -> impl Iterator<Item = Rules> {
        let title = |key: &str| format!("{section}.{key}");
        let networks = self.networks.filter(|networks| *networks != Networks::ALL);
        let networks = networks.map(|networks| Rules::networks(title("protocols"), networks));
        let forbidden =
            (!self.forbidden.is_empty()).then(|| Rules::forbidden(title("forbidden_hosts"), self.forbidden));
        let allowed =
            (!self.allowed.is_empty()).then(|| Rules::allowed(title("allowed_hosts"), self.allowed));
        networks.into_iter().chain(forbidden).chain(allowed)
    }
}
