use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use anyproxy_core::{Host, Outcome, Refusal, RulesVersion, Target};
use bytes::Bytes;
use ipnet::IpNet;

use crate::rules::Decision;
use crate::special::{GUARDED, embedded, guarded};
use crate::{Action, Origin, Question, Rules};

/// Who may reach what: lists of rules, all of which must allow.
///
/// The default has no list and allows everything. See the [crate's page](crate) for what a policy decides.
#[derive(Debug, Default)]
pub struct Policy {
    pub(crate) lists: Box<[Rules]>,
    pub(crate) guarded: bool,
    version: OnceLock<RulesVersion>,
}

/// What a policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It may not, and this is why; [`Policy::reason`] puts it into words.
    Deny(Cause),
    /// The target is a name, and a rule on a range of addresses may decide otherwise once it is resolved: whoever
    /// resolves it must ask [`Policy::check_address`] about every address before dialling it.
    Depends,
}

/// What denied, by its place in the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// A rule of a list, both counted from 0.
    Rule {
        /// The list.
        list: usize,
        /// The rule.
        rule: usize,
    },
    /// The default of a list, where no rule matched.
    Default {
        /// The list.
        list: usize,
    },
    /// The address lies in this range, which a [guarded](Policy::guarded) policy keeps shut.
    Guard(IpNet),
    /// An [`Acl`](crate::Acl) further out left a decision to the far end by other rules, and an open can name only
    /// one version.
    OtherRules,
}

impl Policy {
    /// A policy of these lists. Their order matters for the reason given and for nothing else.
    pub fn new(lists: impl IntoIterator<Item = Rules>) -> Self {
        Self { lists: lists.into_iter().collect(), ..Self::default() }
    }

    /// The same policy, which besides denies addresses that nobody means by "everything": unspecified, multicast,
    /// broadcast and link-local ones, and those where clouds hand out credentials.
    ///
    /// Only an entry that is itself an address or a range *inside* the guarded range lifts this, for what it
    /// matches: where the first such rule of any list is one that allows. `*`, names, and wider ranges do not. For
    /// the end that dials.
    #[must_use]
    pub fn guarded(mut self) -> Self {
        self.guarded = true;
        self.version = OnceLock::new();
        self
    }

    /// The same policy under a version of the caller's counting.
    ///
    /// Without it the version is a fingerprint of the rules.
    #[must_use]
    pub fn with_version(mut self, version: RulesVersion) -> Self {
        self.version = version.into();
        self
    }

    /// The version that dials are marked with whose verdict [depends](Verdict::Depends) on addresses.
    #[must_use]
    pub fn version(&self) -> RulesVersion {
        *self.version.get_or_init(|| {
            let print = self.fingerprint();
            #[expect(clippy::cast_possible_truncation, reason = "folding 64 bits into 32 is the point")]
            let folded = (print ^ (print >> 32)) as u32;
            RulesVersion::new(folded.max(1)).expect("at least 1")
        })
    }

    /// A number that is equal for equal rules, in every process (FNV-1a of the encoded form). Not a proof: for
    /// telling whether a reload changed anything.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        self.encode().iter().fold(0xcbf2_9ce4_8422_2325, step)
    }

    /// Whether the verdict on some name may depend on its addresses, so that who resolves names needs the rules.
    #[must_use]
    pub fn has_ranges(&self) -> bool {
        self.guarded || self.lists.iter().any(Rules::has_ranges)
    }

    /// What clients need of it, its version and [encoded](Self::encode) form, so that they can judge what is left to
    /// them; `None` where nothing is.
    #[must_use]
    pub fn for_clients(&self) -> Option<(u32, Bytes)> {
        self.has_ranges().then(|| (self.version().get(), self.encode()))
    }

    /// The lists.
    #[must_use]
    pub fn lists(&self) -> &[Rules] {
        &self.lists
    }

    /// Judges a target as it is written: a name by its spelling, an address by all rules.
    ///
    /// An association's [unspecified](anyproxy_core::Target::UNSPECIFIED) one is denied only where every destination
    /// would be: each list is then looked through rule by rule.
    #[must_use]
    pub fn check(&self, question: &Question<'_>) -> Verdict {
        if question.target.is_unspecified() {
            return self.check_any(question);
        }
        let name = match question.target.host() {
            Host::Ip(address) => return self.check_address(question, *address),
            Host::Name(name) => name,
        };
        let mut depends = self.guarded;
        for (at, list) in self.lists.iter().enumerate() {
            match list.judge_name(question, name) {
                Decision { unless: Some(_), .. } => depends = true,
                Decision { action: Action::Allow, .. } => {}
                decision => return Verdict::Deny(decision.cause(at)),
            }
        }
        if depends { Verdict::Depends } else { Verdict::Allow }
    }

    /// Whether there may be any target at all that is allowed. What lies in one list and not in the other is not
    /// looked for.
    fn check_any(&self, question: &Question<'_>) -> Verdict {
        let mut decisions = self.lists.iter().map(|list| list.judge_any(question)).enumerate();
        match decisions.find(|(_, decision)| decision.action == Action::Deny) {
            Some((at, decision)) => Verdict::Deny(decision.cause(at)),
            None => Verdict::Allow,
        }
    }

    /// Judges one address that the target was resolved to, by all rules: in each list the first rule that matches
    /// the name *or* the address decides. The verdict is never [`Depends`](Verdict::Depends).
    #[must_use]
    pub fn check_address(&self, question: &Question<'_>, address: IpAddr) -> Verdict {
        let address = address.to_canonical();
        let name = match question.target.host() {
            Host::Name(name) => Some(name),
            Host::Ip(_) => None,
        };
        for (at, list) in self.lists.iter().enumerate() {
            let decision = list.judge_address(question, name, address);
            if decision.action == Action::Deny {
                return Verdict::Deny(decision.cause(at));
            }
        }
        match self.shut(question, address) {
            Some(range) => Verdict::Deny(Cause::Guard(range)),
            None => Verdict::Allow,
        }
    }

    /// The guarded range that the address, or IPv4 inside it, lies in and no entry opens.
    fn shut(&self, question: &Question<'_>, address: IpAddr) -> Option<IpNet> {
        if !self.guarded {
            return None;
        }
        let forms = [address].into_iter().chain(embedded(address).map(IpAddr::V4));
        forms.filter_map(|form| Some((form, GUARDED[guarded(form)?]))).find_map(|(form, range)| {
            let opened = self.lists.iter().any(|list| list.opens(question, form, &range));
            (!opened).then_some(range)
        })
    }

    /// Puts a cause of this policy into words. A cause of another policy names what stands at its place here, or
    /// nothing.
    #[must_use]
    pub fn reason(&self, cause: Cause) -> Reason {
        let (list, rule) = match cause {
            Cause::Rule { list, rule } => (list, Some(rule)),
            Cause::Default { list } => (list, None),
            Cause::Guard(range) => return Reason(Why::Guard(range)),
            Cause::OtherRules => return Reason(Why::OtherRules),
        };
        let Some(list) = self.lists.get(list) else { return Reason(Why::OtherRules) };
        let title = list.shared_title().clone();
        Reason(match rule {
            None => Why::Default { title },
            Some(rule) => {
                let origin = list.written().get(rule).and_then(|rule| rule.origin.clone());
                Why::Rule { title, number: rule + 1, origin }
            }
        })
    }
}

impl Decision {
    pub(crate) fn cause(self, list: usize) -> Cause {
        match self.rule {
            Some(rule) => Cause::Rule { list, rule: rule as usize },
            None => Cause::Default { list },
        }
    }
}

/// Which of the addresses of a target may be dialled under all these policies; in their order, each in the form it
/// was judged in, which is the form to dial.
///
/// For the end that dials: its own policy, and the gateway's if the open names a version of it. An address that is
/// the target itself is given as its only address. Without addresses there is nothing to deny, and none is returned.
///
/// # Errors
///
/// [`Denied`] where there are addresses and none may be dialled, with the reason of the first.
pub fn dialable<'a>(
    policies: impl IntoIterator<Item = &'a Policy> + Clone,
    question: &Question<'_>,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Result<Vec<IpAddr>, Denied> {
    let mut denied = None;
    let mut dialable = Vec::new();
    'addresses: for address in addresses {
        let address = address.to_canonical();
        for policy in policies.clone() {
            if let Verdict::Deny(cause) = policy.check_address(question, address) {
                denied.get_or_insert_with(|| Denied::new(question.target.clone(), policy.reason(cause)));
                continue 'addresses;
            }
        }
        dialable.push(address);
    }
    match denied {
        Some(denied) if dialable.is_empty() => Err(denied),
        _ => Ok(dialable),
    }
}

/// What denied, in words: for the log, not for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(Why);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    Rule { title: Arc<str>, number: usize, origin: Option<Origin> },
    Default { title: Arc<str> },
    Guard(IpNet),
    OtherRules,
}

impl Reason {
    /// Where the deciding rule was written, if a rule decided and its place is known.
    #[must_use]
    pub const fn origin(&self) -> Option<&Origin> {
        match &self.0 {
            Why::Rule { origin, .. } => origin.as_ref(),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Why::Rule { title, number, origin: None } => write!(f, "rule {number} of {title}"),
            Why::Rule { title, number, origin: Some(origin) } => {
                write!(f, "rule {number} of {title} ({origin})")
            }
            Why::Default { title } => write!(f, "the default of {title}"),
            Why::Guard(range) => write!(f, "the guard of {range}, which only an entry inside it opens"),
            Why::OtherRules => f.write_str("rules that the far end cannot be told of"),
        }
    }
}

/// The policy does not let this target be dialled.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Denied {
    target: Target,
    reason: Reason,
}

impl Denied {
    pub(crate) const fn new(target: Target, reason: Reason) -> Self {
        Self { target, reason }
    }

    /// What was asked for.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// What denied it.
    #[must_use]
    pub const fn reason(&self) -> &Reason {
        &self.reason
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is denied by {}", self.target, self.reason)
    }
}

impl Error for Denied {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(const { &Refusal::new("acl", Outcome::Denied) })
    }
}
