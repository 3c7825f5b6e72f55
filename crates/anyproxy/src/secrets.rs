//! Secrets from the file itself or from files it names; the environment was laid over the file before.

use std::fs;
use std::io::{self, Read as _};

use anyproxy_config::Password;
use anyproxy_core::Secret;

use crate::failure::Failure;

/// The longest file with a secret, in bytes.
const MAX_SECRET: u64 = 4_096;

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
            let text = fs::File::open(path).and_then(read).map_err(|error| Failure::of(path, error))?;
            one_line(path, text).map(Some)
        }
    }
}

/// All that `source` says, which must not be longer than a secret.
pub(crate) fn read(source: impl io::Read) -> io::Result<String> {
    let mut text = String::new();
    source.take(MAX_SECRET + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_SECRET {
        return Err(io::Error::other(format!("longer than {MAX_SECRET} bytes")));
    }
    Ok(text)
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
