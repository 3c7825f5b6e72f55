use std::ops::RangeInclusive;
use std::sync::Arc;

use anyproxy_core::{Account, BoxError, DEFAULT_GROUP, Front, Login};
use tower::Service;

/// The front that clients log in at, in a [`Login`].
pub const FRONT: Front = Front::new("gateway");

/// What stands before an account's name in that of the users of its ports.
pub(crate) const PORT_USER: &str = "port:";

/// What a client may do here: the groups whose networks it may serve and the ports it may have opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAccount {
    name: Arc<str>,
    groups: Box<[Arc<str>]>,
    ports: Box<[RangeInclusive<u16>]>,
}

impl ClientAccount {
    /// The longest name of an account with open ports, in bytes: the users of a port are `port:` and this name, which is a
    /// [user's](Account::MAX_USER).
    pub const MAX_NAME_WITH_PORTS: usize = Account::MAX_USER - PORT_USER.len();

    /// An account that may serve `groups`, or [`DEFAULT_GROUP`] if it names none, and may open no ports.
    pub fn new<G: Into<Arc<str>>>(name: impl Into<Arc<str>>, groups: impl IntoIterator<Item = G>) -> Self {
        let mut groups: Box<[Arc<str>]> = groups.into_iter().map(Into::into).collect();
        if groups.is_empty() {
            groups = Box::new([DEFAULT_GROUP.into()]);
        }
        Self { name: name.into(), groups, ports: Box::default() }
    }

    /// The same account with ports at the gateway that its clients may ask for: none, where its name is longer than
    /// [`MAX_NAME_WITH_PORTS`](Self::MAX_NAME_WITH_PORTS), since whoever came in by one could not be dialled for.
    #[must_use]
    pub fn with_open_ports(mut self, ports: impl IntoIterator<Item = RangeInclusive<u16>>) -> Self {
        if self.name.len() <= Self::MAX_NAME_WITH_PORTS {
            self.ports = ports.into_iter().collect();
        }
        self
    }

    /// The account's name.
    #[must_use]
    pub const fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether it is the account that `other` was, and may do all that `other` might.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.name == other.name
            && other.groups.iter().all(|group| self.may_serve(group))
            && other.ports.iter().cloned().flatten().all(|port| port == 0 || self.may_open(port))
    }

    /// Whether its clients may serve users of `group`.
    #[must_use]
    pub fn may_serve(&self, group: &str) -> bool {
        self.groups.iter().any(|held| **held == *group)
    }

    /// Whether its clients may have this port opened. Port 0 means any port, which nobody may.
    #[must_use]
    pub fn may_open(&self, port: u16) -> bool {
        port != 0 && self.ports.iter().any(|ports| ports.contains(&port))
    }
}

/// Knows which account a client's login belongs to.
///
/// An alias: whatever fits is one. It is the shape of a user's login, so that what guards those (a lock-out by
/// source, a cap on hashing) guards clients too. The error's [`Outcome`](anyproxy_core::Outcome) becomes the answer
/// to the upgrade: 401 for `LoginRequired`, 429 for `LockedOut`, 503 for `Overloaded`, 403 for `Denied`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not verify clients: it must answer `Login` with an `Arc<ClientAccount>`"
)]
pub trait Authenticate:
    Service<Login, Response = Arc<ClientAccount>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Authenticate for S where
    S: Service<Login, Response = Arc<ClientAccount>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_serves_its_groups_and_no_others() {
        let account = ClientAccount::new("east", ["blue", "green"]);
        assert!(account.may_serve("green"));
        assert!(!account.may_serve("red") && !account.may_serve(DEFAULT_GROUP));
        assert!(ClientAccount::new("any", [""; 0]).may_serve(DEFAULT_GROUP));
    }

    #[test]
    fn an_account_covers_what_may_do_no_more() {
        let was = ClientAccount::new("east", ["blue", "green"]).with_open_ports([2222..=2222, 8000..=8010]);
        let now = |groups: &[&'static str], ports: &[RangeInclusive<u16>]| {
            ClientAccount::new("east", groups.iter().copied()).with_open_ports(ports.iter().cloned())
        };
        assert!(was.covers(&was));
        assert!(now(&["green", "red", "blue"], &[8000..=8004, 8005..=9000, 2222..=2222]).covers(&was));
        assert!(!now(&["green"], &[1..=u16::MAX]).covers(&was), "a group less");
        assert!(!now(&["blue", "green"], &[2222..=2222, 8001..=8010]).covers(&was), "a port less");
        assert!(!ClientAccount::new("west", ["blue", "green"]).with_open_ports([1..=u16::MAX]).covers(&was));
    }

    #[test]
    fn ports_are_opened_only_within_the_account_s_ranges() {
        let account = ClientAccount::new("east", ["blue"]).with_open_ports([2222..=2222, 8000..=8010, 0..=0]);
        assert!(account.may_open(2222) && account.may_open(8010));
        assert!(!account.may_open(8011) && !account.may_open(0));
    }

    #[test]
    fn an_account_whose_name_its_ports_users_cannot_have_opens_none() {
        for (length, opens) in [(250, true), (251, false)] {
            let account = ClientAccount::new("e".repeat(length), ["blue"]).with_open_ports([2222..=2222]);
            assert_eq!(account.may_open(2222), opens);
            assert!(account.covers(&account));
        }
    }
}
