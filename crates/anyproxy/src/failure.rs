use std::error::Error;
use std::fmt;

/// Why a command failed: one clear line for the one who called it.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    /// `what: why`, with the causes of `why`.
    pub(crate) fn of(what: impl fmt::Display, why: impl Into<Box<dyn Error>>) -> Self {
        let why = why.into();
        let mut line = format!("{what}: {why}");
        let mut cause = why.source();
        while let Some(deeper) = cause {
            let text = deeper.to_string();
            // Some errors print their cause and name it as well.
            if !line.contains(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            cause = deeper.source();
        }
        Self(line)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A path or a name in it may hold anything; a line stays one line.
        for c in self.0.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

impl Error for Failure {}

impl From<anyproxy_config::ConfigError> for Failure {
    fn from(error: anyproxy_config::ConfigError) -> Self {
        Self(error.to_string())
    }
}
