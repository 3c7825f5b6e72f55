//! Spans of dials for OpenTelemetry, where the program was built with the feature `otlp`; without it, nothing.
//!
//! Exported is what the two ends do for a dial: `dial` at the gateway, with what the user sent along (W3C
//! `traceparent`) as its parent, and `open` at the client, below it. The usual variables say where to and how much
//! (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, …); without an endpoint nothing is exported. The exporter
//! speaks OTLP in protobuf over HTTP without TLS, so it wants a collector beside it.

#[cfg(not(feature = "otlp"))]
pub(crate) use off::hand_on;
#[cfg(feature = "otlp")]
pub(crate) use on::{Export, hand_on, start};

#[cfg(not(feature = "otlp"))]
mod off {
    use anyproxy_core::Dial;

    /// Nobody listens, so a user's context goes on to the client as it came.
    pub(crate) const fn hand_on(dial: Dial) -> Dial {
        dial
    }
}

#[cfg(feature = "otlp")]
mod on {
    use std::env;
    use std::error::Error;
    use std::future::{Future, ready};
    use std::pin::Pin;
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use anyproxy_core::{Dial, TraceParent};
    use bytes::Bytes;
    use http::{Request, Response};
    use opentelemetry::trace::{
        SpanBuilder, SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer,
        TracerProvider as _,
    };
    use opentelemetry::{Context, Value};
    use opentelemetry_http::{HttpClient, HttpError, hyper::HyperClient};
    use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
    use tokio::runtime::{Builder, Runtime};
    use tracing::Metadata;
    use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt as _};
    use tracing_subscriber::Layer as _;
    use tracing_subscriber::filter::{FilterFn, Filtered};
    use tracing_subscriber::registry::Registry;

    /// How long the collector may take for a batch, and how long the last one may hold the program back.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// A span's field that names the span it continues.
    const TRACE_PARENT: &str = "traceparent";

    /// What a subscriber is given.
    pub(crate) type Spans = Filtered<OpenTelemetryLayer<Registry, Continuing>, FilterFn, Registry>;

    /// Keeps the exporting thread; dropping it sends what is left.
    pub(crate) struct Export(SdkTracerProvider);

    impl Drop for Export {
        fn drop(&mut self) {
            // It has said itself what failed.
            let _ = self.0.shutdown_with_timeout(PATIENCE);
        }
    }

    /// Starts to export, if the environment says where to.
    pub(crate) fn start() -> Result<Option<(Spans, Export)>, Box<dyn Error + Send + Sync>> {
        let wanted = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
        if wanted.iter().all(|name| env::var_os(name).is_none_or(|value| value.is_empty())) {
            return Ok(None);
        }
        export(SpanExporter::builder().with_http().with_http_client(Post::new()?).build()?).map(Some)
    }

    fn export(exporter: SpanExporter) -> Result<(Spans, Export), Box<dyn Error + Send + Sync>> {
        let mut resource = Resource::builder();
        if env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("anyproxy");
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(exporter)
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(Continuing(provider.tracer("anyproxy")))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_level(false)
            .with_target(false);
        let ours = |metadata: &Metadata<'_>| {
            metadata.is_span()
                && metadata.target().starts_with("anyproxy")
                && matches!(metadata.name(), "dial" | "open")
        };
        Ok((layer.with_filter(FilterFn::new(ours as fn(&Metadata<'_>) -> bool)), Export(provider)))
    }

    /// Makes the present span what the client continues, if it is exported.
    pub(crate) fn hand_on(mut dial: Dial) -> Dial {
        let context = tracing::Span::current().context();
        let span = context.span();
        let span = span.span_context();
        if span.is_valid() {
            let (trace, id, flags) = (span.trace_id(), span.span_id(), span.trace_flags().to_u8());
            if let Some(parent) = TraceParent::parse(&format!("00-{trace}-{id}-{flags:02x}")) {
                dial.extensions.insert(parent);
            }
        }
        dial
    }

    /// Makes spans children of the one their field `traceparent` names: those who open them know nothing of
    /// OpenTelemetry.
    pub(crate) struct Continuing(SdkTracer);

    impl Tracer for Continuing {
        type Span = <SdkTracer as Tracer>::Span;

        fn build_with_context(&self, builder: SpanBuilder, parent: &Context) -> Self::Span {
            match continued(&builder) {
                Some(span) => self.0.build_with_context(builder, &parent.with_remote_span_context(span)),
                None => self.0.build_with_context(builder, parent),
            }
        }
    }

    fn continued(builder: &SpanBuilder) -> Option<SpanContext> {
        let field = builder.attributes.iter().flatten().find(|field| field.key.as_str() == TRACE_PARENT)?;
        let Value::String(text) = &field.value else { return None };
        let parent = TraceParent::parse(text.as_str())?;
        let mut parts = parent.as_str().split('-').skip(1);
        let trace = TraceId::from_hex(parts.next()?).ok()?;
        let span = SpanId::from_hex(parts.next()?).ok()?;
        let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?);
        Some(SpanContext::new(trace, span, flags, true, TraceState::default()))
    }

    /// Sends batches. Called on the exporter's own thread, which has no runtime and may wait.
    #[derive(Debug)]
    struct Post {
        runtime: Mutex<Runtime>,
        client: HyperClient,
    }

    impl Post {
        fn new() -> std::io::Result<Self> {
            let runtime = Mutex::new(Builder::new_current_thread().enable_all().build()?);
            Ok(Self { runtime, client: HyperClient::with_default_connector(PATIENCE, None) })
        }
    }

    impl HttpClient for Post {
        fn send_bytes<'a, 'b>(
            &'a self,
            request: Request<Bytes>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
            Box::pin(ready(runtime.block_on(self.client.send_bytes(request))))
        }
    }

    #[cfg(test)]
    mod tests {
        use std::io::{Read as _, Write as _};
        use std::net::TcpListener;
        use std::thread;

        use anyproxy_core::{Front, Target};
        use opentelemetry_otlp::WithExportConfig as _;
        use tracing_subscriber::layer::SubscriberExt as _;

        use super::*;

        const CONTEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

        #[test]
        fn a_dial_continues_the_user_s_trace_and_hands_its_own_span_on() {
            let collector = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}/v1/traces", collector.local_addr().unwrap());
            let collected = thread::spawn(move || {
                let (mut connection, _) = collector.accept().unwrap();
                let (mut all, mut some) = (Vec::new(), [0; 4096]);
                while !all.windows(b"open".len()).any(|name| name == b"open") {
                    let read = connection.read(&mut some).unwrap();
                    assert!(read > 0, "the batch ended without the span");
                    all.extend_from_slice(&some[..read]);
                }
                connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                all
            });
            let exporter = SpanExporter::builder().with_http().with_http_client(Post::new().unwrap());
            let (spans, export) = export(exporter.with_endpoint(endpoint).build().unwrap()).unwrap();
            let handed = tracing::subscriber::with_default(
                tracing_subscriber::registry().with(spans),
                || {
                    let span = tracing::debug_span!(target: "anyproxy_trace", "dial", traceparent = CONTEXT);
                    let dial = span.in_scope(|| {
                        let target = Target::parse("printer.lan:631").unwrap();
                        hand_on(Dial::tcp(target, ([192, 0, 2, 1], 4000).into(), Front::HTTP))
                    });
                    let handed = dial.extensions.get::<TraceParent>().unwrap().clone();
                    drop(span);
                    drop(
                        tracing::debug_span!(target: "anyproxy_client", "open", traceparent = handed.as_str()),
                    );
                    drop(tracing::debug_span!(target: "anyproxy_tunnel", "tunnel"));
                    handed
                },
            );
            drop(export);
            // The same trace, and the dial's span instead of the user's.
            assert_eq!(handed.as_str()[..35], CONTEXT[..35]);
            assert_ne!(handed.as_str()[36..52], CONTEXT[36..52]);

            let sent = collected.join().unwrap();
            let has = |bytes: &[u8]| sent.windows(bytes.len()).any(|window| window == bytes);
            let hex = |text: &str| u128::from_str_radix(text, 16).unwrap().to_be_bytes();
            assert!(sent.starts_with(b"POST /v1/traces HTTP/1.1\r\n"));
            assert!(has(&hex(&CONTEXT[3..35])), "the trace");
            assert!(has(&hex(&CONTEXT[36..52])[8..]), "the user's span");
            assert!(has(&hex(&handed.as_str()[36..52])[8..]), "the dial's span");
            assert!(has(b"anyproxy") && has(b"dial") && !has(b"tunnel"));
        }
    }
}
