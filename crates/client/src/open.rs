//! One open: judged, dialled, and its stream carried to its end.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::Duration;

use anyproxy_acl::Policy;
use anyproxy_core::Host;
use anyproxy_tunnel::frame::{Network, Open, OpenErr, OpenErrClass, OpenOk};
use anyproxy_tunnel::{OpenRequest, Stream};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::Instrument as _;

use crate::access::AccessLine;
use crate::judge::Judge;
use crate::race;
use crate::relay::Relay;
use crate::resolve::Asker;
use crate::serve::Context;
use crate::udp::{self, Association, Flow, Way};

/// Answers `request` and carries its stream until both ways have ended. `policy` are the gateway's rules that
/// judged it there; they hold here too.
pub(crate) fn serve(context: Arc<Context>, request: OpenRequest, policy: Option<Arc<Policy>>) -> Serving {
    Serving::Answering(Box::pin(async move {
        let (line, stream, reached) = answer(&context, request, policy).await?;
        Some(match reached {
            Reached::Tcp(target, _) => {
                Serving::Relaying(Relay::new(stream, target, context.patience.clone(), line))
            }
            Reached::Association(association) => {
                Serving::Datagrams(Box::pin(udp::keep(association, stream, line)))
            }
            Reached::Udp(way) => {
                let idle = context.client.config.udp_idle_timeout;
                let dropped = context.client.config.tunnel.dropped_datagrams.clone();
                let flow = Flow::new(way, stream, line, dropped);
                Serving::Datagrams(Box::pin(flow.run(idle)))
            }
        })
    }))
}

/// The whole life of a stream, as the future of its task. There are many and most are idle, so what only the dial
/// needs is in a box of its own, and gone while bytes are carried.
pub(crate) enum Serving {
    Answering(Pin<Box<dyn Future<Output = Option<Self>> + Send>>),
    Relaying(Relay),
    Datagrams(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl Future for Serving {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        loop {
            match &mut *self {
                Self::Answering(answer) => match ready!(answer.as_mut().poll(cx)) {
                    Some(next) => *self = next,
                    None => return Poll::Ready(()),
                },
                Self::Relaying(relay) => return Pin::new(relay).poll(cx),
                Self::Datagrams(flow) => return flow.as_mut().poll(cx),
            }
        }
    }
}

/// What an open leads to.
enum Reached {
    Tcp(TcpStream, SocketAddr),
    Association(Arc<Association>),
    Udp(Way),
}

/// Reaches the target and says so, or says why not. `None`: there is no stream, and all is written.
async fn answer(
    context: &Arc<Context>,
    mut request: OpenRequest,
    policy: Option<Arc<Policy>>,
) -> Option<(AccessLine, Stream, Reached)> {
    let mut line = AccessLine::new(context.client.id.clone(), &request);
    let open = request.open().clone();
    let span = tracing::debug_span!("open", stream = %request.stream_ref(), traceparent = open.traceparent);
    let reach =
        within(&context.client.config.connect_timeout, &open, reach(context, &open, policy)).instrument(span);
    let reached = tokio::select! {
        // First, so that nothing is dialled for a user who has left.
        biased;
        () = request.cancelled() => None,
        reached = reach => Some(reached),
    };
    match reached {
        Some(Ok(reached)) => {
            let address = match &reached {
                Reached::Tcp(_, address) => Some(*address),
                Reached::Udp(way) => Some(way.destination),
                Reached::Association(_) => None,
            };
            let took_us = Some(line.opened());
            let stream = request.accept(OpenOk { address, took_us, window: None });
            Some((line, stream, reached))
        }
        Some(Err(why)) => {
            line.refused(why.class.as_str(), &why.text);
            request.refuse(OpenErr { took_us: Some(line.tried()), ..why });
            None
        }
        None => {
            line.refused("cancelled", "");
            None
        }
    }
}

/// The client's own limit, or the gateway's if that is shorter: nobody waits longer.
async fn within(
    limit: &Duration,
    open: &Open,
    reach: impl Future<Output = Result<Reached, OpenErr>>,
) -> Result<Reached, OpenErr> {
    let asked = match open.deadline_ms {
        0 => *limit,
        asked => Duration::from_millis(asked.into()),
    };
    match timeout(asked.min(*limit), reach).await {
        Ok(reached) => reached,
        Err(_) => Err(OpenErr::new(OpenErrClass::TimedOut, "the target did not answer in time")),
    }
}

async fn reach(context: &Context, open: &Open, policy: Option<Arc<Policy>>) -> Result<Reached, OpenErr> {
    let rules = context.client.rules.load_full();
    let judge = Judge::new(open, &context.client.config.open_ports, &rules, policy.as_deref())?;
    judge.name()?;
    if let (Network::Udp { association }, true) = (open.network, judge.target().is_unspecified()) {
        let association = context.associations.join(association, &context.client);
        let opened = association.open().map(|()| Reached::Association(association));
        return opened.map_err(|error| OpenErr::new(race::class_of(&error), error.to_string()));
    }
    let addresses = match judge.target().host() {
        Host::Ip(address) => vec![*address],
        Host::Name(name) => {
            let found = context.client.resolver.resolve(Asker::of(open), name.as_str()).await;
            found.map_err(|error| OpenErr::new(race::class_of_lookup(&error), error.to_string()))?
        }
    };
    // A lookup may take as long as all of the dial, and what was revoked meanwhile is refused. A swap from here on concerns
    // the next open.
    let rules = context.client.rules.load_full();
    let judge = judge.under(&rules);
    let addresses = judge.addresses(addresses)?;
    // The system's preferred one: datagrams without an answer do not tell which works.
    let Some(preferred) = addresses.first().copied() else {
        return Err(OpenErr::new(OpenErrClass::Unresolved, "the name has no address"));
    };
    let reached = match open.network {
        Network::Tcp => race::connect(addresses, context.client.reserve).await.map(|(socket, address)| {
            // Fails only on a connection that is reset already, which its relay will see.
            let _ = anyproxy_tcp::tune(&socket, anyproxy_tcp::NOT_SENT);
            Reached::Tcp(socket, address)
        }),
        Network::Udp { association } => {
            let association = context.associations.join(association, &context.client);
            association.reach(preferred).map(Reached::Udp)
        }
    };
    reached.map_err(|error| OpenErr::new(race::class_of(&error), error.to_string()))
}

#[cfg(test)]
mod tests {
    use tokio_util::task::task_tracker::TrackedFuture;

    use super::*;

    /// Tokio puts some 100 bytes around a future and rounds the sum up to a multiple of 128: a word more than this, and
    /// each idle stream costs 128 bytes more.
    #[test]
    fn the_task_of_an_idle_stream_is_small() {
        // Without optimisation, mio's sockets know their selector.
        let debug = if cfg!(debug_assertions) { size_of::<usize>() } else { 0 };
        let size = size_of::<TrackedFuture<Serving>>();
        assert!(size <= 152 + debug, "{size} bytes");
    }
}
