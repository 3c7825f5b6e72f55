//! `anyproxy explain`: which rule, limit and group decide about a dial, and why.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyproxy_acl::Question;
use anyproxy_core::{Account, Association, Front, Identity, Network, Target};

use crate::failure::Failure;
use crate::say;
use crate::settings::{self, Source};
use crate::stack;

/// What somebody would dial.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    network: Network,
    target: Target,
}

impl Asked {
    /// `tcp://host:port` or `udp://host:port`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (network, rest) = match text.split_once("://") {
            Some(("tcp", rest)) => (Network::Tcp, rest),
            Some(("udp", rest)) => (Network::Udp(Association::new()), rest),
            _ => return Err("a target is tcp://host:port or udp://host:port".to_owned()),
        };
        let target = Target::parse(rest).map_err(|error| error.to_string())?;
        Ok(Self { network, target })
    }
}

/// Prints what the file at `path` decides about `user` dialling what is `asked` for through `front`.
pub(crate) fn run(
    path: &Path,
    user: Option<&str>,
    front: Option<&str>,
    asked: &Asked,
) -> Result<ExitCode, Failure> {
    let explanation = explain(&Source::load(Some(path))?, user, front, asked)?;
    say(|out| out.write_all(explanation.as_bytes()))
}

fn explain(
    source: &Source,
    user: Option<&str>,
    front: Option<&str>,
    asked: &Asked,
) -> Result<String, Failure> {
    let section = source.required("gateway", source.file.gateway.as_ref())?;
    let gateway = settings::Gateway::new(source, section)?;
    let client =
        source.file.client.as_ref().map(|client| settings::Client::new(source, client)).transpose()?;
    let way = Way::find(&gateway.fronts, user, front, asked).ok_or_else(|| match front {
        Some(front) => Failure::of(front, "the file has no such front"),
        None => source.wrong("there is no front for users in it"),
    })?;
    let identity = way.identity(user)?;
    let mut text = String::new();
    if let Some(why) = way.refusal(asked) {
        let user = identity.user().unwrap_or("nobody in particular").escape_debug();
        let Asked { network, target } = asked;
        let _ = writeln!(text, "{network}://{target} for {user} by {}: denied\n- {why}", way.spoken);
        return Ok(text);
    }

    let Asked { network, target } = asked;
    let question = Question { target, network: *network, identity: &identity, front: way.spoken };
    let _ = writeln!(text, "{}", gateway.policy.explain(&question));
    if let Some(client) = client {
        let rules = client.config.rules.explain(&question);
        let _ = writeln!(text, "the client of the same file: {rules}");
    }
    let route = stack::route(&gateway.routes, target, &identity);
    let group = route.as_deref().unwrap_or_else(|| identity.group());
    let whose = if route.is_some() { "by gateway.routes" } else { "the user's own" };
    let _ = writeln!(text, "group: {group}, {whose}");
    for limit in gateway.limits.describe() {
        let _ = writeln!(text, "limit: {limit}");
    }
    Ok(text)
}

/// How a user comes in: by which front, and what they speak there.
#[derive(Clone, Copy)]
struct Way<'a> {
    front: &'a settings::Front,
    spoken: &'static str,
}

impl<'a> Way<'a> {
    /// The first that knows `user` and carries what is `asked` for; else the first that knows them; else any, to say why
    /// not. With `spoken` among those where that is spoken.
    fn find(
        fronts: &'a [settings::Front],
        user: Option<&str>,
        spoken: Option<&str>,
        asked: &Asked,
    ) -> Option<Self> {
        let ways = fronts
            .iter()
            .flat_map(|front| front.protocol.spoken().iter().map(move |&spoken| Self { front, spoken }))
            .filter(|way| spoken.is_none_or(|spoken| spoken == way.spoken));
        let mut known = ways.clone().filter(|way| way.identity(user).is_ok());
        let fitting = known.clone().find(|way| way.refusal(asked).is_none());
        fitting.or_else(|| known.next()).or_else(|| ways.clone().next())
    }

    /// Who that user is there.
    fn identity(&self, user: Option<&str>) -> Result<Identity, Failure> {
        let Self { front, spoken } = self;
        match (user, &front.accounts) {
            (None, Some(_)) => Err(Failure::of(spoken, "this front has accounts: say which with --user")),
            (Some(user), Some(accounts)) => accounts
                .identity(user)
                .cloned()
                .ok_or_else(|| Failure::of(user, format!("no account of the {spoken} front has this name"))),
            (None, None) => Ok(front
                .group
                .as_deref()
                .map_or(Identity::ANONYMOUS, |group| Account::anonymous(group).into())),
            (Some(user), None) => {
                Err(Failure::of(user, format!("the {spoken} front is open and knows no users")))
            }
        }
    }

    /// Why the front refuses what is `asked` for by itself, before any rule is looked at.
    fn refusal(&self, asked: &Asked) -> Option<&'static str> {
        let front = self.front;
        let is = |spoken: Front| self.spoken == spoken.as_str();
        match asked.network {
            Network::Udp(_) if !is(Front::SOCKS5) => Some("only SOCKS5 carries datagrams"),
            Network::Udp(_) if !front.udp.enabled => Some("udp is not enabled at this front"),
            Network::Tcp if is(Front::SNI) && !front.passthrough.serves(&asked.target) => {
                Some("proxy.sni passes its hosts alone, on its port")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::fixture::{GATEWAY, source};

    /// What is said of an open and a known user at these fronts.
    fn said(proxy: &str, user: Option<&str>, front: Option<&str>, target: &str) -> String {
        let (source, _dir) = source(&format!("proxy:\n{proxy}\n{GATEWAY}"));
        explain(&source, user, front, &Asked::parse(target).unwrap())
            .unwrap_or_else(|error| error.to_string())
    }

    const SNI: &str =
        "  sni: { listen_addr: '127.0.0.1:0', hosts: [localhost, '*.local.test'], port: 21386 }";
    const BOTH: &str = "  http: { listen_addr: '127.0.0.1:0', auth_username: u, auth_password: p }
  socks5: { listen_addr: '127.0.0.1:0', auth_username: u, auth_password: p }";

    #[test]
    fn a_name_or_port_that_is_not_passed_through_is_denied() {
        for target in ["tcp://localhost:21386", "tcp://a.local.test:21386"] {
            let said = said(SNI, None, Some("sni"), target);
            assert!(
                said.starts_with(&format!("{target} for nobody in particular by sni: allowed\n")),
                "{said}"
            );
        }
        for target in ["tcp://other:80", "tcp://other:21386", "tcp://localhost:80", "tcp://127.0.0.1:21386"] {
            for front in [None, Some("sni")] {
                assert_eq!(
                    said(SNI, None, front, target),
                    format!(
                        "{target} for nobody in particular by sni: denied\n\
                         - proxy.sni passes its hosts alone, on its port\n"
                    )
                );
            }
        }
    }

    #[test]
    fn datagrams_go_by_socks5_and_only_where_they_may() {
        let target = "udp://1.2.3.4:53";
        let socks5 = said(BOTH, Some("u"), None, target);
        assert!(socks5.starts_with("udp://1.2.3.4:53 for u by socks5: allowed\n"), "{socks5}");
        assert_eq!(
            said(BOTH, Some("u"), Some("http"), target),
            "udp://1.2.3.4:53 for u by http: denied\n- only SOCKS5 carries datagrams\n"
        );
        let never = BOTH.replace("auth_password: p }", "auth_password: p, udp: { enabled: false } }");
        let never = never.replacen(", udp: { enabled: false }", "", 1);
        assert_eq!(
            said(&never, Some("u"), Some("socks5"), target),
            "udp://1.2.3.4:53 for u by socks5: denied\n- udp is not enabled at this front\n"
        );
        let mixed = "  mixed: { listen_addr: '127.0.0.1:0' }";
        let mixed = said(mixed, None, None, target);
        assert!(mixed.contains("by socks5: allowed\n"), "{mixed}");
    }

    #[test]
    fn the_front_that_knows_the_user_is_asked_where_several_speak_the_same() {
        let three = format!(
            "{BOTH}\n  mixed: {{ listen_addr: '127.0.0.1:0', users: [ {{ username: m, password: p, group: blue }} ] }}"
        );
        for front in [None, Some("http"), Some("socks5")] {
            let said = said(&three, Some("m"), front, "tcp://a:1");
            assert!(said.contains(" for m by ") && said.contains("group: blue, the user's own"), "{said}");
        }
        assert_eq!(
            said(&three, Some("n"), None, "tcp://a:1"),
            "n: no account of the http front has this name"
        );
        assert_eq!(said(&three, None, Some("sni"), "tcp://a:1"), "sni: the file has no such front");
    }
}
