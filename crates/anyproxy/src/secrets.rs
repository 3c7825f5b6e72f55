//! Secrets from the file itself or from files it names; the environment was laid over the file before.

use std::fs;
use std::io::Read as _;

use anyproxy_config::Password;
use anyproxy_core::Secret;

use crate::failure::Failure;

/// The longest secret, in bytes.
pub(crate) const MAX_SECRET: u64 = 4_096;

/// The secret that stands inline or in the file `path`; `None` where neither is given. `mistake` says where both stand.
pub(crate) fn secret(
    key: &str,
    inline: Option<&Password>,
    path: Option<&str>,
    mistake: impl FnOnce(String) -> Failure,
) -> Result<Option<Secret>, Failure> {
    match (inline, path) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(mistake(format!("give either {key} or {key}_file"))),
        (Some(inline), None) if inline.0.is_empty() => Err(mistake(format!("{key} is empty"))),
        (Some(inline), None) => Ok(Some(inline.0.clone())),
        (None, Some(path)) => {
            let mut text = String::new();
            fs::File::open(path)
                .and_then(|file| file.take(MAX_SECRET).read_to_string(&mut text))
                .map_err(|error| Failure::of(path, error))?;
            one_line(path, text).map(Some)
        }
    }
}

/// A secret that is a text's only line.
pub(crate) fn one_line(origin: &str, mut text: String) -> Result<Secret, Failure> {
    let end = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(end);
    if text.is_empty() {
        return Err(Failure::of(origin, "no password in it"));
    }
    if text.contains('\n') {
        return Err(Failure::of(origin, "a password is one line"));
    }
    Ok(Secret::from(text))
}
