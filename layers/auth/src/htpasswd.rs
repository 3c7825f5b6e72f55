use std::collections::HashSet;
use std::error::Error;
use std::fmt;

use crate::accounts::{Fault, check_user_name};
use crate::{PasswordHash, User};

/// Reads the users of a file in the form of Apache's `htpasswd`: one `name:hash` a line, empty lines and lines that
/// begin with `#` skipped.
///
/// Hashes are bcrypt (`htpasswd -B`) or argon2id (`anyproxy hash-password`). The users are in no group yet.
///
/// ```
/// let users = anyproxy_auth::htpasswd("# the team\nalice:$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n")?;
/// assert_eq!(users[0].username, "alice");
///
/// let error = anyproxy_auth::htpasswd("bob:$apr1$lZL6V/ci$eIMz/iKDkbtys/uU7LEK00").unwrap_err();
/// assert_eq!(error.line(), 1);
/// # Ok::<_, anyproxy_auth::InvalidLine>(())
/// ```
///
/// # Errors
///
/// [`InvalidLine`] with the first line at fault: no colon, a name that no protocol can carry or that is used twice,
/// a weak or broken hash, a password in clear.
pub fn htpasswd(text: &str) -> Result<Vec<User>, InvalidLine> {
    let mut names = HashSet::new();
    let mut users = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        if text.trim().is_empty() || text.starts_with('#') {
            continue;
        }
        let invalid = |fault| InvalidLine { line, fault };
        let (name, hash) = text.split_once(':').ok_or_else(|| invalid(None))?;
        check_user_name(name).map_err(|fault| invalid(Some(fault)))?;
        let hash = PasswordHash::parse(hash.trim_end()).map_err(|hash| invalid(Some(Fault::Hash(hash))))?;
        if !names.insert(name) {
            return Err(invalid(Some(Fault::Duplicate)));
        }
        users.push(User::hashed(name, hash));
    }
    Ok(users)
}

/// A line of an `htpasswd` file that is no account. Shows nothing of the line: a password may stand in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidLine {
    line: usize,
    /// `None`: there is no colon.
    fault: Option<Fault>,
}

impl InvalidLine {
    /// The number of the line, from 1.
    #[must_use]
    pub const fn line(&self) -> usize {
        self.line
    }
}

impl fmt::Display for InvalidLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fault {
            Some(fault) => write!(f, "line {}: {fault}", self.line),
            None => write!(f, "line {}: expected `name:hash`", self.line),
        }
    }
}

impl Error for InvalidLine {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InvalidHash;

    const HASH: &str = "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";

    #[test]
    fn comments_empty_lines_and_carriage_returns_are_skipped() {
        let text = format!("# team\r\n\r\nalice:{HASH}\r\nbob:{HASH}\r\n");
        let users = htpasswd(&text).unwrap();
        assert_eq!(users.iter().map(|user| &*user.username).collect::<Vec<_>>(), ["alice", "bob"]);
    }

    #[test]
    fn faults_carry_their_line_and_no_password() {
        for (line, fault) in [
            ("canary", None),
            (":canary", Some(Fault::Name)),
            ("bob:canary", Some(Fault::Hash(InvalidHash::Unknown))),
            ("bob:", Some(Fault::Hash(InvalidHash::Unknown))),
            ("bob:{SHA}canary", Some(Fault::Hash(InvalidHash::Weak("{SHA} (SHA-1)")))),
            ("bob:$2y$05$canary", Some(Fault::Hash(InvalidHash::Broken("bcrypt")))),
            (&format!("alice:{HASH}"), Some(Fault::Duplicate)),
        ] {
            let error = htpasswd(&format!("# team\nalice:{HASH}\n{line}\n")).unwrap_err();
            assert_eq!(error, InvalidLine { line: 3, fault });
            assert!(!format!("{error} {error:?}").contains("canary"));
        }
    }
}
