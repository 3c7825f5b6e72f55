use std::any::TypeId;
use std::fmt;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyproxy_core::{BoxError, GatewayStack};
use anyproxy_front::{Connection, Listener, Relay, UserStream};
use bytes::{Bytes, BytesMut};
use http::header::{self, Entry, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tower::layer::util::{Identity, Stack};
use tower::{Layer, Service, ServiceBuilder, ServiceExt as _};
use tower_http::body::UnsyncBoxBody;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::RequestId;
use tracing::{debug, error};

use crate::body::UserBody;
use crate::config::Config;
use crate::refusal::Refusal;
use crate::requests::{Handoff, Requests, StreamOf};
use crate::session::{Session, Watched};

/// How long a connection that is closed may go on sending before it is cut off, and how much: closing while bytes
/// arrive is a reset, which can take the last response away from its reader. HTTP/2 waits as long for an answer to its
/// farewell, and for streams whose end came with the connection's.
pub(crate) const LINGER: Duration = Duration::from_secs(2);
/// Some fill of the sockets between: one who uploads and is refused reads why only between two writes.
const LINGER_BYTES: usize = 2 * 1024 * 1024;

/// An HTTP proxy in front of a gateway stack.
///
/// Cheap to clone; clones are the same front. See the [crate](crate) for what it speaks.
#[derive(Clone)]
pub struct HttpProxy<M, L = Identity> {
    stack: M,
    layers: L,
    config: Arc<Config>,
}

impl<M> HttpProxy<M> {
    /// A front that logs in and dials through `stack`, with the default [`Config`].
    pub fn new(stack: M) -> Self {
        Self { stack, layers: Identity::new(), config: Arc::default() }
    }
}

impl<M, L> HttpProxy<M, L> {
    /// Replaces the settings; see [`Config`] for the ranges that they are brought into.
    #[must_use]
    pub fn with_config(mut self, config: Config) -> Self {
        self.config = Arc::new(config.in_range());
        self
    }

    /// Wraps the requests of every connection in a layer of tower or tower-http, inside those added before.
    ///
    /// Outside of them the front has its own: panics become 500, every request has a
    /// [`RequestId`], and logins are marked as sensitive. A layer's error becomes the
    /// response its [`Outcome`](anyproxy_core::Outcome) means.
    ///
    /// ```
    /// use anyproxy_http::HttpProxy;
    /// use tower_http::limit::RequestBodyLimitLayer;
    ///
    /// # fn proxy(stack: impl anyproxy_core::GatewayStack) {
    /// let proxy = HttpProxy::new(stack).layer(RequestBodyLimitLayer::new(1024 * 1024));
    /// # }
    /// ```
    #[must_use]
    pub fn layer<T>(self, layer: T) -> HttpProxy<M, Stack<T, L>> {
        HttpProxy { stack: self.stack, layers: Stack::new(layer, self.layers), config: self.config }
    }
}

impl<M, L> fmt::Debug for HttpProxy<M, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxy").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A service that answers requests: what a [layer](HttpProxy::layer) of the front must make of [`Requests`].
///
/// An alias: whatever fits is one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not answer the requests of an HTTP front",
    note = "it must be `Clone + Send`, take `Request<UserBody>` and answer with a `Response` whose body yields `Bytes`"
)]
pub trait RequestService:
    Service<Request<UserBody>, Response = Response<Self::Body>, Error: Into<BoxError>, Future: Send + 'static>
    + Clone
    + Send
    + 'static
{
    /// Of the responses.
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> RequestService for S
where
    S: Service<Request<UserBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}

/// The body of an answer, its type forgotten behind the layers.
pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

impl<M, L> HttpProxy<M, L>
where
    M: GatewayStack,
    L: Layer<Requests<M>, Service: RequestService> + Clone + Send + Sync + 'static,
{
    /// Serves the users of `listener` until `stop`; then lets them finish what is under way and returns with the last
    /// of them. Users whose TLS handshake chose `h2` (ALPN) are served HTTP/2, all others HTTP/1.1.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends every connection.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let stopping = stop.clone();
        listener
            .serve(stop, move |user: UserStream, source| {
                let (proxy, stop) = (self.clone(), stopping.clone());
                async move {
                    let http2 = user.tls().and_then(|tls| tls.alpn_protocol()) == Some(b"h2");
                    if http2 {
                        proxy.serve_http2(user, source, &stop).await;
                    } else {
                        proxy.serve_connection(user, source, &stop).await;
                    }
                }
            })
            .await;
    }

    /// Serves HTTP/1.1 and 1.0 on one connection until it ends, the bytes behind a `CONNECT` or an upgrade included.
    /// After `stop`, the response under way is its last.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the connection and whatever was under way on it.
    #[expect(
        clippy::manual_async_fn,
        reason = "`Send` is proved here, for any stack: rustc fails at it where one with boxed errors is spawned"
    )]
    pub fn serve_connection<U: Connection>(
        &self,
        user: U,
        source: SocketAddr,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + Send {
        async move {
            // Boxed, so that a relay that lasts for hours does not keep the room of an HTTP machine.
            let session = Session::new(&self.config);
            let park = session.park.clone();
            let served = Box::pin(self.speak_http1(user, source, session, stop)).await;
            let Some((user, early, stream)) = served else { return Box::pin(park.close()).await };
            let relay = Relay::new(user, stream, self.config.relay).with_early(early);
            let (end, ()) = tokio::join!(relay, Box::pin(async move { park.close().await }));
            debug!(%source, %end, "tunnel closed");
        }
    }

    /// Serves HTTP/2 on one connection until it ends, its tunnels included. After `stop` no new requests are taken.
    ///
    /// # Cancel safety
    ///
    /// As [`serve_connection`](Self::serve_connection).
    #[expect(
        clippy::manual_async_fn,
        reason = "`Send` is proved here, for any stack: rustc fails at it where one with boxed errors is spawned"
    )]
    pub fn serve_http2<U: Connection>(
        &self,
        user: U,
        source: SocketAddr,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + Send {
        async move {
            let session = Session::new(&self.config);
            let service = self.service(source, &session);
            let user = Watched::new(user, session.clone(), &self.config, true);
            let handoff = Handoff::<StreamOf<M>>::default;
            let served = crate::http2::serve(user, service, handoff, &self.config, &session, stop);
            if let Err(error) = Box::pin(served).await {
                debug!(%source, error = ?error.to_string(), "connection ended");
            }
            session.park.close().await;
        }
    }

    /// The part of a connection that is HTTP: ends with what a relay needs if a tunnel was opened.
    async fn speak_http1<U: Connection>(
        &self,
        user: U,
        source: SocketAddr,
        session: Arc<Session>,
        stop: &CancellationToken,
    ) -> Option<(U, Bytes, StreamOf<M>)> {
        let handoff = Handoff::<StreamOf<M>>::default();
        let offered = handoff.clone();
        let served = session.clone();
        let service = self.service(source, &session).map_request(move |request: Request<Incoming>| {
            let mut request = request.map(UserBody::http1);
            // Whoever asks for neither has nothing to hand over.
            let tunnelling =
                *request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE);
            served.set_tunnelling(tunnelling);
            if tunnelling {
                request.extensions_mut().insert(offered.clone());
            }
            request
        });
        let user = TokioIo::new(Watched::new(user, session.clone(), &self.config, false));
        let mut machine = pin!(Some(self.http1().serve_connection(user, TowerToHyperService::new(service))));
        let mut stopping = false;
        let ended = loop {
            let connection = machine.as_mut().as_pin_mut()?;
            tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    if let Some(connection) = machine.as_mut().as_pin_mut() {
                        connection.graceful_shutdown();
                    }
                }
                ended = connection => break ended,
            }
        };
        if let Err(error) = &ended {
            debug!(%source, error = ?error.to_string(), "connection ended");
        }
        // What its requests left behind: nobody will ask for it, and the targets need not wait for the user.
        session.park.clear();
        let parts = machine.take()?.into_parts();
        let (mut user, behind) = parts.io.into_inner().into_parts();
        match handoff.take().filter(|_| ended.is_ok()) {
            Some(stream) => {
                let read = parts.read_buf;
                let early = if behind.is_empty() { read } else { [&read[..], &behind[..]].concat().into() };
                return Some((user, early, stream));
            }
            None if session.is_broken() || (ended.is_err() && session.is_unframed()) => user.abort(),
            None => {
                // All that was said is with the system, which delivers it whatever becomes of this process.
                user.abort_when_lost(false);
                linger(user).await
            }
        }
        None
    }

    fn http1(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        let head = self.config.max_head;
        builder.timer(TokioTimer::new()).header_read_timeout(None).max_header_size(head).max_buf_size(head);
        if self.config.max_headers != 100 {
            // Hyper's own default is 100 and costs no allocation.
            builder.max_headers(self.config.max_headers);
        }
        builder
    }

    /// The requests of one connection, with the layers around them.
    fn service(
        &self,
        source: SocketAddr,
        session: &Arc<Session>,
    ) -> impl Service<
        Request<UserBody>,
        Response = Response<AnswerBody>,
        Error = BoxError,
        Future: Send + 'static,
    >
    + Clone
    + Send
    + 'static
    + use<M, L> {
        let requests = Requests::new(self.stack.clone(), self.config.clone(), source, session.clone());
        let config = self.config.clone();
        let refused = self.config.clone();
        let session = session.clone();
        let has_layers = TypeId::of::<L>() != TypeId::of::<Identity>();
        ServiceBuilder::new()
            .layer(CatchPanicLayer::custom(move |panic: Box<dyn std::any::Any + Send>| {
                let text = panic.downcast_ref::<&str>().copied();
                let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
                error!(panic = ?text.unwrap_or_default(), "a request's handler panicked");
                Refusal::panicked().into_response(&config).map(Full::new)
            }))
            // Where there are no layers, nobody sees what is made ready for them.
            .map_request(move |request| if has_layers { shown(request, &session) } else { request })
            .then(move |answered: Result<_, <L::Service as Service<Request<UserBody>>>::Error>| {
                std::future::ready(Ok::<_, BoxError>(match answered {
                    Ok(response) => Response::map(response, Either::Left),
                    Err(error) => {
                        let error: BoxError = error.into();
                        Refusal::of(&*error).into_response(&refused).map(Full::new).map(Either::Right)
                    }
                }))
            })
            .service(self.layers.layer(requests))
    }
}

/// Makes a request ready for layers: numbers it, for their log, and marks its logins as sensitive. The number is no
/// header field: nobody outside has asked for it. And begins it, since a layer may take its time.
fn shown(mut request: Request<UserBody>, session: &Arc<Session>) -> Request<UserBody> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut digits = [0; 20];
    let mut rest = &mut digits[..];
    let _ = write!(rest, "{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let length = 20 - rest.len();
    request.extensions_mut().insert(session.begin());
    if let Ok(number) = HeaderValue::from_bytes(&digits[..length]) {
        request.extensions_mut().insert(RequestId::new(number));
    }
    for login in [header::PROXY_AUTHORIZATION, header::AUTHORIZATION] {
        if let Entry::Occupied(mut values) = request.headers_mut().entry(login) {
            values.iter_mut().for_each(|value| value.set_sensitive(true));
        }
    }
    request
}

/// Ends a connection so that its last response arrives: says the end, then reads what still comes for a moment.
pub(crate) async fn linger<U: Connection>(mut user: U) {
    let drain = async {
        user.shutdown().await?;
        let mut sink = BytesMut::with_capacity(4 * 1024);
        let mut left = LINGER_BYTES;
        while left > 0 {
            sink.clear();
            let read = user.read_buf(&mut sink).await?;
            if read == 0 {
                break;
            }
            left = left.saturating_sub(read);
        }
        io::Result::Ok(())
    };
    // Whatever became of it, the connection is over.
    let _ = tokio::time::timeout(LINGER, drain).await;
}
