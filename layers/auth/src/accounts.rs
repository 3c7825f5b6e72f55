use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::error::Error;
use std::fmt;
use std::hash::BuildHasher as _;
use std::sync::{Arc, OnceLock, Weak};

use anyproxy_core::{Account, Credentials, Digest, Identity, Secret};
use aws_lc_rs::hmac;

use crate::verify::Shared;
use crate::{InvalidHash, PasswordHash, random_key};

/// The longest password, in bytes. A longer one is wrong without a look at it, so that nobody makes the gateway
/// digest a header full of it.
pub const MAX_PASSWORD: usize = 1024;

/// What proves a user: a password in clear, or its hash.
#[derive(Clone, Debug)]
pub enum Password {
    /// The password itself. [`Accounts`] keep a keyed digest of it only.
    Plain(Secret),
    /// Its argon2id or bcrypt hash.
    Hash(PasswordHash),
}

/// One line of an account list, not yet checked.
#[derive(Clone, Debug)]
pub struct User {
    /// The name: 1 to 255 bytes, without control characters and without `:`, which HTTP's Basic scheme cannot carry
    /// (RFC 7617 section 2).
    pub username: String,
    /// What proves it: 1 to 1,024 bytes if plain.
    pub password: Password,
    /// The groups whose networks the user may reach, the usual one first: at most 16, with names of 1 to 128 bytes
    /// without control characters. None means [`DEFAULT_GROUP`](anyproxy_core::DEFAULT_GROUP).
    pub groups: Vec<String>,
}

impl User {
    /// A user with a password in clear, in no group of their own.
    pub fn plain(username: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self { username: username.into(), password: Password::Plain(password.into()), groups: Vec::new() }
    }

    /// A user with a hashed password, in no group of their own.
    pub fn hashed(username: impl Into<String>, hash: PasswordHash) -> Self {
        Self { username: username.into(), password: Password::Hash(hash), groups: Vec::new() }
    }

    /// Puts the user into `groups`, the usual one first.
    #[must_use]
    pub fn in_groups<G: Into<String>>(mut self, groups: impl IntoIterator<Item = G>) -> Self {
        self.groups = groups.into_iter().map(Into::into).collect();
        self
    }
}

/// The accounts of a front, or of the gateway's clients: checked when built, and never changed afterwards.
///
/// Holds no password: of those given in clear, digests under random keys that die with the process.
pub struct Accounts {
    /// Into `entries`.
    by_name: HashMap<Box<str>, usize>,
    entries: Vec<Entry>,
    key: hmac::Key,
    keeper: Keeper,
}

/// Who has taken a list of accounts into use. Weak, since it holds the list itself.
pub(crate) type Keeper = Arc<OnceLock<Weak<Shared>>>;

/// What an identity rests on.
pub(crate) struct Voucher {
    /// The account's password or hash: the same in every list of this process, and not to be brought back from it.
    proof: Digest,
    keeper: Keeper,
}

impl Voucher {
    /// That of an identity which comes from [`Accounts`].
    pub(crate) fn of(identity: &Identity) -> Option<&Self> {
        identity.voucher()?.downcast_ref()
    }

    /// Who knows the accounts of today: nobody before they are taken into use, and after the end of that.
    pub(crate) fn keeper(&self) -> Option<Arc<Shared>> {
        self.keeper.get()?.upgrade()
    }

    /// Whether the account has the same password or hash.
    pub(crate) fn has_proof_of(&self, other: &Self) -> bool {
        self.proof == other.proof
    }
}

/// What is known of one account.
pub(crate) struct Entry {
    pub(crate) identity: Identity,
    pub(crate) proof: Proof,
}

pub(crate) enum Proof {
    Digest(hmac::Tag),
    Hash(PasswordHash),
}

/// An account to compare with, and whether it is the user's.
pub(crate) struct Found<'a> {
    pub(crate) entry: &'a Entry,
    /// If not, `entry` is a decoy: whatever comes out of the comparison, the login is wrong.
    pub(crate) known: bool,
}

impl Accounts {
    /// Checks a list of users and takes it into keeping.
    ///
    /// An empty list is a list: nobody can log in.
    ///
    /// # Errors
    ///
    /// [`InvalidAccount`] names the first user at fault: names used twice, names that no protocol can carry, and
    /// empty passwords.
    ///
    /// # Panics
    ///
    /// When the operating system has no random bytes to give.
    pub fn new(users: impl IntoIterator<Item = User>) -> Result<Self, InvalidAccount> {
        let mut accounts = Self {
            by_name: HashMap::new(),
            entries: Vec::new(),
            key: random_key(),
            keeper: Keeper::default(),
        };
        for (index, user) in users.into_iter().enumerate() {
            let name = user.username.clone();
            accounts.add(user).map_err(|fault| InvalidAccount { index, username: name, fault })?;
        }
        Ok(accounts)
    }

    fn add(&mut self, user: User) -> Result<(), Fault> {
        check_user_name(&user.username)?;
        if let Some(group) = user.groups.iter().find(|group| !is_name(group, Account::MAX_GROUP)) {
            return Err(Fault::Group(group.clone()));
        }
        if user.groups.len() > Account::MAX_GROUPS {
            return Err(Fault::TooManyGroups(user.groups.len()));
        }
        let MapEntry::Vacant(place) = self.by_name.entry(user.username.as_str().into()) else {
            return Err(Fault::Duplicate);
        };
        let (proof, digest) = match user.password {
            Password::Plain(password) => match password.expose_secret() {
                "" => return Err(Fault::EmptyPassword),
                text if text.len() > MAX_PASSWORD => return Err(Fault::LongPassword),
                text => {
                    let tag = hmac::sign(&self.key, text.as_bytes());
                    (Proof::Digest(tag), Digest::of(&("password", text)))
                }
            },
            Password::Hash(hash) => {
                let digest = Digest::of(&("hash", hash.as_str()));
                (Proof::Hash(hash), digest)
            }
        };
        place.insert(self.entries.len());
        let voucher = Voucher { proof: digest, keeper: self.keeper.clone() };
        let identity = Account::new(user.username, user.groups).with_voucher(Arc::new(voucher)).into();
        self.entries.push(Entry { identity, proof });
        Ok(())
    }

    /// Says in whose use they are: from now on their identities rest on what `keeper` knows.
    pub(crate) fn kept_by(self, keeper: &Weak<Shared>) -> Self {
        // They are somebody's at most once: whoever takes them into use owns them.
        let _ = self.keeper.set(keeper.clone());
        self
    }

    /// How many accounts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody can log in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The identity of a user, unproven.
    #[must_use]
    pub fn identity(&self, username: &str) -> Option<&Identity> {
        self.by_name.get(username).map(|at| &self.entries[*at].identity)
    }

    /// The account to compare a login with: the user's own, or some other one, so that a wrong login takes as long
    /// whether the user exists or not. `None` only if there is no account at all.
    ///
    /// The decoy follows from the name under a key nobody knows. Unknown names are therefore spread over quick and
    /// slow accounts as known ones are, and asking again teaches nothing.
    pub(crate) fn find(&self, username: &str) -> Option<Found<'_>> {
        let own = self.by_name.get(username).copied();
        // Reckoned for known users too.
        let spread = self.by_name.hasher().hash_one((username, "decoy"));
        let decoy = spread.checked_rem(self.entries.len() as u64)? as usize;
        Some(Found { entry: &self.entries[own.unwrap_or(decoy)], known: own.is_some() })
    }

    /// Compares a plain password in a time that depends on the length of what was presented alone.
    pub(crate) fn is_digest_of(&self, tag: &hmac::Tag, credentials: &Credentials) -> bool {
        hmac::verify(&self.key, credentials.password.expose_secret().as_bytes(), tag.as_ref()).is_ok()
    }
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").field("len", &self.len()).finish_non_exhaustive()
    }
}

pub(crate) fn check_user_name(name: &str) -> Result<(), Fault> {
    if is_name(name, Account::MAX_USER) && !name.contains(':') { Ok(()) } else { Err(Fault::Name) }
}

fn is_name(name: &str, most: usize) -> bool {
    (1..=most).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// A user whom a list of accounts cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidAccount {
    index: usize,
    username: String,
    fault: Fault,
}

/// What is wrong with a user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The name is empty, longer than 255 bytes, or holds `:` or a control character.
    Name,
    /// The name is taken.
    Duplicate,
    /// A group's name is empty, longer than 128 bytes, or holds a control character.
    Group(String),
    /// There are more than 16 groups: so many.
    TooManyGroups(usize),
    /// The password is empty.
    EmptyPassword,
    /// The password is longer than 1,024 bytes.
    LongPassword,
    /// The hash is none that is accepted.
    Hash(InvalidHash),
}

impl InvalidAccount {
    /// The user's place in the list, from 0.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// What is wrong.
    #[must_use]
    pub const fn fault(&self) -> &Fault {
        &self.fault
    }
}

impl fmt::Display for InvalidAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `{:?}`: what stands in a file is not yet known to be printable.
        write!(f, "user {:?}: {}", self.username, self.fault)
    }
}

impl Error for InvalidAccount {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("a user name has 1 to 255 bytes, no `:` and no control characters"),
            Self::Duplicate => f.write_str("the name is used twice"),
            Self::Group(group) => {
                let most = Account::MAX_GROUP;
                write!(f, "group {group:?}: a name has 1 to {most} bytes and no control characters")
            }
            Self::TooManyGroups(groups) => {
                write!(f, "{groups} groups: a user has at most {}", Account::MAX_GROUPS)
            }
            Self::EmptyPassword => f.write_str("the password is empty"),
            Self::LongPassword => f.write_str("the password is longer than 1,024 bytes"),
            Self::Hash(invalid) => invalid.fmt(f),
        }
    }
}

impl Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(users: impl IntoIterator<Item = User>) -> (usize, Fault) {
        let error = Accounts::new(users).unwrap_err();
        (error.index(), error.fault().clone())
    }

    #[test]
    fn p7_what_cannot_be_an_account_is_named_with_its_place() {
        let good = || User::plain("alice", "secret");
        assert_eq!(fault([good(), good()]), (1, Fault::Duplicate));
        assert_eq!(fault([good(), User::plain("bob", "")]), (1, Fault::EmptyPassword));
        assert_eq!(fault([User::plain("bob", "x".repeat(1025))]), (0, Fault::LongPassword));
        for name in ["", "a:b", "a\nb", &"x".repeat(256)] {
            assert_eq!(fault([User::plain(name, "secret")]), (0, Fault::Name), "{name:?}");
        }
        assert_eq!(fault([good().in_groups(["blue", ""])]), (0, Fault::Group(String::new())));
        assert_eq!(fault([good().in_groups(["a\nb"])]), (0, Fault::Group("a\nb".into())));
        let (fits, long) = ("g".repeat(128), "g".repeat(129));
        assert_eq!(fault([good().in_groups([fits.clone(), long.clone()])]), (0, Fault::Group(long)));
        let groups = |count| (0..count).map(|number| format!("group-{number}"));
        assert_eq!(fault([good().in_groups(groups(17))]), (0, Fault::TooManyGroups(17)));
        assert!(Accounts::new([good().in_groups(groups(15).chain([fits]))]).is_ok());
    }

    #[test]
    fn errors_and_debug_show_no_password() {
        let users = [User::plain("alice", "canary"), User::plain("alice", "canary")];
        let shown = format!("{:?}", users[0]) + &format!("{:?}", Accounts::new(users).unwrap_err());
        assert!(!shown.contains("canary"), "{shown}");
        let accounts = Accounts::new([User::plain("alice", "canary")]).unwrap();
        assert_eq!(format!("{accounts:?}"), "Accounts { len: 1, .. }");
    }

    #[test]
    fn p4_unknown_names_are_spread_over_all_accounts_and_each_meets_the_same_one_again() {
        let users = (0..4).map(|n| User::plain(format!("user{n}"), "secret"));
        let accounts = Accounts::new(users).unwrap();
        let mut met = [0; 4];
        for n in 0..400 {
            let name = format!("nobody{n}");
            let found = accounts.find(&name).unwrap();
            assert!(!found.known);
            let again = accounts.find(&name).unwrap();
            assert!(std::ptr::eq(found.entry, again.entry));
            met[accounts.by_name[found.entry.identity.user().unwrap()]] += 1;
        }
        assert!(met.iter().all(|times| *times > 40), "{met:?}");
        assert!(accounts.find("user1").unwrap().known);
    }

    #[test]
    fn a_user_without_groups_is_in_the_default_one() {
        let accounts =
            Accounts::new([User::plain("a", "x"), User::plain("b", "x").in_groups(["blue"])]).unwrap();
        assert_eq!(accounts.identity("a").unwrap().group(), "default");
        assert_eq!(accounts.identity("b").unwrap().group(), "blue");
        assert!(accounts.identity("c").is_none());
        assert!(Accounts::new([]).unwrap().find("a").is_none());
    }
}
