//! Who may reach what: AnyProxy's access rules as a tower layer.
//!
//! A [`Policy`] is one or more lists of [`Rules`], **all** of which must allow. In a list the **first** [`Rule`] that
//! matches decides, and where none does, the list's default. [`AclLayer`] puts a policy around any dial service:
//!
//! ```
//! use anyproxy_acl::{AclLayer, Action, Lists, Pattern, Policy, Rule, Rules};
//! use anyproxy_core::{BoxError, Dial, DialService, Front, Target};
//! use tower::ServiceBuilder;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! # let terminal = tower::service_fn(|_: Dial| async {
//! #     Ok::<_, std::io::Error>(tokio::io::join(tokio::io::empty(), tokio::io::sink()))
//! # });
//!
//! let lists = Lists { forbidden: vec![Pattern::parse("*:25")?.into()], ..Lists::default() };
//! let rules = Rules::new("gateway.access", Action::Allow, [
//!     Rule::allow([Pattern::parse("git.internal:443")?]).groups(["blue"]),
//!     Rule::deny([Pattern::parse("*.internal")?, Pattern::parse("10.0.0.0/8:22")?]),
//! ]);
//! let policy = Policy::new(lists.into_rules("gateway").chain([rules]));
//!
//! let dials = ServiceBuilder::new().layer(AclLayer::new(policy)).service(terminal);
//! let dial = |target| Ok::<_, BoxError>(Dial::tcp(Target::parse(target)?, "192.0.2.1:4000".parse()?, Front::HTTP));
//! assert!(dials.dial(dial("www.example:443")?).await.is_ok());
//! let error = dials.dial(dial("db.internal:443")?).await.unwrap_err();
//! assert_eq!(error.to_string(), "db.internal:443 is denied by rule 2 of gateway.access");
//! # Ok(())
//! # }
//! ```
//!
//! # What decides
//!
//! | networks | forbidden | allowed | ordered rules | verdict of a policy |
//! |---|---|---|---|---|
//! | not among them | any | any | any | denied |
//! | ok | matches | any | any | denied: forbidden wins |
//! | ok | no match | given, no match | any | denied |
//! | ok | no match | matches, or not given | first match denies | denied |
//! | ok | no match | matches, or not given | first match allows | **allowed** |
//! | ok | no match | matches, or not given | no match, default denies | denied |
//! | ok | no match | matches, or not given | no match, default allows, or not given | **allowed** |
//!
//! So [`Lists`] and ordered rules narrow each other, and neither can widen the other; their order matters only for
//! which reason is given. The same holds for the two ends: what the gateway denies never reaches a client, and what
//! it allows the client's own policy may still deny.
//!
//! | gateway | client | outcome |
//! |---|---|---|
//! | denies | not asked | denied |
//! | allows | denies | denied |
//! | allows | allows | **dialled** |
//! | depends | either its own policy or the gateway's denies every address | denied |
//! | depends | both allow an address | **that address is dialled** |
//!
//! A client's `limit` is one more list of this kind: `Rules::new("client.limit", Action::Deny, services)`, with a rule
//! that allows the [`Pattern`] of each service's target over its network.
//!
//! # Names and addresses
//!
//! A name is resolved by the client, so a gateway cannot tell whether a rule on a range of addresses will match it.
//! [`Policy::check`] of a name therefore goes by the rules that match the name (or everything), and says
//! [`Verdict::Depends`] if a rule on a range that stands *before* the deciding one, holds for this user and port, and
//! has the other action, could still decide otherwise. Such a dial passes, marked with the policy's version
//! ([`RulesVersion`](anyproxy_core::RulesVersion)); the client, which got the rules of that version from the gateway
//! ([`Policy::encode`]), asks [`Policy::check_address`] about every address before it dials it ([`dialable`]), and
//! refuses where it lacks the version. There the first rule that matches the name **or** the address decides, so an
//! earlier rule that allows the name still goes before a later one that denies the range:
//!
//! | rules, in order | gateway about `db.lan` | client about `db.lan` at 10.0.0.1 |
//! |---|---|---|
//! | allow `db.lan`, deny `10.0.0.0/8` | allow | allow |
//! | deny `10.0.0.0/8`, allow `db.lan` | depends | deny |
//! | deny `10.0.0.0/8`, default allow | depends | deny |
//! | allow `10.0.0.0/8`, default deny | depends | allow |
//! | deny `db.lan`, allow `10.0.0.0/8` | deny | not asked |
//!
//! A rule on a name says nothing about targets given by their address, even if the name has that address. And it judges
//! the name as it was asked for: the system that resolves it may complete it by a search list (`db` as `db.lan`) or follow
//! aliases, and no rule on `db.lan` sees that. Whoever denies by name must deny the short forms too, or the addresses,
//! which are what is dialled.
//!
//! # Addresses in addresses
//!
//! An IPv4-mapped IPv6 address *is* its IPv4 address, in targets and in patterns. A packet to some other IPv6
//! addresses may end at an IPv4 one: NAT64 (`64:ff9b::/96`, `64:ff9b:1::/48`), 6to4, Teredo, IPv4-translated and
//! IPv4-compatible ones. These are denied where the first rule for the IPv4 address inside is one on an IPv4 range
//! that denies. To be allowed they must be allowed themselves; only for the IPv4-compatible form a rule that allows
//! the IPv4 address counts too.
//!
//! A [guarded](Policy::guarded) policy, for the end that dials, keeps unspecified, multicast, broadcast, link-local
//! and cloud metadata addresses shut even under `*`.
//!
//! # Cost
//!
//! A decision takes a few hundred nanoseconds and no allocation, whether a list has a hundred rules or a hundred
//! thousand (`benches/decide.rs`).

mod explain;
mod layer;
mod pattern;
mod policy;
mod question;
mod rule;
mod rules;
mod wire;

mod entries;
mod names;
mod ranges;
mod special;

mod fuzz;
mod scan;

pub use explain::Explanation;
#[doc(hidden)]
pub use fuzz::fuzz;
pub use layer::{Acl, AclHandle, AclLayer, ResponseFuture};
pub use pattern::{InvalidPattern, Pattern, Problem};
pub use policy::{Cause, Denied, Policy, Reason, Verdict, dialable};
pub use question::Question;
pub use rule::{Action, Networks, Origin, Rule, UnknownNetwork};
pub use rules::{Listed, Lists, Rules};
pub use wire::{DecodeError, Limits};
