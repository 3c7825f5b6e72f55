use std::fmt;
use std::sync::Arc;

/// The longest trace context kept, in bytes: version 00 has 55, later versions may append.
const MAX: usize = 128;

/// The W3C trace context that a dial continues (Trace Context, section 3.2).
///
/// A front that was given one leaves it in [`Dial::extensions`](crate::Dial::extensions); the terminal service passes
/// it on to the client. What is not a valid context is none: it would only confuse whoever collects the traces.
///
/// ```
/// use anyproxy_core::TraceParent;
///
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// assert_eq!(TraceParent::parse(text).map(|parent| parent.to_string()).as_deref(), Some(text));
/// assert!(TraceParent::parse("00-00000000000000000000000000000000-00f067aa0ba902b7-01").is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent(Arc<str>);

impl TraceParent {
    /// Reads a `traceparent` header's value.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = |part: &str, length| {
            part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
        let mut parts = text.splitn(5, '-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let formed = is_hex(version, 2) && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
        // Version 00 has nothing behind the flags, and ff is no version.
        let ended = parts.next().is_none() || version != "00";
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
        let valid = formed && ended && printable && version != "ff" && !is_zero(trace) && !is_zero(parent);
        (valid && text.len() <= MAX).then(|| Self(text.into()))
    }

    /// The value of the header.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_contexts_are_continued() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(TraceParent::parse(good).is_some());
        assert!(TraceParent::parse(&good.replacen("00", "cc", 1)).is_some());
        assert!(TraceParent::parse(&format!("cc{}-more", &good[2..])).is_some());
        for bad in [
            "",
            &good[..54],
            &format!("{good}-more"),
            &good.to_uppercase(),
            &good.replacen("00", "ff", 1),
            &good.replace("00f067aa0ba902b7", "0000000000000000"),
            &format!("cc{}-{}", &good[2..], "x".repeat(MAX)),
            &format!("cc{}-a\r\nb", &good[2..]),
        ] {
            assert!(TraceParent::parse(bad).is_none(), "{bad}");
        }
    }
}
