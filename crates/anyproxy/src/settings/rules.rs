//! Who may reach what, with the place of every rule.

use std::sync::Arc;

use anyproxy_acl::{Action, Listed, Lists, Networks, Origin, Pattern, Rule, Rules};
use anyproxy_config::{self as config, HostPattern, Place, Spanned};
use anyproxy_core::Front;

use super::{Source, accounts};
use crate::failure::Failure;

/// The lists of a section: `forbidden_hosts`, `allowed_hosts`, `protocols`.
pub(super) fn lists(
    source: &Source,
    forbidden: Option<&Vec<Spanned<HostPattern>>>,
    allowed: Option<&Vec<Spanned<HostPattern>>>,
    protocols: Option<&Vec<config::Protocol>>,
) -> Result<Lists, Failure> {
    let listed = |patterns: Option<&Vec<Spanned<HostPattern>>>| {
        let listed = |pattern: &Spanned<HostPattern>| Listed {
            pattern: pattern.value.0.clone(),
            origin: origin(source, pattern.defined),
        };
        patterns.into_iter().flatten().map(listed).collect()
    };
    Ok(Lists {
        forbidden: listed(forbidden),
        allowed: listed(allowed),
        networks: protocols.map(|protocols| networks(source, protocols)).transpose()?,
    })
}

/// What a user speaks, and with that the front of their dials; those of `proxy.mixed` speak one of the first two.
const FRONTS: [&str; 4] =
    [Front::HTTP.as_str(), Front::SOCKS5.as_str(), Front::SNI.as_str(), Front::PORT.as_str()];

/// `gateway.access`.
pub(super) fn access(source: &Source, access: &config::Access) -> Result<Rules, Failure> {
    let default = match access.default {
        None | Some(config::Action::Allow) => Action::Allow,
        Some(config::Action::Deny) => Action::Deny,
    };
    let rules: Result<Vec<_>, _> =
        access.rules.iter().flatten().map(|spanned| rule(source, spanned)).collect();
    Ok(Rules::new("gateway.access", default, rules?))
}

fn rule(source: &Source, spanned: &Spanned<config::Rule>) -> Result<Rule, Failure> {
    let config::Rule { allow, deny, users, groups, fronts, protocols } = &spanned.value;
    let (action, targets) = match (allow, deny) {
        (Some(targets), None) => (Action::Allow, targets),
        (None, Some(targets)) => (Action::Deny, targets),
        _ => return Err(source.mistake(spanned.defined, "a rule has either allow or deny")),
    };
    let patterns: Vec<Pattern> = targets.iter().map(|target| target.value.0.clone()).collect();
    if patterns.is_empty() {
        return Err(source.mistake(spanned.defined, "a rule without targets matches nothing"));
    }
    // An empty condition would hold for everybody, which is hardly what `users: []` means.
    let conditions = [("users", users), ("groups", groups), ("fronts", fronts)];
    if let Some((key, _)) = conditions.iter().find(|(_, list)| list.as_ref().is_some_and(Vec::is_empty)) {
        return Err(
            source.mistake(spanned.defined, format!("{key} is empty: leave it out, or name somebody"))
        );
    }
    // A front nobody comes through would make a rule that never holds.
    let mut named = fronts.iter().flatten();
    if let Some(other) = named.find(|front| !FRONTS.contains(&front.as_str())) {
        let text = format!("{other:?} is none of the fronts that rules know: {}", FRONTS.join(", "));
        return Err(source.mistake(spanned.defined, text));
    }
    let words = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut rule =
        Rule::new(action, patterns).users(words(users)).groups(words(groups)).fronts(words(fronts));
    if let Some(origin) = origin(source, spanned.defined) {
        rule = rule.at(origin);
    }
    if let Some(protocols) = protocols {
        rule = rule.networks(networks(source, protocols)?);
    }
    Ok(rule)
}

/// `client.limit`: nothing but these services.
pub(super) fn services(
    source: &Source,
    services: &[Spanned<config::LocalService>],
) -> Result<Rules, Failure> {
    let rule = |spanned: &Spanned<config::LocalService>| {
        let service = &spanned.value;
        let Some(addr) = &service.addr else {
            return Err(source.mistake(spanned.defined, "a service of limit needs an addr"));
        };
        if addr.value.0.is_any_port() {
            let what = "a service of limit needs a port, as in localhost:3000: without one it is all of them";
            return Err(source.mistake(addr.defined, what));
        }
        let networks = network(service.protocol.unwrap_or(config::Protocol::Tcp));
        let rule = Rule::allow([addr.value.0.clone()]).networks(networks);
        Ok(match origin(source, spanned.defined) {
            Some(origin) => rule.at(origin),
            None => rule,
        })
    };
    let rules: Result<Vec<_>, _> = services.iter().map(rule).collect();
    Ok(Rules::new("client.limit", Action::Deny, rules?))
}

/// `gateway.routes`: the first whose targets match and whose group the user holds.
pub(super) fn routes(source: &Source, routes: &[Spanned<config::Route>]) -> Result<Vec<Route>, Failure> {
    let route = |spanned: &Spanned<config::Route>| match &spanned.value {
        config::Route { targets: Some(targets), group: Some(group) } => {
            if targets.is_empty() {
                return Err(source.mistake(spanned.defined, "a route without targets matches nothing"));
            }
            accounts::check_group(source, spanned.defined, Some(group))?;
            Ok(Route {
                targets: targets.iter().map(|target| target.value.0.clone()).collect(),
                group: group.as_str().into(),
            })
        }
        _ => Err(source.mistake(spanned.defined, "a route needs targets and a group")),
    };
    routes.iter().map(route).collect()
}

/// From targets to a group.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) targets: Box<[Pattern]>,
    pub(crate) group: Arc<str>,
}

fn networks(source: &Source, protocols: &[config::Protocol]) -> Result<Networks, Failure> {
    protocols
        .iter()
        .map(|protocol| network(*protocol))
        .reduce(|all, more| all | more)
        .ok_or_else(|| source.wrong("protocols is empty: nothing could travel"))
}

const fn network(protocol: config::Protocol) -> Networks {
    match protocol {
        config::Protocol::Tcp => Networks::TCP,
        config::Protocol::Udp => Networks::UDP,
    }
}

/// None for what a variable says.
fn origin(source: &Source, place: impl Into<Place>) -> Option<Origin> {
    let place = place.into();
    let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let origin = Origin { file: source.name.clone(), line: number(place.line), column: number(place.column) };
    (place != Place::default()).then_some(origin)
}

#[cfg(test)]
mod tests {
    use anyproxy_acl::{Policy, Question, Verdict};
    use anyproxy_core::{Identity, Network, Target};

    use super::*;
    use crate::settings::fixture::source;

    #[test]
    fn a_rule_that_comes_from_a_variable_is_told_without_a_place() {
        let variables = [
            ("ANYPROXY_GATEWAY__FORBIDDEN_HOSTS", "['*.lab']"),
            ("ANYPROXY_GATEWAY__ACCESS__RULES", "[{ deny: ['*.lan'] }]"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let file = config::File::load(None, variables).unwrap();
        let source = Source { file, name: "f.yaml".into(), path: None };
        let section = source.file.gateway.as_ref().unwrap();
        let lists = lists(&source, section.forbidden_hosts.as_ref(), None, None).unwrap();
        let access = access(&source, section.access.as_ref().unwrap()).unwrap();
        let policy = Policy::new(lists.into_rules("gateway").chain([access]));
        for (target, said) in
            [("db.lab:1", "rule 1 of gateway.forbidden_hosts"), ("db.lan:1", "rule 1 of gateway.access")]
        {
            let (target, identity) = (&Target::parse(target).unwrap(), &Identity::ANONYMOUS);
            let question = Question { target, network: Network::Tcp, identity, front: "http" };
            let Verdict::Deny(cause) = policy.check(&question) else { panic!("{target} is not denied") };
            assert_eq!(policy.reason(cause).to_string(), said);
        }
    }

    #[test]
    fn a_route_that_could_lead_nobody_anywhere_is_a_mistake() {
        for (route, said) in [
            ("{ targets: [], group: x }", Some("a route without targets matches nothing")),
            ("{ targets: ['*'], group: '' }", Some("group \"\": a name has 1 to 128 bytes")),
            (r#"{ targets: ['*'], group: "a\nb" }"#, Some("group \"a\\nb\": a name has 1 to 128 bytes")),
            ("{ targets: ['*'] }", Some("a route needs targets and a group")),
            ("{ targets: ['*'], group: x }", None),
        ] {
            let (source, _dir) = source(&format!("gateway:\n  routes: [ {route} ]\n"));
            let section = source.file.gateway.as_ref().unwrap().routes.as_deref().unwrap();
            let told = routes(&source, section).err().map(|failure| failure.to_string());
            match said {
                Some(said) => assert!(told.unwrap().starts_with(&format!("f.yaml:2:13: {said}")), "{route}"),
                None => assert_eq!(told, None),
            }
        }
    }
}
