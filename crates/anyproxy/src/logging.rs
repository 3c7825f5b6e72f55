//! Where log lines go: through a bounded queue to a thread that writes, so that a pipe nobody drains stops no
//! traffic. Lines that do not fit, or cannot be written, are counted and dropped.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyproxy_config::{Log, LogFormat, LogLevel, LogOutput};
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

#[cfg(feature = "otlp")]
use crate::traces;

/// Log lines that may wait to be written.
const QUEUED_LINES: usize = 8_192;

/// How long the last lines may hold the program back. The writer's own limit is a little shorter.
const LAST_LINES: Duration = Duration::from_millis(1_200);

/// Keeps the writing thread. Dropping it writes what is queued, if somebody takes it: it goes last, since streams that
/// are dropped have a line to write, too.
pub(crate) struct Logging {
    writer: Option<WorkerGuard>,
    dropped: DroppedLines,
    #[cfg(feature = "otlp")]
    _traces: Option<traces::Export>,
}

impl Logging {
    /// Lines that were dropped.
    pub(crate) fn dropped_lines(&self) -> DroppedLines {
        self.dropped.clone()
    }
}

/// Lines that nobody will read, because they found no room in the queue, or the output did not take them.
#[derive(Clone)]
pub(crate) struct DroppedLines {
    unqueued: ErrorCounter,
    unwritten: Arc<AtomicU64>,
}

impl DroppedLines {
    /// How many there are so far.
    pub(crate) fn count(&self) -> u64 {
        self.unqueued.dropped_lines() as u64 + self.unwritten.load(Ordering::Relaxed)
    }
}

/// The output behind the queue. The writing thread goes on after a line that failed (a full disk, a pipe that nobody
/// holds any more) and tells nobody.
struct Output<W> {
    to: W,
    unwritten: Arc<AtomicU64>,
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes)
    }

    /// One line, and all of it: that is how the thread writes.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.to.write_all(line).inspect_err(|_| {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        // On a thread of its own, which the end of the process does not wait for: where the output is a full pipe the
        // guard cannot tell the writer, says so on that same output, and never comes back.
        let (done, ended) = mpsc::channel();
        let writing = thread::Builder::new().spawn(move || {
            drop(writer);
            let _ = done.send(());
        });
        if writing.is_ok() {
            let _ = ended.recv_timeout(LAST_LINES);
        }
    }
}

/// Starts logging as the file's `log` section says.
pub(crate) fn start(log: Option<&Log>) -> Logging {
    let log = log.cloned().unwrap_or_default();
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUED_LINES);
    let unwritten = Arc::<AtomicU64>::default();
    let (writer, guard) = match log.output.unwrap_or(LogOutput::Stdout) {
        LogOutput::Stdout => builder.finish(Output { to: io::stdout(), unwritten: unwritten.clone() }),
        LogOutput::Stderr => builder.finish(Output { to: io::stderr(), unwritten: unwritten.clone() }),
    };
    let dropped = DroppedLines { unqueued: writer.error_counter(), unwritten };
    let filter = filter(log.level.unwrap_or(LogLevel::Info));
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    let registry = tracing_subscriber::registry();
    #[cfg(feature = "otlp")]
    let (registry, exporting) = match traces::start() {
        Ok(started) => {
            let (spans, export) = started.unzip();
            (registry.with(spans), Ok(export))
        }
        Err(error) => (registry.with(None), Err(error)),
    };
    match log.format.unwrap_or(LogFormat::Text) {
        LogFormat::Text => registry.with(lines.with_filter(filter)).init(),
        // The access line has a field `target` of its own, and an object has each key once.
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_target(false).with_span_list(false);
            registry.with(lines.with_filter(filter)).init();
        }
    }
    Logging {
        writer: Some(guard),
        dropped,
        #[cfg(feature = "otlp")]
        _traces: exporting.unwrap_or_else(|error| {
            tracing::warn!(%error, "spans are not exported");
            None
        }),
    }
}

/// Shows warnings on standard error, for a command that has no log.
pub(crate) fn warnings() {
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
    // Nobody there to hear one changes nothing.
    let lines = lines.without_time().with_target(false).log_internal_errors(false);
    tracing_subscriber::registry().with(lines.with_filter(filter(LogLevel::Warn))).init();
}

/// Our own lines at `level`; those of libraries from `warn` on, whatever the level: at their finest they print
/// whole handshakes, credentials included.
fn filter(level: LogLevel) -> Targets {
    let ours = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new()
        .with_default(ours.min(LevelFilter::WARN))
        .with_target("anyproxy", ours)
        .with_target("access", ours)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn f8_each_line_that_the_output_does_not_take_is_counted() {
        let full_disk = File::options().write(true).open("/dev/full").unwrap();
        let (closed_pipe, reader) = UnixStream::pair().unwrap();
        drop(reader);
        let outputs: [Box<dyn Write + Send>; 2] = [Box::new(full_disk), Box::new(closed_pipe)];
        for to in outputs {
            let unwritten = Arc::<AtomicU64>::default();
            let output = Output { to, unwritten: unwritten.clone() };
            let (mut writer, guard) = NonBlockingBuilder::default().finish(output);
            for _ in 0..3 {
                writer.write_all(b"a line\n").unwrap();
            }
            drop(guard);
            let dropped = DroppedLines { unqueued: writer.error_counter(), unwritten };
            assert_eq!(dropped.count(), 3);
        }
    }
}
