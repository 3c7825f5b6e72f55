//! Accounts of fronts and of clients.

use std::fs;

use anyproxy_auth::{Accounts, PasswordHash, User, htpasswd};
use anyproxy_config::{self as config, Spanned};
use anyproxy_core::Secret;

use super::Source;
use crate::failure::Failure;
use crate::secrets::secret;

/// The accounts of a front; `None` for a front that knows none.
pub(super) fn of_front(source: &Source, front: &config::Front) -> Result<Option<Accounts>, Failure> {
    let mut users = Vec::new();
    let usual = front.group.iter().cloned();
    users.extend(
        single(
            source,
            front.auth_username.as_deref(),
            front.auth_password.as_ref(),
            front.auth_password_file.as_deref(),
        )?
        .map(|user| user.in_groups(usual.clone())),
    );
    for user in front.users.iter().flatten() {
        users.push(one(source, user, front.group.as_deref())?);
    }
    if let Some(path) = &front.users_file {
        let text = fs::read_to_string(&path.value).map_err(|error| Failure::of(&path.value, error))?;
        let listed = htpasswd(&text).map_err(|error| Failure::of(&path.value, error))?;
        users.extend(listed.into_iter().map(|user| user.in_groups(usual.clone())));
    }
    if users.is_empty() && front.users.is_none() && front.users_file.is_none() {
        return Ok(None);
    }
    Accounts::new(users).map(Some).map_err(|error| Failure::of(&source.name, error))
}

/// The pair `auth_username`, `auth_password`, if it is given.
pub(super) fn single(
    source: &Source,
    username: Option<&str>,
    password: Option<&config::Password>,
    file: Option<&str>,
) -> Result<Option<User>, Failure> {
    match (username, secret("auth_password", password, file)?) {
        (None, None) => Ok(None),
        (Some(username), Some(password)) => Ok(Some(User::plain(username, password))),
        (Some(_), None) => Err(Failure::of(&source.name, "auth_username without auth_password")),
        (None, Some(_)) => Err(Failure::of(&source.name, "auth_password without auth_username")),
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
    place: impl Into<config::Place>,
    password: Option<&config::Password>,
    file: Option<&str>,
    hash: Option<&config::Password>,
) -> Result<Proof, Failure> {
    let place = place.into();
    match (secret("password", password, file)?, hash) {
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
