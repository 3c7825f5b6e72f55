use std::error::Error;
use std::sync::{PoisonError, RwLock};

use anyproxy_core::Refusal;
use metrics::{Counter, counter};

/// The most pairs of layer and outcome told apart, several times what a stack has; what a stack makes up beyond them
/// counts for the layer `other`.
const MAX_PAIRS: usize = 128;
const OTHER: &str = "other";

/// Refusals by layer and outcome. Layers are not known beforehand, and most have one outcome or two: a handle is taken
/// at the first refusal, and kept.
#[derive(Debug, Default)]
pub(crate) struct Refusals(RwLock<Vec<Known>>);

#[derive(Debug)]
struct Known {
    layer: &'static str,
    outcome: &'static str,
    counter: Counter,
}

impl Refusals {
    /// Counts an error that a layer gave as its refusal; one that names no layer is the client's or the target's.
    pub(crate) fn count(&self, error: &(dyn Error + 'static)) {
        let Some(refusal) = Refusal::of(error) else { return };
        let (layer, outcome) = (refusal.layer(), refusal.outcome().as_str());
        if let Some(known) = find(&self.0.read().unwrap_or_else(PoisonError::into_inner), layer, outcome) {
            return known.counter.increment(1);
        }
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let layer = if all.len() < MAX_PAIRS { layer } else { OTHER };
        if let Some(known) = find(&all, layer, outcome) {
            return known.counter.increment(1);
        }
        let counter = counter!("anyproxy_refusals_total", "layer" => layer, "outcome" => outcome);
        counter.increment(1);
        all.push(Known { layer, outcome, counter });
    }
}

fn find<'a>(all: &'a [Known], layer: &str, outcome: &str) -> Option<&'a Known> {
    all.iter().find(|known| known.layer == layer && known.outcome == outcome)
}
