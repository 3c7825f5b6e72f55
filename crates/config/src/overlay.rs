//! Laying one file over another: what the upper one says, wins; what it does not mention, stays.

use serde_saphyr::Location;

use crate::section::{Front, Sni};
use crate::value::{
    Action, Bytes, Duration, Gateways, HostPattern, Key, ListenAddr, LogFormat, LogLevel, LogOutput,
    Password, Ports, Protocol, Replicas, Spanned, StickyBy, Strategy,
};

pub(crate) trait Overlay {
    fn overlay(&mut self, upper: Self);

    /// Forgets the places of all there is in it: what a variable says stands nowhere in the file it is laid over.
    fn forget_places(&mut self) {}
}

impl<T: Overlay> Overlay for Option<T> {
    fn overlay(&mut self, upper: Self) {
        match (self, upper) {
            (_, None) => {}
            (Some(lower), Some(upper)) => lower.overlay(upper),
            (lower @ None, upper) => *lower = upper,
        }
    }

    fn forget_places(&mut self) {
        if let Some(value) = self {
            value.forget_places();
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
    HostPattern,
    Key,
    ListenAddr,
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

impl<T: Overlay> Overlay for Vec<Spanned<T>> {
    fn overlay(&mut self, upper: Self) {
        *self = upper;
    }

    fn forget_places(&mut self) {
        self.iter_mut().for_each(forget_place);
    }
}

/// Values that are replaced with their place.
macro_rules! replaced_with_place {
    ($($type:ty),+ $(,)?) => {$(
        impl Overlay for Spanned<$type> {
            fn overlay(&mut self, upper: Self) {
                *self = upper;
            }

            fn forget_places(&mut self) {
                forget_place(self);
            }
        }
    )+};
}

replaced_with_place!(HostPattern, ListenAddr, String);

/// Sections that remember their place keep it.
macro_rules! placed {
    ($($section:ty),+ $(,)?) => {$(
        impl Overlay for Spanned<$section> {
            fn overlay(&mut self, upper: Self) {
                self.value.overlay(upper.value);
            }

            fn forget_places(&mut self) {
                forget_place(self);
            }
        }
    )+};
}

placed!(Front, Sni);

fn forget_place<T: Overlay>(spanned: &mut Spanned<T>) {
    (spanned.referenced, spanned.defined) = (Location::UNKNOWN, Location::UNKNOWN);
    spanned.value.forget_places();
}
