use std::convert::Infallible;
use std::error::Error as _;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use anyproxy_core::{
    BoxError, ByteStream, Dial, DialService, Front, GatewayStack, Login, Target, TraceParent,
};
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::ext::ReasonPhrase;
use tower::Service;
use tracing::debug;

use crate::ask::{Ask, Route, complete_websocket, credentials};
use crate::config::Config;
use crate::exchange::{self, Exchange, Left};
use crate::fields::{RequestHead, clean_response};
use crate::refusal::{Fault, Refusal};
use crate::reuse::Lease;
use crate::session::{Busy, Session};
use crate::wire::{Malformed, ResponseHead};

/// Not in `http::header`.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The streams that a gateway stack dials.
pub type StreamOf<M> = <<M as Service<Login>>::Response as Service<Dial>>::Response;

/// The requests of one user connection, as a tower service: what the layers of [`HttpProxy::layer`] wrap.
///
/// Each request logs in, is dialled through the whole stack and is answered: by its target, or by the proxy itself
/// where there is no answer to be had. It never fails: what went wrong is a response. Takes any request body, so that
/// layers may wrap it.
///
/// [`HttpProxy::layer`]: crate::HttpProxy::layer
pub struct Requests<M>(Arc<Served<M>>);

/// What all requests of a connection have in common.
struct Served<M> {
    stack: M,
    config: Arc<Config>,
    source: SocketAddr,
    session: Arc<Session>,
}

impl<M> Clone for Requests<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> fmt::Debug for Requests<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("source", &self.0.source).finish_non_exhaustive()
    }
}

impl<M> Requests<M> {
    pub(crate) fn new(stack: M, config: Arc<Config>, source: SocketAddr, session: Arc<Session>) -> Self {
        Self(Arc::new(Served { stack, config, source, session }))
    }
}

/// The answer to a request, on its way.
///
/// Boxed, since an `async` block has no name to write down; one allocation a request.
pub type ResponseFuture<S, B> =
    Pin<Box<dyn Future<Output = Result<Response<ResponseBody<S, B>>, Infallible>> + Send>>;

impl<M, B> Service<Request<B>> for Requests<M>
where
    M: GatewayStack,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    type Response = Response<ResponseBody<StreamOf<M>, B>>;
    type Error = Infallible;
    type Future = ResponseFuture<StreamOf<M>, B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let served = self.0.clone();
        let (mut parts, body) = request.into_parts();
        // Where there are layers, it began outside of them.
        let busy = parts.extensions.remove().unwrap_or_else(|| served.session.begin());
        served
            .session
            .begin_body(!body.is_end_stream(), parts.headers.contains_key(header::TRANSFER_ENCODING));
        let asked = Ask::read(&parts, &body, &served.config);
        let mut body = Some(body);
        Box::pin(async move {
            let answer = match asked {
                Ok(mut ask) => served.answer(&mut parts, &mut body, &mut ask, &busy).await,
                Err(refusal) => Err(refusal),
            };
            let mut answer = answer.unwrap_or_else(|refusal| {
                // What a refused CONNECT has sent already was meant for somebody else (RFC 9110 section 9.3.6), and what nobody
                // reads of a body is in the way of the next request (RFC 9112 section 9.3): even a small one that has arrived, since this
                // cannot be told from here. HTTP/2 tells them apart.
                let unread = body.as_ref().is_some_and(|body| !body.is_end_stream());
                let closes = unread || parts.method == Method::CONNECT;
                let refusal =
                    if closes && parts.version != Version::HTTP_2 { refusal.closing() } else { refusal };
                refusal.into_response(&served.config).map(|text| ResponseBody::whole(text, busy))
            });
            if parts.version == Version::HTTP_10 && answer.headers().contains_key(header::CONNECTION) {
                // In one of 1.1 hyper would say beside the close that the connection is kept.
                *answer.version_mut() = Version::HTTP_10;
            }
            Ok(answer)
        })
    }
}

/// What is long is lent, and made in functions that do not wait: the future of an `async fn` has room for each argument
/// twice, and for what was moved out of it.
impl<M: GatewayStack> Served<M> {
    async fn answer<B>(
        &self,
        parts: &mut Parts,
        body: &mut Option<B>,
        ask: &mut Ask,
        busy: &Busy,
    ) -> Result<Response<ResponseBody<StreamOf<M>, B>>, Refusal>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let credentials = credentials(&parts.headers)?;
        let login = self.stack.login(Login::new(credentials, self.source, Front::HTTP));
        let dials = login.await.map_err(|error| Refusal::of(&*error))?;
        if self.was_here(&parts.headers) {
            return Err(Refusal::proxy_loop());
        }
        match ask {
            Ask::Here if parts.method == Method::TRACE => Ok(trace(parts, busy.clone())),
            Ask::Here => Err(Refusal::options()),
            Ask::Tunnel(target) => self.tunnel(&dials, parts, target, busy).await,
            Ask::Forward(route) => self.forward(&dials, parts, body, route, busy).await,
        }
    }

    fn was_here(&self, headers: &HeaderMap) -> bool {
        let mut signatures = headers.get_all(header::VIA).iter().filter_map(|via| via.to_str().ok());
        signatures.any(|via| self.config.name.signed(via))
    }

    /// `CONNECT`: the stream is handed to whoever serves the connection, which relays it once the 200 has left.
    async fn tunnel<B>(
        &self,
        dials: &impl DialService<Response = StreamOf<M>>,
        parts: &Parts,
        target: &Target,
        busy: &Busy,
    ) -> Result<Response<ResponseBody<StreamOf<M>, B>>, Refusal> {
        let dial = Dial::tcp(target.clone(), self.source, Front::HTTP);
        let stream = dials.dial(dial).await.map_err(|error| Refusal::of(&*error).towards(target))?;
        hand_off(parts, stream, busy)?;
        Ok(Response::new(ResponseBody::whole(Bytes::new(), busy.clone())))
    }

    async fn forward<B>(
        &self,
        dials: &impl DialService<Response = StreamOf<M>>,
        parts: &mut Parts,
        body: &mut Option<B>,
        route: &mut Route,
        busy: &Busy,
    ) -> Result<Response<ResponseBody<StreamOf<M>, B>>, Refusal>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        if route.extended {
            parts.method = Method::GET;
            route.proof = complete_websocket(&mut parts.headers);
        }
        let left = Left::of(route.body);
        // A stream that was kept may have been closed by its target at this very moment. What certainly changes
        // nothing twice is then asked again, on a new one.
        let may_repeat = left.is_none() && parts.method.is_idempotent();
        let parent = trace_parent(&parts.headers);
        let mut said = BytesMut::new();
        let mut fresh = false;
        loop {
            let (lease, dialled) = self.dial(dials, &route.target, parent.clone(), fresh);
            let stream = dialled.await.map_err(|error| Refusal::of(&*error).towards(&route.target))?;
            if !fresh {
                said = self.say(parts, route, !lease.is_served());
            }
            let repeats = may_repeat && lease.is_reused();
            let request = exchange::Request {
                method: parts.method.clone(),
                head: if repeats { said.clone() } else { std::mem::take(&mut said) },
                body: left.and_then(|left| Some((body.take()?, left))),
                expects: route.expects,
                upgrades: route.upgrade.is_some(),
            };
            let mut exchange = Box::new(Exchange::new(stream, request, lease, busy.clone(), &self.config));
            match poll_fn(|cx| exchange.poll_response(cx)).await {
                Ok(head) => return self.respond(parts, route, head, exchange),
                Err(fault) if repeats && fault.is_unheard() => {
                    debug!(target = %route.target, "a kept stream had ended, dialling anew");
                    fresh = true;
                }
                Err(fault) => {
                    let refusal = Refusal::from(fault).towards(&route.target);
                    return Err(if exchange.has_sent() { refusal } else { refusal.closing() });
                }
            }
        }
    }

    /// Dials; the answer may be a kept stream unless a `fresh` one is asked for.
    fn dial<D: DialService<Response = StreamOf<M>>>(
        &self,
        dials: &D,
        target: &Target,
        parent: Option<TraceParent>,
        fresh: bool,
    ) -> (Lease, impl Future<Output = Result<StreamOf<M>, BoxError>> + Send + use<M, D>) {
        let lease = Lease::new(self.session.park.clone(), fresh);
        let mut dial = Dial::tcp(target.clone(), self.source, Front::HTTP);
        lease.attach(&mut dial);
        if let Some(parent) = parent {
            dial.extensions.insert(parent);
        }
        (lease, dials.dial(dial))
    }

    /// The head for the target. Takes the user's apart: its fields are slices of what the user's connection was read
    /// into, and a long response need not hold that.
    fn say(&self, parts: &mut Parts, route: &Route, close: bool) -> BytesMut {
        let (uri, headers) = (std::mem::take(&mut parts.uri), std::mem::take(&mut parts.headers));
        let mut head = BytesMut::new();
        let said = RequestHead {
            method: &parts.method,
            path: uri.path_and_query().map_or("/", |path| path.as_str()),
            host: &route.host,
            headers: &headers,
            version: parts.version,
            body: route.body,
            upgrade: route.upgrade.as_ref(),
            max_forwards: route.max_forwards,
            close,
        };
        said.encode(&mut head, &self.config.name);
        head
    }

    /// What the user gets of a target's response.
    fn respond<B>(
        &self,
        parts: &Parts,
        route: &Route,
        head: ResponseHead,
        mut exchange: Box<Exchange<StreamOf<M>, B>>,
    ) -> Result<Response<ResponseBody<StreamOf<M>, B>>, Refusal>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(parts, route, head, &mut exchange);
        }
        if route.extended && head.status.is_success() {
            // To the user it would say that the WebSocket is open (RFC 8441 section 5); the target has not changed its
            // protocol.
            return Err(not_switched(route));
        }
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        if let Some(reason) = head.reason.and_then(|reason| ReasonPhrase::try_from(reason).ok()) {
            response.extensions_mut().insert(reason);
        }
        let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = exchange.length().filter(|_| !bodiless);
        let mut headers = head.headers;
        clean_response(&mut headers, head.http_11, length, &self.config.name);
        // To a user of HTTP/1.0, a response without a length ends with the connection.
        let ends_with_connection = parts.version == Version::HTTP_10 && !exchange.has_length();
        if ends_with_connection || (!exchange.will_be_sent() && parts.version != Version::HTTP_2) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        *response.headers_mut() = headers;
        exchange.busy().session().set_delivering();
        if ends_with_connection {
            exchange.busy().session().set_unframed();
        }
        Ok(response.map(|()| ResponseBody(Kind::Exchange { exchange, ends_with_connection })))
    }

    /// The target has changed its protocol, as the user had asked.
    fn switch<B>(
        &self,
        parts: &Parts,
        route: &Route,
        head: ResponseHead,
        exchange: &mut Exchange<StreamOf<M>, B>,
    ) -> Result<Response<ResponseBody<StreamOf<M>, B>>, Refusal>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        if route.proof.is_some() {
            // Whoever answers 101 without it has not read the request as a WebSocket's.
            let mut accepts = head.headers.get_all(header::SEC_WEBSOCKET_ACCEPT).iter();
            if accepts.next() != route.proof.as_ref() || accepts.next().is_some() {
                return Err(not_switched(route));
            }
        }
        let busy = exchange.busy().clone();
        let protocol = head.headers.get(header::UPGRADE).cloned();
        let mut headers = head.headers;
        clean_response(&mut headers, head.http_11, None, &self.config.name);
        if let Some(stream) = exchange.take_stream() {
            hand_off(parts, stream, &busy)?;
        }
        let mut response = Response::new(ResponseBody::whole(Bytes::new(), busy));
        if route.extended {
            headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        } else {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.extend(protocol.map(|protocol| (header::UPGRADE, protocol)));
        }
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// The target answers a WebSocket's request as something else.
fn not_switched(route: &Route) -> Refusal {
    Refusal::from(Fault::Malformed(Malformed::Upgrade)).towards(&route.target)
}

/// The trace the user's request belongs to: the dial continues it, and the target is told of it as it is. Two contexts
/// are none (Trace Context section 3.2.1).
fn trace_parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let only = values.next().filter(|_| values.next().is_none())?;
    TraceParent::parse(only.to_str().ok()?)
}

/// What was received, sent back (RFC 9110 section 9.3.8), without what identifies the user.
fn trace<S, B>(parts: &Parts, busy: Busy) -> Response<ResponseBody<S, B>> {
    let secret = |name: &HeaderName| {
        matches!(*name, header::AUTHORIZATION | header::COOKIE) || name.as_str().starts_with("proxy-")
    };
    let mut echo = BytesMut::new();
    echo.extend_from_slice(format!("{} {} {:?}\r\n", parts.method, parts.uri, parts.version).as_bytes());
    for (name, value) in parts.headers.iter().filter(|(name, _)| !secret(name)) {
        crate::wire::encode_field(&mut echo, name.as_str(), value.as_bytes());
    }
    echo.extend_from_slice(b"\r\n");
    let mut response = Response::new(ResponseBody::whole(echo.freeze(), busy));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("message/http"));
    response
}

// === Handoff ===

/// Where a request leaves the stream of an accepted `CONNECT` or upgrade, for whoever serves the connection. Rides in
/// the request's extensions.
pub(crate) struct Handoff<S>(Arc<Mutex<Option<S>>>);

impl<S> Clone for Handoff<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Default for Handoff<S> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<S> Handoff<S> {
    pub(crate) fn take(&self) -> Option<S> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Leaves the stream for whoever serves the connection. What the user is given from here on is a target's.
fn hand_off<S: ByteStream>(parts: &Parts, stream: S, busy: &Busy) -> Result<(), Refusal> {
    // Lost only if a layer has made a new request of the user's.
    let handoff = parts.extensions.get::<Handoff<S>>().ok_or_else(Refusal::panicked)?;
    *handoff.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    busy.session().set_delivering();
    Ok(())
}

// === ResponseBody ===

/// The body of an answer: a target's, as it comes, or the proxy's own words.
pub struct ResponseBody<S, B>(Kind<S, B>);

enum Kind<S, B> {
    Whole { text: Option<Bytes>, _busy: Busy },
    Exchange { exchange: Box<Exchange<S, B>>, ends_with_connection: bool },
}

impl<S, B> ResponseBody<S, B> {
    fn whole(text: Bytes, busy: Busy) -> Self {
        Self(Kind::Whole { text: Some(text).filter(|text| !text.is_empty()), _busy: busy })
    }
}

impl<S, B> fmt::Debug for ResponseBody<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Whole { .. } => "ResponseBody::Whole",
            Kind::Exchange { .. } => "ResponseBody::Exchange",
        })
    }
}

impl<S, B> Body for ResponseBody<S, B>
where
    S: ByteStream,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Whole { text, .. } => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::Exchange { exchange, ends_with_connection } => {
                Pin::new(&mut **exchange).poll_frame(cx).map_err(|fault| {
                    debug!(error = %fault, cause = ?fault.source().map(ToString::to_string), "response cut off");
                    if *ends_with_connection {
                        exchange.busy().session().set_broken();
                    }
                    fault.into()
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole { text, .. } => text.is_none(),
            Kind::Exchange { exchange, .. } => exchange.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole { text, .. } => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Exchange { exchange, .. } => exchange.size_hint(),
        }
    }
}
