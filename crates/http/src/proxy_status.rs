//! The `Proxy-Status` field (RFC 9209): what a proxy says about a response of its own.

use std::fmt::{self, Write as _};

use http::HeaderValue;

use crate::name::ProxyName;

/// One member of a `Proxy-Status` list (RFC 9209 section 2): who says it, the error, and the next hop.
pub(crate) fn proxy_status(name: &ProxyName, error: &str, next_hop: Option<&str>) -> String {
    let mut field = String::with_capacity(96);
    let _ = write!(field, "{}; error={error}", Item(name.as_str()));
    if let Some(next_hop) = next_hop {
        let _ = write!(field, "; next-hop={}", Item(next_hop));
    }
    field
}

/// Text as a structured field item (RFC 8941): a token where it can be one, else a string. What a string cannot hold
/// becomes `?`.
struct Item<'a>(&'a str);

impl fmt::Display for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0.starts_with(|first: char| first.is_ascii_alphabetic() || first == '*');
        if first && self.0.bytes().all(in_token) {
            return f.write_str(self.0);
        }
        f.write_char('"')?;
        for symbol in self.0.chars() {
            match symbol {
                '"' | '\\' => write!(f, "\\{symbol}")?,
                ' '..='~' => f.write_char(symbol)?,
                _ => f.write_char('?')?,
            }
        }
        f.write_char('"')
    }
}

const fn in_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-'..=b'/' | b':' | b'^'..=b'`' | b'|' | b'~')
}

/// Writes a `Proxy-Status` that names `data` as its next hop, and reads it back as RFC 8941 says.
///
/// # Panics
///
/// Where it does not come back.
pub(crate) fn check_proxy_status(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let expected: String =
        text.chars().map(|symbol| if (' '..='~').contains(&symbol) { symbol } else { '?' }).collect();
    let field = proxy_status(&ProxyName::default(), "dns_error", Some(&text));
    assert!(HeaderValue::try_from(&field).is_ok(), "a header can hold it");
    let (_, item) = field.split_once("; next-hop=").unwrap_or_default();
    let read = match item.strip_prefix('"') {
        None => {
            assert!(!item.is_empty() && item.bytes().all(in_token), "a token is one");
            item.to_owned()
        }
        Some(quoted) => {
            let mut read = String::new();
            let mut symbols = quoted.chars();
            loop {
                match symbols.next() {
                    Some('\\') => read.extend(symbols.next()),
                    Some('"') => break,
                    Some(symbol) => read.push(symbol),
                    None => panic!("a string ends"),
                }
            }
            assert_eq!(symbols.next(), None, "nothing follows a string");
            read
        }
    };
    assert_eq!(read, expected);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_hop_is_a_structured_item() {
        let name = ProxyName::new("gate").unwrap();
        assert_eq!(
            proxy_status(&name, "e", Some("printer.lan:631")),
            "gate; error=e; next-hop=printer.lan:631"
        );
        assert_eq!(proxy_status(&name, "e", Some("[::1]:80")), "gate; error=e; next-hop=\"[::1]:80\"");
        for data in [&b""[..], b"a", b"*", b"9", b"\"\\", "ü\r\n".as_bytes(), b"a,b;c=d", b"\xff"] {
            check_proxy_status(data);
        }
    }
}
