//! Accounts of fronts and of clients.

use std::fs;

use anyproxy_auth::{Accounts, Password, PasswordHash, User, htpasswd};
use anyproxy_config::{self as config, Place, Spanned};
use anyproxy_core::{Account, Secret};

use super::{Protocol, Source};
use crate::failure::Failure;
use crate::secrets::secret;

/// The accounts of a front; `None` for a front that knows none.
pub(super) fn of_front(
    source: &Source,
    protocol: Protocol,
    section: &Spanned<config::Front>,
) -> Result<Option<Accounts>, Failure> {
    let front = &section.value;
    check_group(source, section.defined, front.group.as_deref())?;
    let mut users = Placed::default();
    let usual = front.group.iter().cloned();
    users.extend(
        section.defined,
        single(
            source,
            Some(section.defined.into()),
            front.auth_username.as_deref(),
            front.auth_password.as_ref(),
            front.auth_password_file.as_deref(),
        )?
        .map(|user| user.in_groups(usual.clone())),
    );
    for user in front.users.iter().flatten() {
        users.extend(user.defined, Some(one(source, user, front.group.as_deref())?));
    }
    if let Some(path) = &front.users_file {
        let text = fs::read_to_string(&path.value).map_err(|error| Failure::of(&path.value, error))?;
        let listed = htpasswd(&text).map_err(|error| Failure::of(&path.value, error))?;
        users.extend(path.defined, listed.into_iter().map(|user| user.in_groups(usual.clone())));
    }
    if users.is_empty() && front.users.is_none() && front.users_file.is_none() {
        return Ok(None);
    }
    if protocol == Protocol::Socks5 {
        users.check_for_socks5(source)?;
    }
    users.check(source).map(Some)
}

/// Users, and where each stands in the file.
#[derive(Default)]
pub(super) struct Placed {
    users: Vec<User>,
    places: Vec<Place>,
}

impl Placed {
    /// Adds users who stand at `place`.
    pub(super) fn extend(&mut self, place: impl Into<Place>, users: impl IntoIterator<Item = User>) {
        self.users.extend(users);
        self.places.resize(self.users.len(), place.into());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Refuses the first whose password SOCKS5 has no room for (RFC 1929 section 2).
    fn check_for_socks5(&self, source: &Source) -> Result<(), Failure> {
        let too_long = |user: &User| match &user.password {
            Password::Plain(password) => password.expose_secret().len() > usize::from(u8::MAX),
            Password::Hash(_) => false,
        };
        let Some(index) = self.users.iter().position(too_long) else { return Ok(()) };
        Err(source.mistake(
            self.places[index],
            "the password is longer than 255 bytes, the most that SOCKS5 carries",
        ))
    }

    /// The accounts of them all, or the first who can have none.
    pub(super) fn check(self, source: &Source) -> Result<Accounts, Failure> {
        let Self { users, places } = self;
        Accounts::new(users).map_err(|error| source.mistake(places[error.index()], error.to_string()))
    }
}

/// Refuses a group whose name no tunnel carries.
pub(super) fn check_group(
    source: &Source,
    place: impl Into<Place>,
    group: Option<&str>,
) -> Result<(), Failure> {
    let most = Account::MAX_GROUP;
    match group {
        Some(group) if group.is_empty() || group.len() > most || group.chars().any(char::is_control) => {
            let what = format!("group {group:?}: a name has 1 to {most} bytes and no control characters");
            Err(source.mistake(place, what))
        }
        _ => Ok(()),
    }
}

/// The pair `auth_username`, `auth_password`, if it is given: that of the section at `place`, or of the gateway.
pub(super) fn single(
    source: &Source,
    place: Option<Place>,
    username: Option<&str>,
    password: Option<&config::Password>,
    file: Option<&str>,
) -> Result<Option<User>, Failure> {
    let mistake = |what: String| match place {
        Some(place) => source.mistake(place, what),
        None => source.wrong(format!("gateway: {what}")),
    };
    match (username, secret("auth_password", password, file, mistake)?) {
        (None, None) => Ok(None),
        (Some(username), Some(password)) => Ok(Some(User::plain(username, password))),
        (Some(_), None) => Err(mistake("auth_username without auth_password".to_owned())),
        (None, Some(_)) => Err(mistake("auth_password without auth_username".to_owned())),
    }
}

fn one(source: &Source, user: &Spanned<config::User>, usual: Option<&str>) -> Result<User, Failure> {
    let config::User { username, password, password_file, password_hash, group, groups } = &user.value;
    let at = |what: &str| source.mistake(user.defined, what);
    let username = username.as_deref().ok_or_else(|| at("an account needs a username"))?;
    let proof =
        proof(source, user.defined, password.as_ref(), password_file.as_deref(), password_hash.as_ref())?;
    let user = match proof {
        Proof::Password(password) => User::plain(username, password),
        Proof::Hash(hash) => User::hashed(username, hash),
    };
    match (group, groups) {
        (Some(_), Some(_)) => Err(at("give either group or groups")),
        (Some(group), None) => Ok(user.in_groups([group.as_str()])),
        (None, Some(groups)) if groups.is_empty() => Err(at("groups is empty")),
        (None, Some(groups)) => Ok(user.in_groups(groups.iter().cloned())),
        (None, None) => Ok(user.in_groups(usual.map(str::to_owned))),
    }
}

/// What proves an account.
pub(super) enum Proof {
    Password(Secret),
    Hash(PasswordHash),
}

/// Exactly one of a password, a file with one, and a hash.
pub(super) fn proof(
    source: &Source,
    place: impl Into<Place>,
    password: Option<&config::Password>,
    file: Option<&str>,
    hash: Option<&config::Password>,
) -> Result<Proof, Failure> {
    let place = place.into();
    let password = secret("password", password, file, |what| source.mistake(place, what))?;
    match (password, hash) {
        (Some(password), None) => Ok(Proof::Password(password)),
        (None, Some(hash)) => PasswordHash::parse(hash.0.expose_secret())
            .map(Proof::Hash)
            .map_err(|error| source.mistake(place, format!("password_hash: {error}"))),
        (None, None) => {
            Err(source.mistake(place, "an account needs a password, password_file or password_hash"))
        }
        (Some(_), Some(_)) => Err(source.mistake(place, "give either a password or a password_hash")),
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::fixture::source;
    use crate::settings::{Front, Protocol};

    #[test]
    fn a_password_that_socks5_cannot_carry_is_a_mistake_where_nothing_else_is_spoken() {
        for (front, length, taken) in [
            (Protocol::Socks5, 255, true),
            (Protocol::Socks5, 256, false),
            (Protocol::Mixed, 256, true),
            (Protocol::Http, 1_024, true),
        ] {
            let text = format!(
                "proxy:\n  {}:\n    listen_addr: '127.0.0.1:0'\n    users: [{{ username: u, password: {} }}]\n",
                front.as_str(),
                "x".repeat(length)
            );
            let (source, _dir) = source(&text);
            let fronts = Front::all(&source);
            assert_eq!(fronts.is_ok(), taken, "{front:?} {length}");
            if let Err(failure) = fronts {
                assert!(failure.to_string().starts_with("f.yaml:4:13: the password is longer"), "{failure}");
            }
        }
    }
}
