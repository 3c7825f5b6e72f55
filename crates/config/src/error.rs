use std::error::Error;
use std::fmt;

use serde_saphyr::Location;

/// A place in a file, counted from 1; `0:0` where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: u64,
    /// The column, in characters.
    pub column: u64,
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// What is wrong with a file, or with a variable that overrides one of its keys, and where.
///
/// Displayed as `file:line:column: what`, the place left out where there is none. No value of a secret key is ever
/// part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    origin: String,
    place: Option<Place>,
    what: String,
}

impl ConfigError {
    /// Something wrong in `origin` (a file's name or a variable's) as a whole.
    pub fn new(origin: impl Into<String>, what: impl Into<String>) -> Self {
        Self { origin: origin.into(), place: None, what: what.into() }
    }

    /// Something wrong at a place in `origin`.
    pub fn at(origin: impl Into<String>, place: impl Into<Place>, what: impl Into<String>) -> Self {
        let place = place.into();
        Self { origin: origin.into(), place: (place.line > 0).then_some(place), what: what.into() }
    }

    /// Where, if known.
    #[must_use]
    pub const fn place(&self) -> Option<Place> {
        self.place
    }

    pub(crate) fn from_yaml(origin: &str, error: &serde_saphyr::Error) -> Self {
        let error = error.without_snippet();
        let what = describe(error);
        match error.location() {
            Some(location) => Self::at(origin, location, what),
            None => Self::new(origin, what),
        }
    }

    /// A variable has one line; its place in it helps nobody.
    pub(crate) fn without_place(mut self) -> Self {
        self.place = None;
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some(place) => write!(f, "{}:{place}: {}", self.origin, self.what),
            None => write!(f, "{}: {}", self.origin, self.what),
        }
    }
}

impl Error for ConfigError {}

fn describe(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error as Yaml;
    match error {
        Yaml::SerdeUnknownField { field, expected, .. } => unknown_key(field, expected),
        Yaml::SerdeUnknownVariant { variant, expected, .. } => unknown_value(variant, expected),
        Yaml::SerdeMissingField { field, .. } => format!("the key \"{field}\" is missing"),
        Yaml::DuplicateMappingKey { key: Some(key), .. } => format!("the key {key:?} stands here twice"),
        // What stands there may be a password that lost its key: tell what was expected, never what was found.
        Yaml::SerdeInvalidType { expected, .. } | Yaml::SerdeInvalidValue { expected, .. } => {
            format!("expected {expected}")
        }
        Yaml::MultipleDocuments { .. } => "a second document begins here, and a file is one".to_owned(),
        Yaml::UnknownAnchor { .. } => {
            "what begins with * is to be quoted, as in [\"*.example.com\"]".to_owned()
        }
        Yaml::Message { msg, .. } => msg.clone(),
        Yaml::AliasError { error, .. } => describe(error),
        other => {
            // The library appends the place in words; ours stands in front.
            let text = other.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.split(" at line ").next().unwrap_or(first).to_owned()
        }
    }
}

/// What is not nearly a key may be a password that lost its own: it is not repeated.
fn unknown_key(found: &str, expected: &[&str]) -> String {
    if let Some((key, _)) = found.split_once(':')
        && expected.contains(&key)
    {
        return format!("a space is missing behind \"{key}:\"");
    }
    match nearest(found, expected) {
        Some(candidate) => format!("unknown key {found:?}, did you mean {candidate:?}?"),
        None => format!("unknown key, expected one of: {}", expected.join(", ")),
    }
}

fn unknown_value(found: &str, expected: &[&str]) -> String {
    let found: String = found.chars().take(64).collect();
    match nearest(&found, expected) {
        Some(candidate) => format!("unknown value {found:?}, did you mean {candidate:?}?"),
        None => format!("unknown value {found:?}, expected one of: {}", expected.join(", ")),
    }
}

fn nearest<'a>(found: &str, expected: &[&'a str]) -> Option<&'a str> {
    let distances =
        expected.iter().map(|candidate| (strsim::damerau_levenshtein(candidate, found), *candidate));
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= (candidate.len() / 3).max(1)).then_some(candidate)
}
