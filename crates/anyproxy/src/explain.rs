//! `anyproxy explain`: which rule, limit and group decide about a dial, and why.

use std::path::Path;
use std::process::ExitCode;

use anyproxy_acl::Question;
use anyproxy_core::{Account, Association, Identity, Network, Target};

use crate::failure::Failure;
use crate::say;
use crate::settings::{self, Source};
use crate::stack;

/// Prints what the file at `path` decides about `user` dialling `target` through `front`.
pub(crate) fn run(
    path: &Path,
    user: Option<&str>,
    front: Option<&str>,
    target: &str,
) -> Result<ExitCode, Failure> {
    let source = Source::load(Some(path))?;
    let section = source.required("gateway", source.file.gateway.as_ref())?;
    let gateway = settings::Gateway::new(&source, section)?;
    let (network, target) = parse(target)?;
    let knows = |front: &&settings::Front| match (user, &front.accounts) {
        (Some(user), Some(accounts)) => accounts.identity(user).is_some(),
        (user, accounts) => user.is_some() == accounts.is_some(),
    };
    let first = gateway.fronts.iter().find(knows).or_else(|| gateway.fronts.first());
    let front = front
        .or_else(|| first.map(|front| front.protocol.spoken()))
        .ok_or_else(|| Failure::of(path.display(), "has no front for users"))?;
    let identity = identity(&gateway, user, front)?;

    let question = Question { target: &target, network, identity: &identity, front };
    let explanation = gateway.policy.explain(&question);
    let client =
        source.file.client.as_ref().map(|client| settings::Client::new(&source, client)).transpose()?;
    let route = stack::route(&gateway.routes, &target, &identity);
    let group = route.as_deref().unwrap_or_else(|| identity.group());
    let whose = if route.is_some() { "by gateway.routes" } else { "the user's own" };
    say(|out| {
        writeln!(out, "{explanation}")?;
        if let Some(client) = client {
            writeln!(out, "the client of the same file: {}", client.config.rules.explain(&question))?;
        }
        writeln!(out, "group: {group}, {whose}")?;
        gateway.limits.describe().into_iter().try_for_each(|limit| writeln!(out, "limit: {limit}"))
    })
}

/// `tcp://host:port` or `udp://host:port`.
fn parse(text: &str) -> Result<(Network, Target), Failure> {
    let (network, rest) = match text.split_once("://") {
        Some(("tcp", rest)) => (Network::Tcp, rest),
        Some(("udp", rest)) => (Network::Udp(Association::new()), rest),
        _ => return Err(Failure::of(text, "a target is tcp://host:port or udp://host:port")),
    };
    Ok((network, Target::parse(rest).map_err(|error| Failure::of(text, error))?))
}

/// Who that user is at that front.
fn identity(gateway: &settings::Gateway, user: Option<&str>, front: &str) -> Result<Identity, Failure> {
    let settings = gateway
        .fronts
        .iter()
        .find(|settings| settings.protocol.serves(front))
        .ok_or_else(|| Failure::of(front, "the file has no such front"))?;
    match (user, &settings.accounts) {
        (None, Some(_)) => Err(Failure::of(front, "this front has accounts: say which with --user")),
        (Some(user), Some(accounts)) => accounts
            .identity(user)
            .cloned()
            .ok_or_else(|| Failure::of(user, format!("no account of the {front} front has this name"))),
        (None, None) => Ok(settings
            .group
            .as_deref()
            .map_or(Identity::ANONYMOUS, |group| Account::anonymous(group).into())),
        (Some(user), None) => Err(Failure::of(user, format!("the {front} front is open and knows no users"))),
    }
}
