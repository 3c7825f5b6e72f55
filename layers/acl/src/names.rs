use std::collections::HashMap;

use anyproxy_core::HostName;

use crate::entries::Slice;

/// The names of a list, as a suffix trie: a walk goes from the last label of a name to its first.
///
/// The trie is kept flat. Every suffix some rule speaks of is one entry of a hash table, and the levels that have
/// any are bits of a set, so that a walk asks once per level in use (two or three, as names go; never more than
/// the 127 labels a name can have) and a rule costs its own name and nothing for the labels above it.
#[derive(Debug, Default)]
pub(crate) struct Names {
    nodes: HashMap<HostName, Node>,
    /// Bit n: some name of n labels has an entry.
    levels: u128,
}

/// What the rules say about one name, and about all names below it.
#[derive(Debug, Default)]
struct Node {
    exact: Slice,
    below: Slice,
}

impl Names {
    pub(crate) fn set_exact(&mut self, name: &HostName, entries: Slice) {
        self.node(name).exact = entries;
    }

    pub(crate) fn set_below(&mut self, name: &HostName, entries: Slice) {
        self.node(name).below = entries;
    }

    fn node(&mut self, name: &HostName) -> &mut Node {
        self.levels |= 1 << (labels(name.as_str()) - 1);
        self.nodes.entry(name.clone()).or_default()
    }

    /// What the rules say about a name: by its own entry and by that of every suffix.
    pub(crate) fn matching(&self, name: &HostName) -> impl Iterator<Item = Slice> {
        let name = name.as_str();
        let dots = name.rmatch_indices('.').map(|(at, _)| &name[at + 1..]);
        dots.chain([name]).zip(0_u32..).filter_map(move |(suffix, level)| {
            if self.levels >> level & 1 == 0 {
                return None;
            }
            let node = self.nodes.get(suffix)?;
            Some(if suffix.len() == name.len() { node.exact } else { node.below })
        })
    }
}

/// At most 128, a bit each in `levels`: a name has 255 bytes.
fn labels(name: &str) -> usize {
    name.bytes().filter(|byte| *byte == b'.').count() + 1
}
