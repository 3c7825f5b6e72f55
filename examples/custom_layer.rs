//! A policy of your own: dials are let through in office hours only.
//!
//! ```sh
//! cargo run -p anyproxy-examples --example custom_layer -- 8 18
//! curl -x http://127.0.0.1:8080 http://example.com/
//! ```
//!
//! A layer is four small things: the `Layer`, its `Service`, the future of an answer, and an error that says what the
//! refusal means. The gateway below dials by itself, so that there is nothing else to look at.

use std::env;
use std::error::Error;
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use anyproxy_core::{BoxError, Dial, Outcome, Refusal};
use anyproxy_front::Listener;
use anyproxy_http::HttpProxy;
use pin_project_lite::pin_project;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::make::Shared;
use tower::{Layer, Service, ServiceBuilder, service_fn};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let hour = |argument, usual| env::args().nth(argument).map_or(Ok(usual), |hour| hour.parse());
    let port = env::args().nth(3).map_or(Ok(8080), |port| port.parse())?;

    let dials =
        ServiceBuilder::new().layer(OfficeHoursLayer::new(hour(1, 8)?..hour(2, 18)?)).service(service_fn(
            |dial: Dial| async move { TcpStream::connect(dial.target.to_string()).await.map(BufReader::new) },
        ));

    let listener = Listener::bind(&[(Ipv4Addr::LOCALHOST, port).into()])?;
    println!("http: {}", listener.local_addr()?);
    tokio::select! {
        () = HttpProxy::new(Shared::new(dials)).serve(listener, CancellationToken::new()) => Ok(()),
        end = tokio::signal::ctrl_c() => Ok(end?),
    }
}

// === The layer ===

/// Refuses dials outside of these hours, in UTC.
#[derive(Clone, Debug)]
struct OfficeHoursLayer {
    hours: Range<u64>,
}

impl OfficeHoursLayer {
    fn new(hours: Range<u64>) -> Self {
        Self { hours }
    }
}

impl<S> Layer<S> for OfficeHoursLayer {
    type Service = OfficeHours<S>;

    fn layer(&self, inner: S) -> OfficeHours<S> {
        OfficeHours { inner, hours: self.hours.clone() }
    }
}

/// The service of the layer. A front clones it for every dial.
#[derive(Clone, Debug)]
struct OfficeHours<S> {
    inner: S,
    hours: Range<u64>,
}

impl<S> Service<Dial> for OfficeHours<S>
where
    S: Service<Dial>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Answer<S::Future>;

    /// As ready as what is inside: never say "not yet" for a verdict, say it in `call`.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, dial: Dial) -> Answer<S::Future> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.hours.contains(&(now.as_secs() / 3600 % 24)) {
            Answer::Dialing { inner: self.inner.call(dial) }
        } else {
            Answer::Closed
        }
    }
}

pin_project! {
    /// What a dial becomes: the answer from inside, or a refusal without having asked. No box is needed for that.
    #[project = AnswerProj]
    enum Answer<F> {
        Dialing { #[pin] inner: F },
        Closed,
    }
}

impl<F, R, E> Future for Answer<F>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
{
    type Output = Result<R, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project() {
            AnswerProj::Dialing { inner } => ready!(inner.poll(cx)).map_err(Into::into),
            AnswerProj::Closed => Err(Closed.into()),
        })
    }
}

/// The refusal. `source` points to its meaning, from which every front makes an answer: here a 403. The layer's name
/// beside it is how a metric counts it.
#[derive(Debug)]
struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the office is closed")
    }
}

impl Error for Closed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(const { &Refusal::new("office_hours", Outcome::Denied) })
    }
}
