use std::fmt;

use anyproxy_core::Host;

use crate::rule::Condition;
use crate::rules::{Decision, Written};
use crate::{Action, Cause, Pattern, Policy, Question, Rules, Verdict};

/// So many patterns of a rule are written out.
const PATTERNS_SHOWN: usize = 4;

/// Why a policy says what it says, list by list, in words.
///
/// ```
/// use anyproxy_acl::{Action, Pattern, Policy, Question, Rule, Rules};
/// use anyproxy_core::{Association, Identity, Network, Target};
///
/// let rules = [Rule::deny([Pattern::parse("*.internal")?]), Rule::allow([Pattern::parse("*")?])];
/// let policy = Policy::new([Rules::new("gateway.access", Action::Deny, rules)]);
/// let question = Question {
///     target: &Target::parse("db.internal:22")?,
///     network: Network::Tcp,
///     identity: &Identity::ANONYMOUS,
///     front: "http",
/// };
/// assert_eq!(
///     policy.explain(&question).to_string(),
///     "tcp://db.internal:22 for nobody in particular by http: denied\n\
///      - gateway.access: rule 1 denies it (deny *.internal)",
/// );
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Explanation {
    verdict: Verdict,
    question: String,
    steps: Vec<String>,
}

impl Explanation {
    /// The verdict.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// One sentence for each list that was asked.
    #[must_use]
    pub fn steps(&self) -> &[String] {
        &self.steps
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Allow => "allowed",
            Verdict::Deny(_) => "denied",
            Verdict::Depends => "allowed, unless it resolves to an address that is not",
        };
        write!(f, "{}: {verdict}", self.question)?;
        for step in &self.steps {
            write!(f, "\n- {step}")?;
        }
        Ok(())
    }
}

impl Policy {
    /// Explains the verdict of [`check`](Self::check). Slow: for people.
    #[must_use]
    pub fn explain(&self, question: &Question<'_>) -> Explanation {
        let verdict = self.check(question);
        let mut steps = Vec::new();
        for (at, list) in self.lists().iter().enumerate() {
            let decision = match question.target.host() {
                Host::Name(name) => list.judge_name(question, name),
                Host::Ip(address) => list.judge_address(question, None, *address),
            };
            steps.push(step(list, decision));
            let denies = matches!(verdict, Verdict::Deny(Cause::Rule { list, .. } | Cause::Default { list }) if list == at);
            if denies {
                break;
            }
        }
        match verdict {
            Verdict::Deny(Cause::Guard(range)) => {
                steps.push(format!("{range} is shut, and no entry inside it opens it"));
            }
            Verdict::Depends if self.guarded => steps.push(
                "addresses of this link, of many hosts at once, and where clouds hand out credentials are shut, \
                 unless an entry inside their range opens them"
                    .to_owned(),
            ),
            _ if steps.is_empty() => steps.push("no list says anything".to_owned()),
            _ => {}
        }
        Explanation { verdict, question: asked(question), steps }
    }
}

fn asked(question: &Question<'_>) -> String {
    let user = question.identity.user().unwrap_or("nobody in particular");
    // A user's name is the user's text: escaped, it stays on its line.
    let (user, front) = (user.escape_debug(), question.front.escape_debug());
    format!("{}://{} for {user} by {front}", question.network, question.target)
}

fn step(list: &Rules, decision: Decision) -> String {
    let (title, verb) = (list.title(), verb(decision.action));
    let mut text = match decision.rule {
        Some(rule) => format!("{title}: {} {verb} it {}", place(list, rule), content(list, rule)),
        None => format!("{title}: no rule matches, and the default {verb} it"),
    };
    if let Some(rule) = decision.unless {
        let place = place(list, rule);
        text += &format!(", unless it resolves to an address of {place} {}", content(list, rule));
    }
    text
}

const fn verb(action: Action) -> &'static str {
    match action {
        Action::Allow => "allows",
        Action::Deny => "denies",
    }
}

/// `rule 3 (gateway.yaml:12:7)`.
fn place(list: &Rules, rule: u32) -> String {
    match &list.written()[rule as usize].origin {
        Some(origin) => format!("rule {} at {origin}", rule + 1),
        None => format!("rule {}", rule + 1),
    }
}

/// `(deny *.internal, for users alice)`.
fn content(list: &Rules, rule: u32) -> String {
    let rule = &list.written()[rule as usize];
    let Written { action, patterns, .. } = rule;
    let mut shown: Vec<String> = patterns.iter().take(PATTERNS_SHOWN).map(Pattern::to_string).collect();
    if let Some(more @ 1..) = patterns.len().checked_sub(PATTERNS_SHOWN) {
        shown.push(format!("{more} more"));
    }
    let Condition { users, groups, fronts, networks } = list.condition(rule);
    for (what, words) in [("users", users), ("groups", groups), ("fronts", fronts)] {
        if !words.is_empty() {
            shown.push(format!("for {what} {}", words.join(" or ").escape_debug()));
        }
    }
    if *networks != crate::Networks::ALL {
        shown.push(format!("over {networks}"));
    }
    format!("({action} {})", shown.join(", "))
}
