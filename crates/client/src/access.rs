use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyproxy_core::{StreamRef, printable};
use anyproxy_tunnel::OpenRequest;
use anyproxy_tunnel::frame::{HostRef, Network, Open};
use tokio::time::Instant;

use crate::relay::{End, Passed};

/// The most bytes of one field of foreign text in a log line.
const MAX_FIELD: usize = 512;

/// The line that is written when a stream ends, or was not opened at all: once the target was reached, it is written by
/// its drop, so that what is cut off in the middle has one, too.
///
/// A stream keeps it for its whole life, so the words that the gateway told are one allocation: escaped, which
/// leaves no line feed in them, and joined by line feeds.
#[derive(Debug)]
pub(crate) struct AccessLine {
    client: Arc<str>,
    stream: StreamRef,
    /// Front, user, group, source, target.
    words: Box<str>,
    network: &'static str,
    begun: Instant,
    opened: Option<Instant>,
    /// What has passed so far.
    pub(crate) passed: Passed,
    /// How it ended: abandoned, as long as nobody knows better.
    pub(crate) end: End,
}

impl Drop for AccessLine {
    fn drop(&mut self) {
        if self.opened.is_some() {
            self.write("ok", Some(self.end.as_str()), None);
        }
    }
}

impl AccessLine {
    pub(crate) fn new(client: Arc<str>, request: &OpenRequest) -> Self {
        Self::of(client, request.stream_ref(), request.open())
    }

    fn of(client: Arc<str>, stream: StreamRef, open: &Open) -> Self {
        let mut words = String::new();
        let group = open.groups.first().map_or("", String::as_str);
        for word in [open.front.as_str(), &open.user, group] {
            let _ = writeln!(words, "{}", Escaped(word));
        }
        let _ = match open.source {
            Some(source) => writeln!(words, "{source}"),
            None => writeln!(words),
        };
        let _ = match &open.host {
            HostRef::Name(name) => write!(words, "{}:{}", Escaped(name), open.port),
            HostRef::Ip(ip) => write!(words, "{}", std::net::SocketAddr::new(ip.to_canonical(), open.port)),
        };
        let network = match open.network {
            Network::Tcp => "tcp",
            Network::Udp { .. } => "udp",
        };
        Self {
            client,
            stream,
            words: words.into(),
            network,
            begun: Instant::now(),
            opened: None,
            passed: Passed::default(),
            end: End::UserLost,
        }
    }

    /// The target was reached. How long that took, in microseconds, for the gateway.
    pub(crate) fn opened(&mut self) -> u32 {
        let opened = Instant::now();
        self.opened = Some(opened);
        microseconds(opened - self.begun)
    }

    /// How long the client has been at it, in microseconds, for the gateway.
    pub(crate) fn tried(&self) -> u32 {
        microseconds(self.begun.elapsed())
    }

    /// There was no stream: the class of failure, and more words if there are any.
    pub(crate) fn refused(&self, outcome: &'static str, reason: &str) {
        let reason = (!reason.is_empty()).then(|| Escaped(reason).to_string());
        self.write(outcome, None, reason.as_deref());
    }

    fn write(&self, outcome: &'static str, end: Option<&'static str>, reason: Option<&str>) {
        let mut words = self.words.split('\n').map(|word| (!word.is_empty()).then_some(word));
        let mut word = || words.next().flatten();
        let (front, user, group, source, target) = (word(), word(), word(), word(), word());
        tracing::info!(
            target: "access",
            stream = %self.stream,
            front,
            user,
            group,
            source,
            network = self.network,
            target,
            client = &*printable(&self.client),
            bytes_up = self.passed.up,
            bytes_down = self.passed.down,
            open_ms = self.opened.map(|opened| milliseconds(opened - self.begun)),
            first_byte_ms = self.passed.first.map(|first| milliseconds(first.saturating_duration_since(self.begun))),
            total_ms = milliseconds(self.begun.elapsed()),
            outcome,
            end,
            reason,
        );
    }
}

fn microseconds(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Foreign text as part of a log line: [`printable`], as the gateway shows it, and cut.
#[derive(Clone, Copy)]
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = printable(self.0);
        let end = shown.floor_char_boundary(MAX_FIELD);
        f.write_str(&shown[..end])?;
        if end < shown.len() { f.write_str("…") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o1_foreign_text_cannot_forge_a_line_and_is_cut() {
        let evil = format!("alice\r\n\x1b[2J\u{202e}\0{}", "x".repeat(1 << 20));
        let open = Open { user: evil.clone(), ..Open::tcp(HostRef::Name(evil), 22) };
        let line = AccessLine::of("c".into(), StreamRef { session: 1, number: 2 }, &open);
        assert_eq!(line.words.split('\n').count(), 5, "{}", line.words);
        assert!(line.words.len() < 2048);
        assert!(!line.words.contains(['\r', '\x1b', '\0', '\u{202e}']));
        assert!(line.words.ends_with(":22"));
    }

    #[test]
    fn words_that_are_harmless_stand_there_as_the_gateway_writes_them() {
        let mut open = Open { user: "o'brien".into(), ..Open::tcp(HostRef::Name("o'brien.lan".into()), 22) };
        open.groups.push(r#"a"b\c"#.into());
        let line = AccessLine::of("c".into(), StreamRef { session: 1, number: 2 }, &open);
        let words: Vec<_> = line.words.split('\n').collect();
        assert_eq!((words[1], words[2], words[4]), ("o'brien", r#"a"b\c"#, "o'brien.lan:22"));
    }

    #[test]
    fn what_is_shown_is_cut_at_its_limit() {
        for (length, shown) in [(MAX_FIELD, MAX_FIELD), (MAX_FIELD + 1, MAX_FIELD + '…'.len_utf8())] {
            assert_eq!(Escaped(&"x".repeat(length)).to_string().len(), shown, "{length}");
        }
    }
}
