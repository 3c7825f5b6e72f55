use crate::entries::Slice;

/// The ranges of a list, of one family, as a prefix trie.
///
/// Two prefixes are nested or disjoint, so the trie needs no inner nodes: ordered by first address, then the wider
/// one first, the last range that begins at or before an address is the innermost that can hold it, and every other
/// one that does is among its ancestors. One binary search and a climb of at most as many steps as an address has
/// bits; few, as ranges go.
#[derive(Debug)]
pub(crate) struct Ranges<A> {
    /// Apart from the nodes, so that the search touches nothing else.
    firsts: Box<[A]>,
    nodes: Box<[Node<A>]>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Node<A> {
    pub(crate) first: A,
    pub(crate) last: A,
    /// The narrowest range around this one; [`NO_PARENT`] where there is none.
    parent: u32,
    /// The least rule of this range and of all around it: the climb ends where nothing better can come.
    pub(crate) least: u32,
    pub(crate) entries: Slice,
}

const NO_PARENT: u32 = u32::MAX;

impl<A: Ord + Copy> Ranges<A> {
    /// The trie of these ranges, each given once, the wider before the narrower of the same first address.
    pub(crate) fn new(ordered: impl IntoIterator<Item = (A, A, Slice)>) -> Self {
        let mut nodes: Vec<Node<A>> = Vec::new();
        let mut around: Vec<u32> = Vec::new();
        for (index, (first, last, entries)) in (0_u32..).zip(ordered) {
            while around.last().is_some_and(|parent| nodes[*parent as usize].last < first) {
                around.pop();
            }
            let parent = around.last().copied().unwrap_or(NO_PARENT);
            let above = nodes.get(parent as usize).map_or(u32::MAX, |parent| parent.least);
            nodes.push(Node { first, last, parent, least: entries.least.min(above), entries });
            around.push(index);
        }
        Self { firsts: nodes.iter().map(|node| node.first).collect(), nodes: nodes.into() }
    }

    /// The ranges that hold an address, the narrowest first.
    pub(crate) fn around(&self, address: A) -> impl Iterator<Item = &Node<A>> {
        let begun = self.firsts.partition_point(|first| *first <= address);
        let mut at = begun.checked_sub(1).and_then(|last| self.nodes.get(last));
        std::iter::from_fn(move || {
            let node = at?;
            at = self.nodes.get(node.parent as usize);
            Some(node)
        })
        .filter(move |node| address <= node.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_around_an_address_come_narrowest_first() {
        let slice = |rule| {
            let ports = crate::pattern::Ports::ALL;
            crate::entries::Entries::default().add(vec![crate::entries::Entry { rule, condition: 0, ports }])
        };
        let ranges = Ranges::new([
            (0_u32, 99, slice(5)),
            (10, 19, slice(3)),
            (10, 10, slice(9)),
            (12, 13, slice(4)),
            (40, 49, slice(1)),
            (99, 99, slice(0)),
        ]);
        let around =
            |address| ranges.around(address).map(|node| (node.first, node.least)).collect::<Vec<_>>();
        assert_eq!(around(10), [(10, 3), (10, 3), (0, 5)]);
        assert_eq!(around(15), [(10, 3), (0, 5)]);
        assert_eq!(around(30), [(0, 5)]);
        assert_eq!(around(49), [(40, 1), (0, 5)]);
        assert_eq!(around(99), [(99, 0), (0, 5)]);
        assert_eq!(around(100), []);
    }
}
