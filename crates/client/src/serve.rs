//! One tunnel: what the gateway wants of it, until it ends.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_acl::{DecodeError, Limits, Policy};
use anyproxy_core::{FOR_EVER, run_blocking};
use anyproxy_tunnel::frame::{GoAway, GoAwayCode, OpenErr, OpenErrClass};
use anyproxy_tunnel::{ClientTunnel, CloseReason, KEPT_RULES, OpenRequest, Request};
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::access::{AccessLine, Escaped};
use crate::client::Shared;
use crate::link::Link;
use crate::open;
use crate::relay::Patience;
use crate::udp::Associations;

/// How often it is told at most that opens were refused before they came here: as many as the gateway likes.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What the streams of one tunnel share.
pub(crate) struct Context {
    pub(crate) client: Arc<Shared>,
    pub(crate) associations: Arc<Associations>,
    pub(crate) patience: Arc<Patience>,
}

/// How a tunnel left the service. What still lives on it goes on.
#[derive(Debug)]
pub(crate) enum Left {
    /// The gateway takes it out of service; another should be opened.
    GoAway(GoAwayCode),
    /// It has ended.
    Ended(CloseReason),
    /// The client does without it: it stops, or has more than it needs.
    Unneeded,
}

/// Serves the gateway's requests on `link` until the tunnel has ended, and says through `left` when it is no
/// longer to be counted on. On `leave` it drains; on `stop` for so long as the client may.
pub(crate) async fn serve(
    client: Arc<Shared>,
    link: Link,
    associations: Arc<Associations>,
    leave: CancellationToken,
    stop: CancellationToken,
    left: oneshot::Sender<Left>,
) {
    let Link { tunnel, mut requests, hello, driver } = link;
    // As it stands at the front of every stream's name, at both ends.
    let session = format!("{:016x}", hello.session);
    client.tasks.spawn(client.kill.clone().run_until_cancelled_owned(driver));
    let patience = Patience {
        idle: client.config.idle_timeout,
        half_closed: client.config.half_closed_timeout,
        cut: client.cut.clone(),
    };
    let context = Arc::new(Context { client: client.clone(), associations, patience: patience.into() });
    let mut versions = Versions::default();
    // Both go once the tunnel is out of service.
    let (mut left, mut live) = (Some(left), Some(client.live.enter()));
    let mut has_left = |how| {
        drop(live.take());
        // Nobody listens any more if the client stops.
        left.take().is_some_and(|left| left.send(how).is_ok())
    };
    let (mut draining, mut deadline) = (false, None);
    let (mut refused, mut tell) = (0, interval_at(Instant::now() + TELL_EVERY, TELL_EVERY));
    loop {
        tokio::select! {
            request = requests.next() => match request {
                Some(Request::Open(request)) => versions.admit(&context, request),
                Some(Request::Rules { version, rules }) => versions.add(version, rules).await,
                Some(Request::GoAway(GoAway { code, reason, .. })) => {
                    tracing::info!(%session, %code, reason = %Escaped(&reason), "the gateway closes a tunnel");
                    has_left(Left::GoAway(code));
                }
                Some(_) => {}
                None => break,
            },
            () = leave.cancelled(), if !draining => {
                draining = true;
                tunnel.drain();
                has_left(Left::Unneeded);
            }
            () = stop.cancelled(), if deadline.is_none() => {
                deadline = Some(Instant::now() + client.config.drain_timeout.min(FOR_EVER));
            }
            _ = tell.tick() => tell_refused(&tunnel, &session, &mut refused),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                tracing::warn!(%session, streams = tunnel.streams(), "streams are cut: draining took too long");
                tunnel.close();
                break;
            }
        }
    }
    let reason = tunnel.closed().await;
    tell_refused(&tunnel, &session, &mut refused);
    tracing::info!(%session, reason = reason.as_str(), detail = ?reason, "a tunnel ended");
    has_left(Left::Ended(reason));
}

/// Tells how many opens were refused since `told`, if any.
fn tell_refused(tunnel: &ClientTunnel, session: &str, told: &mut u64) {
    let all = tunnel.refused_opens();
    if all > *told {
        let opens = all - std::mem::replace(told, all);
        tracing::warn!(%session, opens, "opens are refused: no memory for more streams, or as many as there may be");
    }
}

fn decode(rules: &[u8]) -> Result<Policy, DecodeError> {
    Policy::decode(rules, &Limits::default())
}

/// The gateway's own rules, which hold here for what only this client sees: the addresses behind names.
#[derive(Default)]
struct Versions(VecDeque<(u32, Option<Arc<Policy>>)>);

impl Versions {
    /// Takes in a version. One that cannot be read is as good as none: opens that name it are refused.
    async fn add(&mut self, version: u32, rules: Bytes) {
        // A hundred thousand rules take a while; other tunnels and living streams do not wait for them.
        let same = rules.clone();
        let read = match run_blocking(move || decode(&same)).await {
            // Without a thread they do: what this version judges would be refused for as long as the tunnel stands.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(decode(&rules)),
            read => read,
        };
        let policy = match read {
            Ok(Ok(policy)) => Some(Arc::new(policy)),
            Ok(Err(error)) => {
                tracing::warn!(version, %error, "the gateway's rules cannot be read; what they judge is refused");
                None
            }
            Err(_) => None,
        };
        self.0.retain(|(known, _)| *known != version);
        self.0.push_front((version, policy));
        self.0.truncate(KEPT_RULES);
    }

    fn admit(&self, context: &Arc<Context>, request: OpenRequest) {
        let policy = match request.open().rules {
            0 => None,
            named => match self.0.iter().find(|(version, _)| *version == named) {
                Some((_, Some(policy))) => Some(policy.clone()),
                _ => {
                    let text = format!("this client does not have version {named} of the gateway's rules");
                    let line = AccessLine::new(context.client.id.clone(), &request);
                    line.refused(OpenErrClass::UnknownRules.as_str(), &text);
                    request.refuse(OpenErr::new(OpenErrClass::UnknownRules, text));
                    return;
                }
            },
        };
        context.client.tasks.spawn(open::serve(context.clone(), request, policy));
    }
}
