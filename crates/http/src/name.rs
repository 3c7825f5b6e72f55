use std::fmt;
use std::hash::{BuildHasher as _, RandomState};

use http::HeaderValue;

/// The pseudonym of a proxy: a token (RFC 9110 section 5.6.2) that begins with a letter, at most 64 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyName {
    name: Box<str>,
    /// `1.1 name` and `1.0 name`, made once.
    via: [HeaderValue; 2],
}

impl ProxyName {
    /// A proxy of this name; `None` if that is no token or does not begin with a letter.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let fits = name.len() <= 64 && name.starts_with(|first: char| first.is_ascii_alphabetic());
        if fits && name.bytes().all(token) { Self::of_token(name) } else { None }
    }

    fn of_token(name: &str) -> Option<Self> {
        let via = |version: &str| HeaderValue::try_from(format!("{version} {name}")).ok();
        Some(Self { name: name.into(), via: [via("1.1")?, via("1.0")?] })
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// What is said in `Via` of a message received in HTTP/1.1, or in 1.0.
    pub(crate) fn via(&self, http_11: bool) -> HeaderValue {
        self.via[usize::from(!http_11)].clone()
    }

    /// Whether a `Via` value (RFC 9110 section 7.6.3) shows that the message was here before.
    pub(crate) fn signed(&self, via: &str) -> bool {
        via.split(',').any(|hop| hop.split_ascii_whitespace().nth(1) == Some(self.as_str()))
    }
}

impl Default for ProxyName {
    /// A name that no other gateway has: chains of gateways are no loops.
    fn default() -> Self {
        let name = format!("anyproxy-{:08x}", RandomState::new().hash_one(()) >> 32);
        Self::of_token(&name).expect("hex digits are a token")
    }
}

impl fmt::Debug for ProxyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h24_a_via_is_ours_by_its_whole_name() {
        let name = ProxyName::new("gate").unwrap();
        assert!(name.signed("1.0 other, HTTP/1.1 gate (a comment)"));
        assert!(!name.signed("1.1 gateway, 1.1 gate.example"));
        assert!(ProxyName::new("a gate").is_none() && ProxyName::new("9").is_none());
    }

    #[test]
    fn two_proxies_have_two_names() {
        assert_ne!(ProxyName::default(), ProxyName::default());
    }
}
