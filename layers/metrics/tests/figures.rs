//! What the layer counts, read back from an exporter as an operator would read it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::io;
use std::time::Duration;

use anyproxy_core::{
    Account, Association, Credentials, Dial, DialService as _, Front, GatewayStack as _, Login, Outcome,
    Refusal, Target,
};
use anyproxy_metrics::MetricsLayer;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, duplex, empty, join, sink};
use tower::{Layer as _, service_fn};

type Stream = BufReader<DuplexStream>;

fn recorded() -> (MetricsLayer, PrometheusHandle) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    (
        metrics::with_local_recorder(&recorder, || {
            let layer = MetricsLayer::new();
            // Handles are taken when a front is first seen.
            layer.seen(Front::HTTP);
            layer
        }),
        handle,
    )
}

fn dial() -> Dial {
    Dial::tcp(Target::parse("printer.lan:631").unwrap(), "192.0.2.1:4000".parse().unwrap(), Front::HTTP)
}

#[track_caller]
fn assert_line(handle: &PrometheusHandle, line: &str) {
    let text = handle.render();
    assert!(text.lines().any(|found| found == line), "{line} not in\n{text}");
}

#[tokio::test]
async fn a_stream_counts_from_its_dial_to_its_last_byte() {
    let (layer, handle) = recorded();
    let dials = layer.layer(service_fn(|_: Dial| async {
        let (near, mut far) = duplex(64);
        far.write_all(b"hello").await?;
        Ok::<Stream, io::Error>(BufReader::new(near))
    }));
    let mut stream = dials.dial(dial()).await.unwrap();
    assert_line(&handle, r#"anyproxy_streams_open{front="http"} 1"#);
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    assert_line(&handle, r#"anyproxy_streams_open{front="http"} 0"#);
    assert_line(&handle, r#"anyproxy_bytes_total{front="http",direction="down"} 5"#);
    assert_line(&handle, r#"anyproxy_streams_ended_total{front="http",end="whole"} 1"#);
    assert_line(&handle, r#"anyproxy_dials_total{front="http",network="tcp",outcome="ok"} 1"#);
}

#[tokio::test]
async fn of_datagrams_the_payloads_are_counted() {
    let (layer, handle) = recorded();
    let dials =
        layer.layer(service_fn(|_: Dial| async { Ok::<_, io::Error>(join(&b"\0\x05hello"[..], sink())) }));
    let (association, dial) = (Association::new(), dial());
    let dial = Dial::udp(association, dial.target, dial.source, dial.front);
    let mut stream = dials.dial(dial).await.unwrap();
    stream.write_all(b"\0\x02hi").await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    assert_line(&handle, r#"anyproxy_bytes_total{front="http",direction="up"} 2"#);
    assert_line(&handle, r#"anyproxy_bytes_total{front="http",direction="down"} 5"#);
}

#[tokio::test]
async fn what_the_client_says_of_connecting_is_a_phase_of_its_own() {
    let (layer, handle) = recorded();
    let dials = layer.layer(service_fn(|dial: Dial| async move {
        // To the second of these targets there is a stream already.
        if dial.target.port() == 631 {
            dial.journal.add_opening(Duration::from_millis(4));
            dial.journal.add_connecting(Duration::from_millis(3));
        }
        Ok::<Stream, io::Error>(BufReader::new(duplex(1).0))
    }));
    dials.dial(dial()).await.unwrap();
    dials.dial(Dial { target: Target::parse("printer.lan:80").unwrap(), ..dial() }).await.unwrap();
    assert_line(&handle, r#"anyproxy_dial_seconds_count{phase="open"} 1"#);
    assert_line(&handle, r#"anyproxy_dial_seconds_count{phase="connect"} 1"#);
    assert_line(&handle, r#"anyproxy_dial_seconds_sum{phase="connect"} 0.003"#);
}

#[tokio::test]
async fn a_refusal_and_a_cancelled_dial_are_counted_apart() {
    let (layer, handle) = recorded();
    let refused =
        layer.layer(service_fn(|_: Dial| async { Err::<Stream, _>(io::Error::other(Outcome::Refused)) }));
    refused.dial(dial()).await.unwrap_err();
    assert_line(&handle, r#"anyproxy_dials_total{front="http",network="tcp",outcome="refused"} 1"#);

    let never = layer.layer(service_fn(|_: Dial| std::future::pending::<Result<Stream, io::Error>>()));
    let mut waiting = Box::pin(never.dial(dial()));
    assert!(futures_poll(&mut waiting).await.is_none());
    drop(waiting);
    assert_line(&handle, r#"anyproxy_dials_total{front="http",network="tcp",outcome="cancelled"} 1"#);
}

#[tokio::test]
async fn o3_users_are_told_apart_up_to_a_number_and_only_if_asked_for() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let handle = recorder.handle();
    let crowd = async |layer: MetricsLayer| {
        let dials = layer.layer(service_fn(|_: Dial| async { Ok::<_, io::Error>(join(empty(), sink())) }));
        for user in 0..1_000 {
            let identity = Account::new(format!("user-{user}"), ["blue"]).into();
            let mut stream = dials.dial(Dial { identity, ..dial() }).await.unwrap();
            stream.write_all(b"up").await.unwrap();
        }
    };
    crowd(MetricsLayer::new()).await;
    let series = || handle.render().lines().filter(|line| line.starts_with("anyproxy_")).count();
    let without = series();
    crowd(MetricsLayer::new().with_user_labels(0)).await;
    assert_eq!(series(), without);
    assert!(!handle.render().contains("user"));

    crowd(MetricsLayer::new().with_user_labels(2)).await;
    assert_eq!(series(), without + 3 * 6);
    for (user, dials) in [("user-0", 1), ("user-1", 1), ("other", 998)] {
        assert_line(&handle, &format!(r#"anyproxy_user_dials_total{{user="{user}",verdict="ok"}} {dials}"#));
        assert_line(
            &handle,
            &format!(r#"anyproxy_user_bytes_total{{user="{user}",direction="up"}} {}"#, 2 * dials),
        );
        assert_line(&handle, &format!(r#"anyproxy_user_streams_open{{user="{user}"}} 0"#));
    }
}

#[tokio::test]
async fn all_that_a_dial_counts_goes_to_the_recorder_of_the_moment_its_front_is_seen() {
    let layer = MetricsLayer::new();
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || layer.seen(Front::HTTP));
    let dials = layer.layer(service_fn(|_: Dial| async { Ok::<_, io::Error>(join(empty(), sink())) }));
    dials.dial(dial()).await.unwrap();
    assert_line(&recorder.handle(), r#"anyproxy_dials_total{front="http",network="tcp",outcome="ok"} 1"#);
    assert_line(&recorder.handle(), r#"anyproxy_dial_seconds_count{phase="total"} 1"#);
}

#[tokio::test]
async fn users_without_a_name_are_told_apart_beside_the_number() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let layer = MetricsLayer::new().with_user_labels(1);
    let dials = layer.layer(service_fn(|_: Dial| async { Ok::<_, io::Error>(join(empty(), sink())) }));
    let named = |user| Dial { identity: Account::new(user, ["blue"]).into(), ..dial() };
    for dial in [dial(), named("alice"), named("bob"), dial()] {
        dials.dial(dial).await.unwrap();
    }
    for (user, dials) in [("-", 2), ("alice", 1), ("other", 1)] {
        let line = format!(r#"anyproxy_user_dials_total{{user="{user}",verdict="ok"}} {dials}"#);
        assert_line(&recorder.handle(), &line);
    }
}

#[tokio::test]
async fn refusals_are_counted_by_the_layer_that_their_error_names() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let (layer, handle) = (MetricsLayer::new(), recorder.handle());
    let says = |error: fn() -> io::Error| {
        layer.layer(service_fn(move |_: Dial| async move { Err::<Stream, _>(error()) }))
    };
    let office = says(|| io::Error::other(Refusal::new("office_hours", Outcome::Denied)));
    for _ in 0..2 {
        office.dial(dial()).await.unwrap_err();
    }
    says(|| io::ErrorKind::ConnectionRefused.into()).dial(dial()).await.unwrap_err();
    assert_line(&handle, r#"anyproxy_refusals_total{layer="office_hours",outcome="denied"} 2"#);
    assert_eq!(handle.render().matches("\nanyproxy_refusals_total{").count(), 1, "the target is no layer");
}

#[tokio::test]
async fn wrong_logins_are_counted() {
    let (layer, handle) = recorded();
    type Dials = tower::util::BoxCloneSyncService<Dial, Stream, io::Error>;
    let logins = layer
        .layer(service_fn(|_: Login| async { Err::<Dials, _>(io::Error::other(Outcome::LoginRequired)) }));
    // The first asks for a login, as all do that are told 407; the second is wrong.
    for credentials in [None, Some(Credentials::new("alice", "wrong"))] {
        let login = Login::new(credentials, "192.0.2.1:4000".parse().unwrap(), Front::HTTP);
        logins.login(login).await.map(drop).unwrap_err();
    }
    assert_line(&handle, r#"anyproxy_logins_total{front="http",outcome="login_required"} 1"#);
}

async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| match std::pin::Pin::new(&mut *future).poll(cx) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}
