use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use anyproxy_core::{BoxError, Dial, Judge, RulesMark};
use arc_swap::ArcSwap;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{Cause, Denied, Policy, Question, Verdict};

/// Applies [`Acl`].
#[derive(Clone)]
pub struct AclLayer {
    in_force: Arc<InForce>,
    judges: Judges,
}

/// The policy in force, and as whom its layers mark dials, whichever it is.
struct InForce {
    policy: ArcSwap<Policy>,
    judge: Judge,
}

/// Which dials are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judges {
    All,
    /// Those that have waited since they were judged.
    Waited,
}

impl AclLayer {
    /// A layer with a policy that stays.
    ///
    /// Where a name's verdict may depend on its addresses, clients judge those, and refuse names until they were sent
    /// [what they need](Policy::for_clients): `clients.set_rules(policy.for_clients())`, before the first dial.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self::pair(policy).0
    }

    /// A layer, and the handle by which its policy is replaced while dials run.
    #[must_use]
    pub fn pair(policy: Policy) -> (Self, AclHandle) {
        // The version is a fingerprint where none was given: not to be made during the first dial that needs it.
        let _ = policy.version();
        let in_force = Arc::new(InForce { policy: ArcSwap::from_pointee(policy), judge: Judge::new() });
        (Self { in_force: in_force.clone(), judges: Judges::All }, AclHandle { in_force })
    }

    /// A layer with the same policy, for below those that let dials wait: it judges again what has waited above it
    /// ([`Journal::queued`](anyproxy_core::Journal::queued)), since the policy may have been replaced meanwhile. Other
    /// dials pass as they were judged.
    #[must_use]
    pub fn after_waits(&self) -> Self {
        Self { in_force: self.in_force.clone(), judges: Judges::Waited }
    }
}

impl<S> Layer<S> for AclLayer {
    type Service = Acl<S>;

    fn layer(&self, inner: S) -> Acl<S> {
        Acl { inner, in_force: self.in_force.clone(), judges: self.judges }
    }
}

impl fmt::Debug for AclLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AclLayer").field("policy", &self.in_force.policy.load()).finish()
    }
}

/// Replaces the policy of a running [`AclLayer`]; all services it has made see it with their next dial.
#[derive(Clone)]
pub struct AclHandle {
    in_force: Arc<InForce>,
}

impl AclHandle {
    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        self.in_force.policy.load_full()
    }

    /// Puts another policy in force, whole and at once: each dial is judged by one or the other. Dials that have
    /// passed are not judged again, but for those that wait above a layer of [`AclLayer::after_waits`].
    ///
    /// Clients refuse what a policy leaves to them until they were sent [what they need](Policy::for_clients) of it:
    /// first them, then this.
    pub fn replace(&self, policy: Policy) {
        let _ = policy.version();
        self.in_force.policy.store(Arc::new(policy));
    }
}

impl fmt::Debug for AclHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AclHandle").field("policy", &self.in_force.policy.load()).finish()
    }
}

/// Refuses dials whose target the policy does not allow.
///
/// A dial whose verdict [depends](Verdict::Depends) on addresses passes with the policy's
/// [`RulesVersion`](anyproxy_core::RulesVersion) in [`Dial::rules`], and whoever opens the stream must see to it that
/// the far end applies these rules. One that is judged again loses what the judgement before left there.
///
/// A refusal is [`Denied`]. The decision is made in `call`, without waiting and without allocation.
#[derive(Clone)]
pub struct Acl<S> {
    inner: S,
    in_force: Arc<InForce>,
    judges: Judges,
}

impl<S> Acl<S> {
    /// The service inside.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service inside, to change.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service inside, taken out.
    pub fn into_inner(self) -> S {
        self.inner
    }

    fn judge(&self, dial: &mut Dial) -> Result<(), Denied> {
        if self.judges == Judges::Waited && dial.journal.queued().is_zero() {
            return Ok(());
        }
        let InForce { policy, judge } = &*self.in_force;
        let policy = policy.load();
        // This judgement stands for the one before, whatever policy was in force then; another policy's mark stays.
        dial.rules = dial.rules.filter(|mark| mark.judge() != *judge);
        let cause = match policy.check(&Question::from(&*dial)) {
            Verdict::Allow => return Ok(()),
            Verdict::Deny(cause) => cause,
            Verdict::Depends => {
                let mark = *dial.rules.get_or_insert_with(|| RulesMark::new(policy.version(), *judge));
                if mark.version() == policy.version() {
                    return Ok(());
                }
                Cause::OtherRules
            }
        };
        Err(Denied::new(dial.target.clone(), policy.reason(cause)))
    }
}

impl<S> Service<Dial> for Acl<S>
where
    S: Service<Dial>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut dial: Dial) -> Self::Future {
        match self.judge(&mut dial) {
            Ok(()) => ResponseFuture { state: State::Dialing { inner: self.inner.call(dial) } },
            Err(denied) => ResponseFuture { state: State::Denied { denied: Some(denied) } },
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for Acl<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acl")
            .field("inner", &self.inner)
            .field("policy", &self.in_force.policy.load())
            .finish()
    }
}

pin_project! {
    /// Response future of [`Acl`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the inner future; it holds nothing else.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Dialing { #[pin] inner: F },
        Denied { denied: Option<Denied> },
    }
}

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Dialing { inner } => Poll::Ready(ready!(inner.poll(cx)).map_err(Into::into)),
            StateProj::Denied { denied } => {
                Poll::Ready(Err(denied.take().expect("polled after it was done").into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::time::Duration;

    use anyproxy_core::{Front, Outcome, RulesVersion, Target};
    use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok};
    use tower::{ServiceExt as _, service_fn};
    use tower_test::mock::{self, Mock, Spawn};

    use super::*;
    use crate::{Action, Pattern, Rule, Rules};

    type Handle = mock::Handle<Dial, &'static str>;

    #[tokio::test]
    async fn a_denied_dial_never_reaches_the_inner_service() {
        let (mut acl, mut inner) = spawn(deny("10.0.0.1:22"));
        assert_ready_ok!(acl.poll_ready());
        let error = refusal(acl.call(dial("10.0.0.1:22")));
        assert_eq!(error.downcast_ref::<Denied>().map(Denied::target), Some(&target("10.0.0.1:22")));
        assert_eq!(Outcome::of(&*error), Outcome::Denied);
        assert_pending!(inner.poll_request());
    }

    #[tokio::test]
    async fn an_allowed_dial_passes_as_it_is_and_so_does_its_answer() {
        let (mut acl, mut inner) = spawn(deny("10.0.0.1:22"));
        assert_ready_ok!(acl.poll_ready());
        let answer = acl.call(dial("10.0.0.1:23"));
        let (request, reply) = inner.next_request().await.unwrap();
        assert_eq!(request.target, target("10.0.0.1:23"));
        assert_eq!(request.rules, None);
        reply.send_response("stream");
        assert_eq!(answer.await.unwrap(), "stream");
    }

    #[tokio::test]
    async fn an_error_of_the_inner_service_passes_as_it_is() {
        let (mut acl, mut inner) = spawn(Policy::default());
        assert_ready_ok!(acl.poll_ready());
        let answer = acl.call(dial("10.0.0.1:23"));
        inner.next_request().await.unwrap().1.send_error(Outcome::NoClient);
        assert_eq!(Outcome::of(&*answer.await.unwrap_err()), Outcome::NoClient);
    }

    #[tokio::test]
    async fn a_clone_starts_unready() {
        let (mut acl, mut inner) = spawn(Policy::default());
        inner.allow(1);
        assert_ready_ok!(acl.poll_ready());
        let mut clone = Spawn::new(acl.get_ref().clone());
        let _answer = acl.call(dial("10.0.0.1:22"));
        assert_pending!(clone.poll_ready());
        assert_eq!(inner.next_request().await.unwrap().0.target, target("10.0.0.1:22"));
    }

    #[test]
    fn dropping_the_answer_drops_the_dial() {
        let held = Arc::new(());
        let inside = held.clone();
        let inner = service_fn(move |_: Dial| {
            let inside = inside.clone();
            async move {
                std::future::pending::<()>().await;
                drop(inside);
                Ok::<(), BoxError>(())
            }
        });
        let answer = AclLayer::new(Policy::default()).layer(inner).call(dial("10.0.0.1:22"));
        let dialing = Arc::strong_count(&held);
        drop(answer);
        assert!(Arc::strong_count(&held) < dialing);
    }

    #[tokio::test]
    async fn a_replaced_policy_holds_for_services_made_before() {
        let (layer, handle) = AclLayer::pair(deny("10.0.0.1:22"));
        let (mut acl, mut inner) = mock::spawn_layer::<Dial, &str, _>(layer);
        handle.replace(deny("10.0.0.2:22"));
        assert_ready_ok!(acl.poll_ready());
        assert!(refusal(acl.call(dial("10.0.0.2:22"))).is::<Denied>());
        assert_ready_ok!(acl.poll_ready());
        let _answer = acl.call(dial("10.0.0.1:22"));
        assert_eq!(inner.next_request().await.unwrap().0.target, target("10.0.0.1:22"));
        assert_eq!(handle.policy().version(), deny("10.0.0.2:22").version());
    }

    #[tokio::test]
    async fn i2_a_name_that_a_range_may_deny_passes_with_the_version_of_the_rules() {
        let version = RulesVersion::new(7).unwrap();
        let (mut acl, mut inner) = spawn(deny("10.0.0.0/8").with_version(version));
        assert_ready_ok!(acl.poll_ready());
        let _answer = acl.call(dial("db.lan:22"));
        let (request, _) = inner.next_request().await.unwrap();
        assert_eq!(request.rules.map(RulesMark::version), Some(version));
    }

    #[tokio::test]
    async fn i11_what_has_waited_is_judged_by_the_policy_in_force_then() {
        let (layer, handle) = AclLayer::pair(deny("10.0.0.0/8"));
        let again = layer.after_waits();
        let (mut acl, mut inner) = mock::spawn_layer::<Dial, &str, _>(again);
        let waited = |text: &str, rules| {
            let mut waited = dial(text);
            waited.rules = rules;
            waited.journal.add_queued(Duration::from_millis(1));
            waited
        };
        handle.replace(Policy::new([Rules::new(
            "rules",
            Action::Allow,
            [Rule::deny([Pattern::parse("t.lan:22").unwrap(), Pattern::parse("172.16.0.0/12").unwrap()])],
        )]));

        // Whoever has not waited was judged this moment.
        assert_ready_ok!(acl.poll_ready());
        let _answer = acl.call(dial("t.lan:22"));
        assert_eq!(inner.next_request().await.unwrap().0.target, target("t.lan:22"));
        assert_ready_ok!(acl.poll_ready());
        assert!(refusal(acl.call(waited("t.lan:22", None))).is::<Denied>());
        // What another policy has left to the far end is still its own.
        handle.replace(Policy::default());
        let other = Some(RulesMark::new(RulesVersion::new(7).unwrap(), Judge::new()));
        assert_ready_ok!(acl.poll_ready());
        let _answer = acl.call(waited("db.lan:22", other));
        assert_eq!(inner.next_request().await.unwrap().0.rules, other);
    }

    #[tokio::test]
    async fn i11_what_has_waited_over_several_policies_bears_the_mark_of_the_last_alone() {
        let (layer, handle) = AclLayer::pair(deny("10.0.0.0/8"));
        let terminal = service_fn(|dial: Dial| ready(Ok::<_, BoxError>(dial.rules.map(RulesMark::version))));
        let (mut first, mut between) = mock::spawn_layer::<Dial, &str, _>(layer.clone());
        assert_ready_ok!(first.poll_ready());
        let _answer = first.call(dial("db.lan:22"));
        let (waited, _) = between.next_request().await.unwrap();
        assert_eq!(waited.rules.map(RulesMark::version), Some(handle.policy().version()));
        waited.journal.add_queued(Duration::from_millis(1));

        let last = deny("192.168.0.0/16").version();
        let histories = [
            (vec![deny("172.16.0.0/12"), deny("192.168.0.0/16")], Some(last)),
            (vec![deny("192.168.0.0/16"), deny("192.168.0.0/16")], Some(last)),
            (vec![deny("172.16.0.0/12"), Policy::default()], None),
        ];
        for (policies, version) in histories {
            policies.into_iter().for_each(|policy| handle.replace(policy));
            let again = layer.after_waits().layer(terminal);
            assert_eq!(again.oneshot(waited.clone()).await.unwrap(), version);
        }
    }

    #[tokio::test]
    async fn i2_two_policies_that_both_depend_on_addresses_refuse_what_one_open_cannot_say() {
        let inner = AclLayer::new(deny("10.0.0.0/8"));
        let (mut acl, mut terminal) = mock::spawn_with::<Dial, &str, _, _>(|mock: Mock<Dial, &str>| {
            AclLayer::new(deny("172.16.0.0/12")).layer(inner.layer(mock))
        });
        assert_ready_ok!(acl.poll_ready());
        assert!(refusal(acl.call(dial("db.lan:22"))).is::<Denied>());
        assert_pending!(terminal.poll_request());
    }

    /// The error of an answer that is there at once.
    fn refusal<T: fmt::Debug>(answer: impl Future<Output = Result<T, BoxError>>) -> BoxError {
        assert_ready_err!(tokio_test::task::spawn(answer).poll())
    }

    fn spawn(policy: Policy) -> (Spawn<Acl<Mock<Dial, &'static str>>>, Handle) {
        mock::spawn_layer(AclLayer::new(policy))
    }

    fn deny(pattern: &str) -> Policy {
        let rule = Rule::deny([Pattern::parse(pattern).unwrap()]);
        Policy::new([Rules::new("rules", Action::Allow, [rule])])
    }

    fn target(text: &str) -> Target {
        Target::parse(text).unwrap()
    }

    fn dial(text: &str) -> Dial {
        Dial::tcp(target(text), "192.0.2.1:4000".parse().unwrap(), Front::HTTP)
    }
}
