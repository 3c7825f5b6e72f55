use std::sync::Arc;

use anyproxy_core::Dial;

/// Decides which group of clients serves a dial, where it is not simply the user's first one.
///
/// A plug: the registry knows neither patterns nor files. Every `Fn(&Dial) -> Option<Arc<str>>` is one.
///
/// ```
/// use std::sync::Arc;
///
/// use anyproxy_core::{Dial, Host};
/// use anyproxy_gateway::Clients;
///
/// let lab: Arc<str> = "lab".into();
/// let clients = Clients::default();
/// clients.set_routes(move |dial: &Dial| match dial.target.host() {
///     Host::Name(name) if name.as_str().ends_with(".lab") => Some(lab.clone()),
///     _ => None,
/// });
/// ```
pub trait Routes: Send + Sync + 'static {
    /// The group for this dial; `None` for the user's own. A group that the user does not hold counts as `None`, so
    /// a list of routes looks for the first that matches the target *and* the user.
    fn group(&self, dial: &Dial) -> Option<Arc<str>>;
}

impl<F> Routes for F
where
    F: Fn(&Dial) -> Option<Arc<str>> + Send + Sync + 'static,
{
    fn group(&self, dial: &Dial) -> Option<Arc<str>> {
        self(dial)
    }
}
