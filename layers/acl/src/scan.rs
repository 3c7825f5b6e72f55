//! A policy read as it is written, rule by rule: too slow to use, too plain to be wrong. What the compiled lists are
//! compared with, in tests and by the fuzzer.

use std::net::IpAddr;

use anyproxy_core::{Host, HostName};
use ipnet::IpNet;

use crate::pattern::Hosts;
use crate::rules::Written;
use crate::special::{GUARDED, compatible, embedded};
use crate::{Action, Cause, Policy, Question, Rules, Verdict};

/// What [`Policy::check`] must say.
pub(crate) fn check(policy: &Policy, question: &Question<'_>) -> Verdict {
    let name = match question.target.host() {
        Host::Ip(address) => return check_address(policy, question, *address),
        Host::Name(name) => name,
    };
    let mut depends = policy.guarded;
    for (at, list) in policy.lists.iter().enumerate() {
        let rule = first(list, question, |hosts| hosts.has_name(name));
        let action = action(list, rule);
        let earlier = &list.written()[..rule.unwrap_or(list.len())];
        let range = |hosts: &Hosts| matches!(hosts, Hosts::Range(_));
        if earlier.iter().any(|rule| rule.action != action && matches(list, rule, question, range)) {
            depends = true;
        } else if action == Action::Deny {
            return denied(at, rule);
        }
    }
    if depends { Verdict::Depends } else { Verdict::Allow }
}

/// What [`Policy::check_address`] must say.
pub(crate) fn check_address(policy: &Policy, question: &Question<'_>, address: IpAddr) -> Verdict {
    let name = match question.target.host() {
        Host::Name(name) => Some(name),
        Host::Ip(_) => None,
    };
    for (at, list) in policy.lists.iter().enumerate() {
        for inner in embedded(address).map(IpAddr::V4) {
            let rule = first(list, question, |hosts| named(hosts, name) || hosts.has_address(inner));
            let by_range = rule.is_some_and(|rule| {
                matches(list, &list.written()[rule], question, |hosts| hosts.has_address(inner))
            });
            if by_range && action(list, rule) == Action::Deny {
                return denied(at, rule);
            }
        }
        let compatible = compatible(address).map(IpAddr::V4);
        let holds = |hosts: &Hosts| {
            named(hosts, name)
                || hosts.has_address(address)
                || compatible.is_some_and(|inner| hosts.has_address(inner))
        };
        let rule = first(list, question, holds);
        if action(list, rule) == Action::Deny {
            return denied(at, rule);
        }
    }
    let mut forms = [address].into_iter().chain(embedded(address).map(IpAddr::V4));
    let shut = forms.find_map(|form| {
        let bounds = GUARDED.into_iter().find(|range| policy.guarded && range.contains(&form))?;
        let opened = policy.lists.iter().any(|list| opens(list, question, form, &bounds));
        (!opened).then_some(bounds)
    });
    shut.map_or(Verdict::Allow, |range| Verdict::Deny(Cause::Guard(range)))
}

fn opens(list: &Rules, question: &Question<'_>, form: IpAddr, bounds: &IpNet) -> bool {
    let inside = |hosts: &Hosts| {
        hosts.has_address(form) && matches!(hosts, Hosts::Range(range) if bounds.contains(range))
    };
    first(list, question, inside).is_some_and(|rule| list.written()[rule].action == Action::Allow)
}

fn named(hosts: &Hosts, name: Option<&HostName>) -> bool {
    match name {
        Some(name) => hosts.has_name(name),
        None => matches!(hosts, Hosts::Any),
    }
}

fn first(list: &Rules, question: &Question<'_>, hosts: impl Fn(&Hosts) -> bool) -> Option<usize> {
    list.written().iter().position(|rule| matches(list, rule, question, &hosts))
}

fn matches(list: &Rules, rule: &Written, question: &Question<'_>, hosts: impl Fn(&Hosts) -> bool) -> bool {
    let port = question.target.port();
    list.condition(rule).holds(question)
        && rule.patterns.iter().any(|pattern| pattern.ports.contains(port) && hosts(&pattern.hosts))
}

fn action(list: &Rules, rule: Option<usize>) -> Action {
    rule.map_or_else(|| list.default_action(), |rule| list.written()[rule].action)
}

fn denied(list: usize, rule: Option<usize>) -> Verdict {
    Verdict::Deny(match rule {
        Some(rule) => Cause::Rule { list, rule },
        None => Cause::Default { list },
    })
}
