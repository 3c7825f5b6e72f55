use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::Digest;

/// The group of accounts and clients that name none.
pub const DEFAULT_GROUP: &str = "default";

/// A user as an account store knows them: a name and the groups whose networks they may reach.
pub struct Account {
    user: Option<Arc<str>>,
    groups: Box<[Arc<str>]>,
    key: Arc<str>,
    digest: Digest,
    voucher: Option<Arc<dyn Any + Send + Sync>>,
}

impl Account {
    /// The longest name of a user, in bytes: what RFC 1929 and the tunnel can carry.
    pub const MAX_USER: usize = 255;
    /// The longest name of a group, in bytes: what the tunnel can carry.
    pub const MAX_GROUP: usize = 128;
    /// The most groups of a user that the tunnel can carry.
    pub const MAX_GROUPS: usize = 16;

    /// An account of `user`, who belongs to `groups`; the first is the one they reach where nothing else decides.
    /// Without groups they belong to [`DEFAULT_GROUP`].
    ///
    /// Whoever keeps accounts refuses those beyond the limits above: names and groups travel with every dial, none of
    /// them is cut short, and so the dials of such a user would all fail.
    pub fn new<G: Into<Arc<str>>>(user: impl Into<Arc<str>>, groups: impl IntoIterator<Item = G>) -> Self {
        Self::build(Some(user.into()), groups.into_iter().map(Into::into).collect())
    }

    /// The account of everybody who comes through an open front that leads to `group`.
    pub fn anonymous(group: impl Into<Arc<str>>) -> Self {
        Self::build(None, Box::new([group.into()]))
    }

    /// The same account with a note of whoever keeps it, by which a layer of theirs can tell whether a dial's identity still
    /// holds ([`Identity::voucher`]). It is never shown, and two accounts may be equal whatever theirs say.
    #[must_use]
    pub fn with_voucher(mut self, voucher: Arc<dyn Any + Send + Sync>) -> Self {
        self.voucher = Some(voucher);
        self
    }

    fn build(user: Option<Arc<str>>, mut groups: Box<[Arc<str>]>) -> Self {
        if groups.is_empty() {
            groups = Box::new([DEFAULT_GROUP.into()]);
        }
        // A line feed can stand in neither a user's nor a group's name, so two accounts never share a key.
        let key = format!("{}\n{}", user.as_deref().unwrap_or_default(), groups[0]).into();
        let digest = digest(user.as_deref(), &groups[0]);
        Self { user, groups, key, digest, voucher: None }
    }
}

impl PartialEq for Account {
    fn eq(&self, other: &Self) -> bool {
        // The rest is made of these.
        self.user == other.user && self.groups == other.groups
    }
}

impl Eq for Account {}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("user", &self.user)
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}

/// Who a dial is for: an account, or nobody in particular.
///
/// Cheap to clone (one reference count). Two fronts that know the same name in the same group mean the same
/// identity, and limits keyed by [`key`](Self::key) hold for both together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity(Option<Arc<Account>>);

impl Identity {
    /// The identity of users who were not asked: no name, and the group [`DEFAULT_GROUP`].
    pub const ANONYMOUS: Self = Self(None);

    /// The user's name, if they were asked for it.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.0.as_deref().and_then(|account| account.user.as_deref())
    }

    /// The group whose clients serve this user where no route says otherwise.
    #[must_use]
    pub fn group(&self) -> &str {
        self.0.as_deref().map_or(DEFAULT_GROUP, |account| &account.groups[0])
    }

    /// What it rests on, noted by [whoever keeps the account](Account::with_voucher).
    #[must_use]
    pub fn voucher(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.0.as_deref()?.voucher.as_deref()
    }

    /// Every group the user holds, the first one first.
    pub fn groups(&self) -> impl Iterator<Item = &str> + Clone {
        let groups = self.0.as_deref().map_or(&[][..], |account| &account.groups);
        groups.iter().map(|group| &**group).chain(self.0.is_none().then_some(DEFAULT_GROUP))
    }

    /// Whether the user holds this group.
    #[must_use]
    pub fn has_group(&self, group: &str) -> bool {
        self.groups().any(|held| held == group)
    }

    /// Whether it is who `before` was, and may reach all that they might: the same user with the same first group, by which
    /// their state is kept, and with every other group.
    #[must_use]
    pub fn covers(&self, before: &Self) -> bool {
        self.user() == before.user()
            && self.group() == before.group()
            && before.groups().all(|group| self.has_group(group))
    }

    /// What per-user state is kept by where its owner's name is of no interest: the same for the same name and group.
    /// Made with the account, so that asking costs nothing.
    #[must_use]
    pub fn digest(&self) -> Digest {
        static ANONYMOUS: OnceLock<Digest> = OnceLock::new();
        match &self.0 {
            Some(account) => account.digest,
            None => *ANONYMOUS.get_or_init(|| digest(None, DEFAULT_GROUP)),
        }
    }

    /// A key for maps of per-user state; the empty string for [`ANONYMOUS`](Self::ANONYMOUS).
    #[must_use]
    pub fn key(&self) -> Arc<str> {
        self.0.as_deref().map_or_else(|| Arc::from(""), |account| account.key.clone())
    }
}

fn digest(user: Option<&str>, group: &str) -> Digest {
    Digest::of(&(user, group))
}

impl From<Account> for Identity {
    fn from(account: Account) -> Self {
        Self(Some(Arc::new(account)))
    }
}

impl From<Arc<Account>> for Identity {
    fn from(account: Arc<Account>) -> Self {
        Self(Some(account))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.user().unwrap_or("-"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_users_belong_to_the_default_group() {
        assert_eq!(Identity::ANONYMOUS.group(), DEFAULT_GROUP);
        assert!(Identity::ANONYMOUS.has_group(DEFAULT_GROUP));
        assert_eq!(Identity::ANONYMOUS.groups().count(), 1);
    }

    #[test]
    fn an_identity_covers_what_had_no_group_that_it_has_not() {
        let of = |user: &'static str, groups: &[&'static str]| {
            Identity::from(Account::new(user, groups.iter().copied()))
        };
        let was = of("alice", &["blue", "green"]);
        assert!(was.covers(&was) && Identity::ANONYMOUS.covers(&Identity::ANONYMOUS));
        assert!(of("alice", &["blue", "red", "green"]).covers(&was));
        assert!(!of("alice", &["blue", "red"]).covers(&was), "a group less");
        assert!(!of("alice", &["green", "blue"]).covers(&was), "another group first");
        assert!(!of("bob", &["blue", "green"]).covers(&was) && !Identity::ANONYMOUS.covers(&was));
    }

    #[test]
    fn an_account_is_what_it_is_whoever_vouches_for_it_and_shows_nothing_of_that() {
        let alice = || Account::new("alice", ["blue"]);
        let vouched = Identity::from(alice().with_voucher(Arc::new("canary")));
        assert_eq!(vouched.voucher().and_then(|voucher| voucher.downcast_ref()), Some(&"canary"));
        assert!(Identity::from(alice()).voucher().is_none() && Identity::ANONYMOUS.voucher().is_none());
        assert_eq!(vouched, Identity::from(alice()));
        assert!(!format!("{vouched:?}").contains("canary"));
    }

    #[test]
    fn the_same_name_and_group_is_one_identity() {
        let one = Identity::from(Account::new("alice", ["blue"]));
        let other = Identity::from(Account::new("alice", ["blue", "green"]));
        assert_eq!(one.key(), other.key());
        assert_ne!(one.key(), Identity::from(Account::new("alice", ["green"])).key());
        assert_eq!(one.digest(), other.digest());
        assert_ne!(one.digest(), Identity::from(Account::new("alice", ["green"])).digest());
        assert_eq!(Identity::ANONYMOUS.digest(), Identity::from(Account::anonymous(DEFAULT_GROUP)).digest());
    }
}
