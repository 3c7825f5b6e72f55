//! One tunnel that is always there: what is lost is connected again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_core::{Target, printable};
use anyproxy_tunnel::ClientTunnel;
use anyproxy_tunnel::frame::{ClientHello, GatewayHello, GoAwayCode, PortStatus};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::access::Escaped;
use crate::backoff::Backoff;
use crate::client::Shared;
use crate::door::Door;
use crate::link::{self, Doubtful, Link, LinkError};
use crate::pool::{Place, Standing};
use crate::serve::{self, Left};
use crate::udp::Associations;

/// Tunnels of one supervisor that the gateway has taken out of service and whose streams still live. Beyond it the
/// oldest is closed: a gateway that sends a go-away on every tunnel does not pile them up.
const RETIRED: usize = 8;

/// How long a gateway that went away in order may be absent before that is worth a warning: it drains, for 30 s as it
/// comes, and another takes its place.
const ABSENCE: Duration = Duration::from_secs(60);

/// The longest wait that a gateway may ask for: longer than it locks anybody out.
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

/// Keeps one tunnel to `gateway` at `place`, until that is left: comes in by `door`, serves, connects again.
pub(crate) async fn supervise(
    shared: Arc<Shared>,
    gateway: Target,
    door: Arc<Door>,
    place: Arc<Place>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::default();
    let mut doubtful = Doubtful::default();
    let mut retired = VecDeque::new();
    let mut expected: Option<Instant> = None;
    while !place.leave.is_cancelled() {
        let Some(mut turn) = place.leave.run_until_cancelled(door.turn()).await else { return };
        let hello = hello(&shared);
        let established = link::establish(&shared.config, &shared.gateways, &gateway, &mut doubtful, hello);
        let wait = match place.leave.run_until_cancelled(established).await {
            None => return,
            Some(Err(error)) => {
                door.shut();
                let wait = if error.is_wrong_login() {
                    // The turn is kept: nobody else says meanwhile what was just wrong.
                    backoff.refused(fastrand::f64())
                } else {
                    turn = None;
                    backoff.failed(fastrand::f64())
                };
                let wait = wait.max(error.retry_after().unwrap_or_default().min(LONGEST_WAIT));
                report(&gateway, &error, wait, expected.is_some_and(|until| Instant::now() < until));
                wait
            }
            Some(Ok(link)) => {
                door.open();
                turn = None;
                expected = None;
                greet(&shared, &gateway, &link.hello);
                let (tunnel, associations) = (link.tunnel.clone(), Arc::<Associations>::default());
                place.set(Some(Standing { tunnel: tunnel.clone(), associations: associations.clone() }));
                let begun = Instant::now();
                let left = serve_apart(&shared, link, associations, &place, &stop).await;
                place.set(None);
                door.shut();
                match left {
                    Ok(Left::Unneeded) => return,
                    Ok(Left::GoAway(GoAwayCode::Replaced)) => {
                        tracing::warn!(
                            %gateway,
                            client = &*printable(&shared.id),
                            "another instance took this client's place; is its client_id used twice?"
                        );
                        retire(&mut retired, tunnel);
                        backoff.replaced(fastrand::f64())
                    }
                    Ok(Left::GoAway(GoAwayCode::Refused)) => {
                        tracing::warn!(%gateway, "the gateway took a tunnel back");
                        retire(&mut retired, tunnel);
                        backoff.lost(begun.elapsed(), fastrand::f64())
                    }
                    Ok(Left::GoAway(_)) => {
                        retire(&mut retired, tunnel);
                        expected = Some(Instant::now() + ABSENCE);
                        backoff.lost(begun.elapsed(), fastrand::f64())
                    }
                    Ok(Left::Ended(reason)) => {
                        tracing::warn!(%gateway, %reason, "a tunnel was lost");
                        backoff.lost(begun.elapsed(), fastrand::f64())
                    }
                    // Its task panicked, which has been said where panics are.
                    Err(_) => backoff.lost(begun.elapsed(), fastrand::f64()),
                }
            }
        };
        let slept = place.leave.run_until_cancelled(sleep(wait)).await;
        drop(turn);
        if slept.is_none() {
            return;
        }
    }
}

/// Serves `link` in a task of its own, which outlives the service of a tunnel that drains.
fn serve_apart(
    shared: &Arc<Shared>,
    link: Link,
    associations: Arc<Associations>,
    place: &Place,
    stop: &CancellationToken,
) -> oneshot::Receiver<Left> {
    let (left, receiver) = oneshot::channel();
    let leave = place.leave.clone();
    shared.tasks.spawn(serve::serve(shared.clone(), link, associations, leave, stop.clone(), left));
    receiver
}

fn retire(retired: &mut VecDeque<ClientTunnel>, tunnel: ClientTunnel) {
    retired.push_back(tunnel);
    if retired.len() > RETIRED
        && let Some(oldest) = retired.pop_front()
    {
        oldest.close();
    }
}

fn hello(shared: &Shared) -> ClientHello {
    let mut hello = ClientHello::new(&*shared.id, shared.instance);
    hello.ports = shared.config.open_ports.iter().map(|port| port.request()).collect();
    hello.software = concat!("anyproxy/", env!("CARGO_PKG_VERSION")).to_owned();
    hello
}

/// Says what the gateway said.
fn greet(shared: &Shared, gateway: &Target, hello: &GatewayHello) {
    tracing::info!(
        %gateway,
        session = format_args!("{:016x}", hello.session),
        software = %Escaped(&hello.software),
        "a tunnel to the gateway stands"
    );
    for (port, verdict) in shared.config.open_ports.iter().zip(&hello.ports) {
        let (number, target, transport) = (port.remote_port, &port.target, port.transport);
        match verdict.status {
            PortStatus::Open => {
                tracing::info!(%gateway, port = number, ?transport, %target, "the gateway opened a port")
            }
            status => {
                tracing::warn!(%gateway, port = number, ?transport, %target, ?status, "the gateway did not open a port");
            }
        }
    }
}

/// `expected`: the gateway has said that it goes.
fn report(gateway: &Target, error: &LinkError, wait: Duration, expected: bool) {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let cause = cause(error);
    if error.is_refusal() {
        tracing::error!(%gateway, error = %error, %cause, advice = error.advice(), wait_ms, "no tunnel");
    } else if expected {
        tracing::debug!(%gateway, error = %error, %cause, wait_ms, "no tunnel, as the gateway had said");
    } else {
        tracing::warn!(%gateway, error = %error, %cause, wait_ms, "no tunnel");
    }
}

/// The rest of an error's chain, in one line.
fn cause(error: &dyn std::error::Error) -> String {
    let links = std::iter::successors(error.source(), |error| error.source());
    let text = links.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    Escaped(&text).to_string()
}
