use std::borrow::Cow;

/// A peer's word as a field of a log line: the word itself, or all of it escaped where a character in it could end a line
/// or speak to a terminal. JSON does not escape all of those. Whoever shows a name in this way shows it alike in each line,
/// so that lines can be joined by it.
#[must_use]
pub fn printable(word: &str) -> Cow<'_, str> {
    // Quotes and backslashes mean something to formats, which escape them by themselves.
    let is_plain = |c: char| matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1;
    if word.chars().all(is_plain) { word.into() } else { word.escape_debug().to_string().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o1_a_word_stays_as_it_is_unless_it_would_speak_to_a_terminal() {
        for plain in ["", "office", "büro 1", r#"corp\"office""#, "会社"] {
            assert!(matches!(printable(plain), Cow::Borrowed(_)), "{plain}");
        }
        assert_eq!(printable("a\r\n\u{1b}[2J\u{202e}\u{7f}"), r"a\r\n\u{1b}[2J\u{202e}\u{7f}");
    }
}
