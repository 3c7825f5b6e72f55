use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anyproxy_core::{BoxError, Dial, Metered, Outcome, TraceParent};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;
use tracing::Span;

use crate::AccessLine;

/// Puts a span around every dial and writes an access line when its stream ends, or was refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceLayer(());

impl TraceLayer {
    /// There is nothing to set: which lines are written is the subscriber's business.
    #[must_use]
    pub const fn new() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner }
    }
}

/// The service of [`TraceLayer`].
#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
}

impl<S> Service<Dial> for Trace<S>
where
    S: Service<Dial>,
    S::Error: Into<BoxError>,
{
    type Response = Metered<S::Response, AccessLine>;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, dial: Dial) -> Self::Future {
        let span = tracing::debug_span!(
            "dial",
            front = dial.front.as_str(),
            user = dial.identity.user(),
            network = dial.network.as_str(),
            target = %dial.target,
            traceparent = dial.extensions.get::<TraceParent>().map(TraceParent::as_str),
        );
        let line = Pending(Some(AccessLine::new(&dial)));
        let inner = {
            let _entered = span.enter();
            self.inner.call(dial)
        };
        ResponseFuture { inner, span, line }
    }
}

pin_project! {
    /// Response future of [`Trace`]. Dropped before it is ready, it writes a line with the outcome `cancelled`: the user
    /// left, and what was begun for them, the dial of a target perhaps, was seen in a network.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        span: Span,
        // Behind `inner`, which drops first: what a dial has learnt by its end, it writes down then.
        line: Pending,
    }
}

/// The line of a dial that is not decided yet.
#[derive(Debug)]
struct Pending(Option<AccessLine>);

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(line) = self.0.take() {
            line.cancelled();
        }
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Metered<R, AccessLine>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = {
            let _entered = this.span.enter();
            ready!(this.inner.poll(cx))
        };
        let line = this.line.0.take().expect("a future is not polled after it was ready");
        Poll::Ready(match answer {
            Ok(stream) => {
                let network = line.network();
                Ok(Metered::new(stream, line).of(network))
            }
            Err(error) => {
                let error = error.into();
                line.refused(Outcome::of(&*error));
                Err(error)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use anyproxy_core::{Association, DialService as _, Front, Target};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, duplex, join, sink};
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;
        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    impl Lines {
        fn listen(&self) -> tracing::subscriber::DefaultGuard {
            tracing::subscriber::set_default(
                tracing_subscriber::fmt().json().flatten_event(true).with_writer(self.clone()).finish(),
            )
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn dial() -> Dial {
        Dial::tcp(Target::parse("printer.lan:631").unwrap(), "192.0.2.1:4000".parse().unwrap(), Front::HTTP)
    }

    #[tokio::test]
    async fn one_line_when_the_stream_ends() {
        let lines = Lines::default();
        let _listening = lines.listen();
        let (near, mut far) = duplex(64);
        let near = Mutex::new(Some(near));
        let near = Arc::new(near);
        let dials = TraceLayer::new().layer(tower::service_fn(move |_: Dial| {
            let near = near.lock().unwrap().take();
            async { Ok::<_, io::Error>(BufReader::new(near.unwrap())) }
        }));
        let mut stream = dials.dial(dial()).await.unwrap();
        stream.write_all(b"up").await.unwrap();
        far.write_all(b"down!").await.unwrap();
        drop(far);
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        assert_eq!(lines.text(), "", "the stream still lives");
        stream.shutdown().await.unwrap();
        drop(stream);
        let line = lines.text();
        for part in [
            r#""target":"printer.lan:631""#,
            r#""bytes_up":2"#,
            r#""bytes_down":5"#,
            r#""outcome":"ok""#,
            r#""end":"whole""#,
            r#""source":"192.0.2.1:4000""#,
        ] {
            assert!(line.contains(part), "{part} not in {line}");
        }
        assert_eq!(line.lines().count(), 1);
    }

    #[tokio::test]
    async fn of_datagrams_a_line_counts_the_payloads() {
        let lines = Lines::default();
        let _listening = lines.listen();
        let dials = TraceLayer::new().layer(tower::service_fn(|_: Dial| async {
            Ok::<_, io::Error>(join(&b"\0\x05down!"[..], sink()))
        }));
        let (association, dial) = (Association::new(), dial());
        let dial = Dial::udp(association, dial.target, dial.source, Front::SOCKS5);
        let mut stream = dials.dial(dial).await.unwrap();
        stream.write_all(b"\0\x02up").await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        drop(stream);
        let line = lines.text();
        assert!(line.contains(r#""bytes_up":2,"bytes_down":5"#), "{line}");
    }

    #[tokio::test]
    async fn what_happens_within_the_span_knows_the_trace_it_continues() {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt().json().with_max_level(tracing::Level::DEBUG);
        let _listening = tracing::subscriber::set_default(subscriber.with_writer(lines.clone()).finish());
        let dials = TraceLayer::new().layer(tower::service_fn(|_: Dial| async {
            tracing::info!("within");
            Err::<BufReader<DuplexStream>, _>(io::Error::other(Outcome::Denied))
        }));
        let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut dial = dial();
        dial.extensions.insert(TraceParent::parse(context).unwrap());
        let _ = dials.dial(dial).await;
        let lines = lines.text();
        let within = lines.lines().find(|line| line.contains("within")).unwrap();
        assert!(within.contains(&format!(r#""traceparent":"{context}""#)), "{within}");
    }

    #[tokio::test]
    async fn a_dial_that_nobody_waited_for_is_told() {
        let lines = Lines::default();
        let _listening = lines.listen();
        let dials = TraceLayer::new().layer(tower::service_fn(|_: Dial| {
            std::future::pending::<io::Result<BufReader<DuplexStream>>>()
        }));
        let dialling = tokio::time::timeout(std::time::Duration::from_millis(1), dials.dial(dial()));
        assert!(dialling.await.is_err());
        assert!(lines.text().contains(r#""outcome":"cancelled""#), "{}", lines.text());
        assert_eq!(lines.text().lines().count(), 1);
    }

    #[tokio::test]
    async fn what_a_dial_learns_as_it_is_given_up_is_in_its_line() {
        struct Waited(Dial);
        impl Drop for Waited {
            fn drop(&mut self) {
                self.0.journal.add_queued(std::time::Duration::from_secs(5));
            }
        }
        let lines = Lines::default();
        let _listening = lines.listen();
        let dials = TraceLayer::new().layer(tower::service_fn(|dial: Dial| {
            let waited = Waited(dial);
            async move {
                std::future::pending::<()>().await;
                drop(waited);
                Err::<BufReader<DuplexStream>, _>(io::Error::other(Outcome::Denied))
            }
        }));
        assert!(tokio::time::timeout(std::time::Duration::ZERO, dials.dial(dial())).await.is_err());
        assert!(lines.text().contains(r#""queue_ms":5000"#), "{}", lines.text());
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_its_outcome() {
        let lines = Lines::default();
        let _listening = lines.listen();
        let dials = TraceLayer::new().layer(tower::service_fn(|_: Dial| async {
            Err::<BufReader<DuplexStream>, _>(io::Error::other(Outcome::Denied))
        }));
        let error = dials.dial(dial()).await.unwrap_err();
        assert_eq!(Outcome::of(&*error), Outcome::Denied);
        assert!(lines.text().contains(r#""outcome":"denied""#), "{}", lines.text());
    }
}
