//! The admin listener: `/metrics` in Prometheus text, `/healthz` (the process answers), `/readyz` (it can serve).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_config::{ListenAddr, Spanned};
use anyproxy_front::Listener;
use anyproxy_tunnel::{DroppedDatagrams, Memory};
use anyproxy_workers::Workers;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::listen;
use crate::logging::DroppedLines;

/// Connections at once; a scraper needs one.
const MAX_CONNECTIONS: usize = 64;
/// The longest a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the recorder folds what was observed into its histograms.
const UPKEEP: Duration = Duration::from_secs(5);
/// Dials are told apart from half a millisecond, a healthy one, to 15 seconds, the longest that a client may take to answer
/// unless it is set. What takes longer has waited for a place or a client besides, or for another client.
const SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0];

/// What is asked for at the time of a scrape.
pub(crate) trait Probe: Send + Sync + 'static {
    /// Sets the gauges that nobody keeps up to date otherwise.
    fn measure(&self);
    /// Whether work should be sent here.
    fn is_ready(&self) -> bool;
}

/// Sets the gauges of what streams hold.
#[expect(
    clippy::cast_precision_loss,
    reason = "no machine has 2^52 bytes, and then they would be about right"
)]
pub(crate) fn measure_memory(memory: &Memory) {
    metrics::gauge!("anyproxy_stream_memory_bytes").set(memory.used() as f64);
    metrics::gauge!("anyproxy_stream_memory_limit_bytes").set(memory.limit() as f64);
}

/// Publishes what tunnels dropped, those that have ended included.
pub(crate) fn measure_dropped(dropped: &DroppedDatagrams) {
    metrics::counter!("anyproxy_tunnel_datagrams_dropped_total").absolute(dropped.get());
}

/// Publishes how the threads' waits for something to do ended.
pub(crate) fn measure_waits(workers: &Workers) {
    let waits = workers.waits();
    metrics::counter!("anyproxy_waits_total", "end" => "looking").absolute(waits.looking);
    metrics::counter!("anyproxy_waits_total", "end" => "asleep").absolute(waits.asleep);
}

/// The recorder of this process.
#[derive(Clone)]
struct Recorder {
    handle: PrometheusHandle,
    process: Collector,
    dropped_lines: DroppedLines,
}

impl Recorder {
    /// Installs the recorder. Before any front is served: layers take a front's handles then.
    fn install(dropped_lines: DroppedLines) -> Result<Self, Failure> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(|error| Failure::of("metrics", error))?;
        let process = Collector::default();
        process.describe();
        anyproxy_metrics::describe();
        describe();
        Ok(Self { handle, process, dropped_lines })
    }

    fn render(&self, probe: &dyn Probe) -> String {
        probe.measure();
        self.process.collect();
        metrics::counter!("anyproxy_log_lines_dropped_total").absolute(self.dropped_lines.count());
        self.handle.render()
    }

    /// Keeps the recorder's memory bounded until `stop`.
    async fn keep_up(&self, stop: &CancellationToken) {
        let mut ticks = interval(UPKEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.handle.run_upkeep();
        }
    }
}

/// The admin listener, bound and with a recorder behind it.
pub(crate) struct Bound {
    listener: Listener,
    recorder: Recorder,
    user_labels: u16,
}

/// What would keep the listener from starting, short of the network.
pub(crate) fn check(admin: Option<&anyproxy_config::Admin>) -> Result<(), Failure> {
    admin.map_or(Ok(()), |admin| address(admin).map(drop))
}

fn address(admin: &anyproxy_config::Admin) -> Result<&Spanned<ListenAddr>, Failure> {
    admin.listen_addr.as_ref().ok_or_else(|| Failure::of("admin", "needs a listen_addr"))
}

impl Bound {
    /// Binds what the file's `admin` section says; without one there is no listener and nothing is recorded.
    pub(crate) fn new(
        admin: Option<&anyproxy_config::Admin>,
        dropped_lines: DroppedLines,
    ) -> Result<Option<Self>, Failure> {
        let Some(admin) = admin else { return Ok(None) };
        let address = address(admin)?;
        let listener = listen::bind("admin", &address.value)?.with_max_connections(MAX_CONNECTIONS);
        listen::announce("admin", &listener);
        let recorder = Recorder::install(dropped_lines)?;
        Ok(Some(Self { listener, recorder, user_labels: admin.user_labels.unwrap_or_default() }))
    }

    /// How many users the metrics tell apart.
    pub(crate) fn user_labels(&self) -> usize {
        self.user_labels.into()
    }

    /// Serves until `stop`.
    pub(crate) async fn serve(self, probe: Arc<dyn Probe>, stop: CancellationToken) {
        let Self { listener, recorder, .. } = self;
        let upkeep = recorder.clone();
        let upkeep = upkeep.keep_up(&stop);
        let connections = listener.serve(stop.clone(), {
            let stop = stop.clone();
            move |io, _source| {
                let (recorder, probe, stop) = (recorder.clone(), probe.clone(), stop.clone());
                async move {
                    let answer = service_fn(|request| {
                        let response = respond(&request, &recorder, &*probe);
                        async { Ok::<_, Infallible>(response) }
                    });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_TIMEOUT)
                        .serve_connection(TokioIo::new(io), answer);
                    // Idle scrapers do not hold a draining process up.
                    stop.run_until_cancelled(connection).await;
                }
            }
        });
        tokio::join!(upkeep, connections);
    }
}

/// What the program itself tells, beside its layers.
fn describe() {
    metrics::describe_gauge!("anyproxy_clients", "Clients connected");
    metrics::describe_gauge!("anyproxy_tunnels", "Tunnels that stand");
    metrics::describe_gauge!("anyproxy_unsent_bytes", "Bytes that wait to leave on tunnels");
    metrics::describe_gauge!("anyproxy_stream_memory_bytes", "What streams hold in this process");
    metrics::describe_gauge!("anyproxy_stream_memory_limit_bytes", "What they may hold: memory_limit");
    metrics::describe_histogram!(
        "anyproxy_tunnel_rtt_seconds",
        "Round trips of tunnels, one of each at every scrape"
    );
    metrics::describe_gauge!("anyproxy_queue_length", "Dials that wait for a place");
    metrics::describe_gauge!("anyproxy_waiting_for_client", "Dials that wait for a client");
    metrics::describe_counter!("anyproxy_udp_dropped_total", "Datagrams dropped, by reason");
    metrics::describe_counter!(
        "anyproxy_tunnel_datagrams_dropped_total",
        "Datagrams that found no room in a tunnel, in either direction"
    );
    metrics::describe_counter!(
        "anyproxy_waits_total",
        "Waits of threads for something to do, by whether they looked for it (busy_poll) or slept when it came"
    );
    metrics::describe_counter!("anyproxy_reloads_total", "SIGHUPs, by whether the file was taken over");
    metrics::describe_counter!(
        "anyproxy_log_lines_dropped_total",
        "Log lines nobody took in time, or that could not be written"
    );
}

fn respond(request: &Request<Incoming>, recorder: &Recorder, probe: &dyn Probe) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, recorder.render(probe)),
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET | &Method::HEAD, "/readyz") if probe.is_ready() => {
            (StatusCode::OK, "ready\n".to_owned())
        }
        (&Method::GET | &Method::HEAD, "/readyz") => {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned())
        }
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
