//! Laying one file over another: what the upper one says, wins; what it does not mention, stays.

use crate::section::{Front, Sni};
use crate::value::{
    Action, Bytes, Duration, Gateways, Key, ListenAddr, LogFormat, LogLevel, LogOutput, Password, Ports,
    Protocol, Replicas, Spanned, StickyBy, Strategy,
};

pub(crate) trait Overlay {
    fn overlay(&mut self, upper: Self);
}

impl<T: Overlay> Overlay for Option<T> {
    fn overlay(&mut self, upper: Self) {
        match (self, upper) {
            (_, None) => {}
            (Some(lower), Some(upper)) => lower.overlay(upper),
            (lower @ None, upper) => *lower = upper,
        }
    }
}

/// Values that are replaced as a whole, lists among them.
macro_rules! replaced {
    ($($type:ty),+ $(,)?) => {$(
        impl Overlay for $type {
            fn overlay(&mut self, upper: Self) {
                *self = upper;
            }
        }
    )+};
}

replaced!(
    Action,
    Bytes,
    Duration,
    Gateways,
    Key,
    LogFormat,
    LogLevel,
    LogOutput,
    Password,
    Protocol,
    StickyBy,
    Strategy,
    bool,
    u16,
    u32,
    usize,
    String,
    Spanned<ListenAddr>,
    Spanned<String>,
    Spanned<crate::HostPattern>,
    Vec<Ports>,
    Vec<Protocol>,
    Vec<String>,
);

/// A number says both.
impl Overlay for Replicas {
    fn overlay(&mut self, upper: Self) {
        self.min.overlay(upper.min);
        self.max.overlay(upper.max);
    }
}

impl<T> Overlay for Vec<Spanned<T>> {
    fn overlay(&mut self, upper: Self) {
        *self = upper;
    }
}

/// Sections that remember their place keep it.
macro_rules! placed {
    ($($section:ty),+ $(,)?) => {$(
        impl Overlay for Spanned<$section> {
            fn overlay(&mut self, upper: Self) {
                self.value.overlay(upper.value);
            }
        }
    )+};
}

placed!(Front, Sni);
