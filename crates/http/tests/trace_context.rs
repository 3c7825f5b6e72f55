//! A user's trace goes on in the dial, and at the target.
#![allow(clippy::unwrap_used, reason = "tests")]

mod play;

use std::future::ready;
use std::io;
use std::sync::{Arc, Mutex};

use anyproxy_core::{Dial, TraceParent};
use anyproxy_http::HttpProxy;
use play::Stage;
use tokio::io::BufReader;
use tower::make::Shared;

const CONTEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// What the dial and the target are told of a request with these fields.
async fn told(fields: &str) -> (Option<String>, String) {
    let dialled = Arc::new(Mutex::new(None));
    let seen = dialled.clone();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let near = Arc::new(Mutex::new(Some(near)));
    let dials = tower::service_fn(move |dial: Dial| {
        *seen.lock().unwrap() = dial.extensions.get::<TraceParent>().map(TraceParent::to_string);
        let near = near.lock().unwrap().take();
        ready::<io::Result<_>>(near.map(BufReader::new).ok_or_else(|| io::ErrorKind::NotConnected.into()))
    });
    let mut user = Stage::open().user_of(HttpProxy::new(Shared::new(dials)));
    user.say(&format!("GET http://t.lan/ HTTP/1.1\r\nHost: t.lan\r\n{fields}\r\n")).await;
    let mut target = play::Target { name: String::new(), io: far };
    let head = target.head().await;
    let dialled = dialled.lock().unwrap().take();
    (dialled, head)
}

#[tokio::test]
async fn a_trace_context_is_continued_and_sent_on_as_it_is() {
    let (dialled, head) = told(&format!("traceparent: {CONTEXT}\r\ntracestate: a=b\r\n")).await;
    assert_eq!(dialled.as_deref(), Some(CONTEXT));
    assert!(
        head.contains(&format!("traceparent: {CONTEXT}\r\n")) && head.contains("tracestate: a=b\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn what_is_no_trace_context_or_two_is_none() {
    for fields in
        ["", "traceparent: 00-1-2-3\r\n", &format!("traceparent: {CONTEXT}\r\ntraceparent: {CONTEXT}\r\n")]
    {
        assert_eq!(told(fields).await.0, None, "{fields:?}");
    }
}
