//! tower-http's layers around the front, as they are.

mod play;

use std::any::Any;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyproxy_core::{BoxError, BoxGateway};
use anyproxy_http::{HttpProxy, Requests, UserBody};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use play::{Stage, User};
use tower::layer::layer_fn;
use tower::util::MapRequestLayer;
use tower::{ServiceExt as _, service_fn};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use tracing::Span;

const GET: &str = "GET http://t.lan/ HTTP/1.1\r\nHost: t.lan\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// A request and its answer.
async fn ask(stage: &Stage, user: &mut User) -> (String, String) {
    user.say(GET).await;
    let mut target = stage.target().await;
    let heard = target.head().await;
    target.say(OK).await;
    let head = user.head().await;
    assert_eq!(user.take(5).await, "hello");
    (heard, head)
}

#[tokio::test]
async fn a_trace_layer_sees_requests_and_answers_and_bodies() {
    let stage = Stage::open();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (requests, responses, chunks) = (seen.clone(), seen.clone(), seen.clone());
    let layer = TraceLayer::new_for_http()
        .on_request(move |request: &Request<UserBody>, _: &Span| {
            requests.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
        })
        .on_response(move |response: &Response<_>, _: Duration, _: &Span| {
            responses.lock().unwrap().push(response.status().to_string());
        })
        .on_body_chunk(move |chunk: &Bytes, _: Duration, _: &Span| {
            chunks.lock().unwrap().push(String::from_utf8_lossy(chunk).into_owned());
        });
    let mut user = stage.user_of(HttpProxy::new(stage.stack()).layer(layer));
    ask(&stage, &mut user).await;
    assert_eq!(*seen.lock().unwrap(), ["GET http://t.lan/", "200 OK", "hello"]);
}

#[tokio::test(start_paused = true)]
async fn a_layer_may_take_its_time_and_the_whole_body_before_it_goes_on() {
    let stage = Stage::open();
    let layer = layer_fn(|inner: Requests<BoxGateway>| {
        service_fn(move |request: Request<UserBody>| {
            let inner = inner.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                // Longer than the user has for a head.
                tokio::time::sleep(Duration::from_secs(60)).await;
                inner.oneshot(Request::from_parts(head, Full::new(body))).await.map_err(BoxError::from)
            }
        })
    });
    let mut user = stage.user_of(HttpProxy::new(stage.stack()).layer(layer));
    // More than a connection may read without delivering any.
    user.say("POST http://t.lan/ HTTP/1.1\r\nHost: t.lan\r\nTransfer-Encoding: chunked\r\n\r\n40000\r\n")
        .await;
    user.say(&"x".repeat(0x40000)).await;
    user.say("\r\n0\r\n\r\n").await;
    tokio::select! {
        head = user.head() => panic!("{head}"),
        mut target = stage.target() => {
            target.head().await;
            target.say(OK).await;
        }
    }
    assert!(user.head().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_request_id_reaches_the_target_and_comes_back() {
    #[derive(Clone)]
    struct Seven;
    impl MakeRequestId for Seven {
        fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
            Some(RequestId::new(HeaderValue::from_static("seven")))
        }
    }
    let stage = Stage::open();
    let name = HeaderName::from_static("x-request-id");
    let proxy = HttpProxy::new(stage.stack())
        .layer(SetRequestIdLayer::new(name.clone(), Seven))
        .layer(PropagateRequestIdLayer::new(name));
    let mut user = stage.user_of(proxy);
    let (heard, answered) = ask(&stage, &mut user).await;
    assert!(heard.contains("x-request-id: seven\r\n"), "{heard}");
    assert!(answered.contains("x-request-id: seven\r\n"), "{answered}");
}

#[tokio::test]
async fn layers_see_a_number_of_its_own_on_each_request_and_its_logins_marked() {
    let stage = Stage::open();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let numbers = seen.clone();
    let look = MapRequestLayer::new(move |request: Request<UserBody>| {
        assert!(request.headers()["proxy-authorization"].is_sensitive());
        assert!(request.headers()["authorization"].is_sensitive());
        let number = request.extensions().get::<RequestId>().expect("a number").header_value().clone();
        numbers.lock().unwrap().push(number);
        request
    });
    let mut user = stage.user_of(HttpProxy::new(stage.stack()).layer(look));
    for _ in 0..2 {
        user.say("OPTIONS http://t.lan/ HTTP/1.1\r\nHost: t.lan\r\nMax-Forwards: 0\r\n").await;
        user.say("Proxy-Authorization: Basic eDp5\r\nAuthorization: Basic eDp5\r\n\r\n").await;
        assert!(user.head().await.starts_with("HTTP/1.1 200 "));
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2);
    assert_ne!(seen[0], seen[1]);
}

#[tokio::test]
async fn a_body_limit_refuses_what_says_its_length_before_it_is_dialled() {
    let stage = Stage::open();
    let mut user = stage.user_of(HttpProxy::new(stage.stack()).layer(RequestBodyLimitLayer::new(4)));
    user.say("POST http://t.lan/ HTTP/1.1\r\nHost: t.lan\r\nContent-Length: 5\r\n\r\nhello").await;
    assert!(user.head().await.starts_with("HTTP/1.1 413 "));
    assert_eq!(stage.dials(), 0);
}

#[tokio::test]
async fn a_body_limit_cuts_off_what_does_not_say_its_length() {
    let stage = Stage::open();
    let mut user = stage.user_of(HttpProxy::new(stage.stack()).layer(RequestBodyLimitLayer::new(4)));
    user.say("POST http://t.lan/ HTTP/1.1\r\nHost: t.lan\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    user.say("3\r\nabc\r\n").await;
    let mut target = stage.target().await;
    target.head().await;
    assert_eq!(target.take(8).await, "3\r\nabc\r\n");
    user.say("3\r\ndef\r\n0\r\n\r\n").await;
    // The target never sees an end of the body, so the request never looks complete.
    assert_eq!(target.rest().await, "");
    let head = user.head().await;
    assert!(head.starts_with("HTTP/1.1 4"), "{head}");
}

#[tokio::test]
async fn a_panic_in_a_layer_is_answered_as_its_owner_says() {
    let stage = Stage::open();
    let teapot = |_: Box<dyn Any + Send>| {
        Response::builder().status(418).body(Full::new(Bytes::new())).expect("a response")
    };
    let proxy = HttpProxy::new(stage.stack())
        .layer(CatchPanicLayer::custom(teapot))
        .layer(MapRequestLayer::new(|_: Request<UserBody>| -> Request<UserBody> { panic!("oh") }));
    let mut user = stage.user_of(proxy);
    user.say(GET).await;
    assert!(user.head().await.starts_with("HTTP/1.1 418 "));
}

#[tokio::test]
async fn all_of_them_together_and_the_front_still_forwards() {
    let stage = Stage::open();
    let proxy = HttpProxy::new(stage.stack())
        .layer(SetRequestIdLayer::x_request_id(tower_http::request_id::MakeRequestUuid))
        .layer(TraceLayer::new_for_http())
        .layer(CatchPanicLayer::new())
        .layer(RequestBodyLimitLayer::new(1 << 20));
    let mut user = stage.user_of(proxy);
    let (heard, _) = ask(&stage, &mut user).await;
    assert!(heard.contains("x-request-id: "), "{heard}");
    user.say("CONNECT t.lan:443 HTTP/1.1\r\nHost: t.lan:443\r\n\r\n").await;
    let mut target = stage.target().await;
    assert!(user.head().await.starts_with("HTTP/1.1 200 "));
    user.say("ping").await;
    assert_eq!(target.take(4).await, "ping");
}
