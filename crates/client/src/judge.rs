use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyproxy_acl::{Policy, Question, Verdict, dialable};
use anyproxy_core::{Account, Association, Front, Host, Identity, Network, Target};
use anyproxy_tunnel::frame::{self, HostRef, Open, OpenErr, OpenErrClass, Transport};

use crate::config::OpenPort;

/// An open before the rules: this client's own, and those of the gateway that hold here too.
///
/// The own rules are asked about target and network alone: whatever else a gateway says, it could say to widen them.
pub(crate) struct Judge<'a> {
    network: Network,
    rules: &'a Policy,
    target: Target,
    /// The gateway's rules, and what it says they judged.
    theirs: Option<(&'a Policy, Told<'a>)>,
}

struct Told<'a> {
    target: Target,
    identity: Identity,
    front: &'a str,
}

impl<'a> Judge<'a> {
    /// Reads an open; `ports` are those that this client asked for.
    ///
    /// # Errors
    ///
    /// If it names no target, or a port that was not asked for.
    pub(crate) fn new(
        open: &'a Open,
        ports: &[OpenPort],
        rules: &'a Policy,
        policy: Option<&'a Policy>,
    ) -> Result<Self, OpenErr> {
        let told = told_target(open)?;
        let target =
            if open.front == Front::PORT.as_str() { port_target(open, ports)? } else { told.clone() };
        let network = match open.network {
            frame::Network::Tcp => Network::Tcp,
            frame::Network::Udp { .. } => Network::Udp(Association::new()),
        };
        let theirs = policy
            .map(|policy| (policy, Told { target: told, identity: identity(open), front: &open.front }));
        Ok(Self { network, rules, target, theirs })
    }

    /// The same by other rules of this client's.
    pub(crate) fn under(self, rules: &'a Policy) -> Self {
        Self { rules, ..self }
    }

    /// What is to be dialled.
    pub(crate) const fn target(&self) -> &Target {
        &self.target
    }

    /// Before a name is looked up: one that no address could save costs no lookup.
    pub(crate) fn name(&self) -> Result<(), OpenErr> {
        match self.rules.check(&self.question()) {
            Verdict::Deny(cause) => Err(denied(&format_args!("denied by {}", self.rules.reason(cause)))),
            Verdict::Allow | Verdict::Depends => Ok(()),
        }
    }

    /// Those of the target's `addresses` that all rules allow, with its port: what is dialled is what was judged here,
    /// and nothing else.
    pub(crate) fn addresses(&self, addresses: Vec<IpAddr>) -> Result<Vec<SocketAddr>, OpenErr> {
        let mut allowed = dialable([self.rules], &self.question(), addresses).map_err(|why| denied(&why))?;
        if let Some((policy, told)) = &self.theirs {
            let question = Question {
                target: &told.target,
                network: self.network,
                identity: &told.identity,
                front: told.front,
            };
            allowed = dialable([*policy], &question, allowed).map_err(|why| denied(&why))?;
        }
        Ok(allowed.into_iter().map(|address| (address, self.target.port()).into()).collect())
    }

    const fn question(&self) -> Question<'_> {
        Question { target: &self.target, network: self.network, identity: &Identity::ANONYMOUS, front: "" }
    }
}

/// A gateway sends names in their canonical form. From one that does not, an address in disguise must not pass as a
/// name.
fn told_target(open: &Open) -> Result<Target, OpenErr> {
    let unspecified = HostRef::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    if open.port == 0 && open.host == unspecified && matches!(open.network, frame::Network::Udp { .. }) {
        return Ok(Target::UNSPECIFIED);
    }
    let host = match &open.host {
        HostRef::Ip(address) => Ok((*address).into()),
        HostRef::Name(name) => Host::parse(name),
    };
    host.and_then(|host| Target::new(host, open.port)).map_err(|error| denied(&error))
}

/// The gateway knows the number of its port; what it stands for, only this client does.
fn port_target(open: &Open, ports: &[OpenPort]) -> Result<Target, OpenErr> {
    let transport = match open.network {
        frame::Network::Tcp => Transport::Tcp,
        frame::Network::Udp { .. } => Transport::Udp,
    };
    let port = ports.iter().find(|port| port.remote_port == open.port && port.transport == transport);
    port.map(|port| port.target.clone()).ok_or_else(|| denied(&"this client did not ask for the port"))
}

/// The user, as the gateway tells.
fn identity(open: &Open) -> Identity {
    match (open.user.is_empty(), open.groups.first()) {
        (false, _) => Account::new(&*open.user, open.groups.iter().map(|group| &**group)).into(),
        (true, Some(group)) => Account::anonymous(&**group).into(),
        (true, None) => Identity::ANONYMOUS,
    }
}

fn denied(why: &dyn fmt::Display) -> OpenErr {
    OpenErr::new(OpenErrClass::Denied, why.to_string())
}

#[cfg(test)]
mod tests {
    use anyproxy_acl::{Action, Pattern, Rule, Rules};

    use super::*;

    #[test]
    fn the_gateway_s_rules_know_users_and_the_own_ones_do_not() {
        let for_alice = || {
            let rule = Rule::allow([Pattern::parse("10.0.0.0/8").unwrap()]).users(["alice"]);
            Policy::new([Rules::new("test", Action::Deny, [rule])])
        };
        let open = Open { user: "alice".into(), ..Open::tcp(HostRef::Name("db.lan".into()), 22) };
        let (theirs, everything) = (for_alice(), Policy::default());
        let judge = Judge::new(&open, &[], &everything, Some(&theirs)).unwrap();
        let addresses = vec![IpAddr::from([10, 0, 0, 1]), IpAddr::from([192, 0, 2, 1])];
        assert_eq!(judge.addresses(addresses.clone()).unwrap(), [SocketAddr::from(([10, 0, 0, 1], 22))]);

        let (ours, nobody) = (for_alice(), Policy::default());
        let judge = Judge::new(&open, &[], &ours, Some(&nobody)).unwrap();
        assert_eq!(judge.addresses(addresses).unwrap_err().class, OpenErrClass::Denied);
    }

    #[test]
    fn the_gateway_s_rules_judge_a_port_by_the_name_they_know_it_by() {
        let rule = Rule::allow([Pattern::parse("localhost:2222").unwrap()]);
        let theirs = Policy::new([Rules::new("test", Action::Deny, [rule])]);
        let ports = [OpenPort::new(2222, Target::parse("127.0.0.1:22").unwrap(), Transport::Tcp)];
        let open = Open { front: "port".into(), ..Open::tcp(HostRef::Name("localhost".into()), 2222) };
        let everything = Policy::default();
        let judge = Judge::new(&open, &ports, &everything, Some(&theirs)).unwrap();
        let address = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(judge.addresses(vec![address]).unwrap(), [SocketAddr::from((address, 22))]);
    }
}
