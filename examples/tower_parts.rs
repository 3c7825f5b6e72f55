//! tower's own layers around dials: filter, load_shed, concurrency_limit, retry, timeout and buffer.
//!
//! ```sh
//! cargo run -p anyproxy-examples --example tower_parts
//! curl -x http://127.0.0.1:8080 http://example.com/        # 200
//! curl -x http://127.0.0.1:8080 http://example.com:25/     # 403: the filter
//! curl -x http://127.0.0.1:8080 http://192.0.2.1/          # 504: the time-out
//! ```
//!
//! Nothing of this is ours but the terminal, the two functions and the front that turns outcomes into answers. The
//! documentation of `anyproxy-core` says of each layer what fits and what needs care.

use std::env;
use std::future::{Ready, ready};
use std::io;
use std::net::Ipv4Addr;
use std::task::{Context, Poll};
use std::time::Duration;

use anyproxy_core::{BoxError, BoxFuture, Dial, Outcome};
use anyproxy_front::Listener;
use anyproxy_http::HttpProxy;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::make::Shared;
use tower::retry::Policy;
use tower::{Service, ServiceBuilder};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let port = env::args().nth(1).map_or(Ok(8080), |port| port.parse())?;

    let dials = ServiceBuilder::new()
        .filter(no_mail) // refuses before anything is reserved
        .load_shed() // directly around what says "not ready": what would wait is told 503
        .concurrency_limit(100) // dials under way; a stream that is up no longer counts
        .retry(Twice) // each try has the whole time below
        .timeout(Duration::from_secs(2)) // one try
        .buffer(100) // makes a service cloneable that is not
        .service(Counting { dialled: 0 });

    let listener = Listener::bind(&[(Ipv4Addr::LOCALHOST, port).into()])?;
    println!("http: {}", listener.local_addr()?);
    tokio::select! {
        () = HttpProxy::new(Shared::new(dials)).serve(listener, CancellationToken::new()) => Ok(()),
        end = tokio::signal::ctrl_c() => Ok(end?),
    }
}

/// The filter. Its error may be any; an [`Outcome`] is the shortest that means something.
fn no_mail(dial: Dial) -> Result<Dial, Outcome> {
    if dial.target.port() == 25 { Err(Outcome::Denied) } else { Ok(dial) }
}

/// The retry: a second try where the target refused, since it may be restarting. A dial carries no bytes of the user,
/// so a second one is always safe here.
#[derive(Clone)]
struct Twice;

impl<R> Policy<Dial, R, BoxError> for Twice {
    type Future = Ready<()>;

    fn retry(&mut self, dial: &mut Dial, answer: &mut Result<R, BoxError>) -> Option<Ready<()>> {
        #[derive(Clone)]
        struct Tried;

        let error = answer.as_ref().err()?;
        let first = dial.extensions.insert(Tried).is_none();
        (first && Outcome::of(&**error) == Outcome::Refused).then(|| ready(()))
    }

    fn clone_request(&mut self, dial: &Dial) -> Option<Dial> {
        Some(dial.clone())
    }
}

/// The terminal: counts, and so is one thing that cannot be cloned.
struct Counting {
    dialled: u64,
}

impl Service<Dial> for Counting {
    type Response = BufReader<TcpStream>;
    type Error = BoxError;
    type Future = BoxFuture<BufReader<TcpStream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, dial: Dial) -> Self::Future {
        self.dialled += 1;
        println!("dial {}: {}", self.dialled, dial.target);
        Box::pin(async move {
            let connected: io::Result<_> = TcpStream::connect(dial.target.to_string()).await;
            Ok(BufReader::new(connected?))
        })
    }
}
