use std::fmt;

use zeroize::Zeroizing;

/// Text that cannot be printed and is wiped from memory when dropped.
///
/// `Debug` shows `"…"`, there is no `Display`, and the type has no equality: comparing secrets in constant time is
/// the business of whoever verifies them.
#[derive(Clone)]
pub struct Secret(Zeroizing<Box<str>>);

impl Secret {
    /// Takes a secret into keeping.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself. The name is long so that every use of it is seen.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to keep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"…\"")
    }
}

/// A user name and a password, as a front received them.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Who the user claims to be.
    pub username: Box<str>,
    /// What proves it.
    pub password: Secret,
}

impl Credentials {
    /// Pairs a name with a password.
    pub fn new(username: impl Into<Box<str>>, password: impl Into<Secret>) -> Self {
        Self { username: username.into(), password: password.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_password() {
        let shown = format!("{:?}", Credentials::new("alice", "canary"));
        assert!(shown.contains("alice") && !shown.contains("canary"), "{shown}");
    }
}
