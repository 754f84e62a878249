//! Those who wait, in the order of their credit, with a quick way to the first that may run on a given CPU.

use crate::{CpuId, CpuSet, OutOfMemory};
use alloc::vec::Vec;
use core::cmp::Ordering;

/// A unit's row in the storage of its run queue.
pub(super) type Row = u32;

/// No row.
const NIL: Row = Row::MAX;

/// Where one stands: most credit first; among equals whoever came first.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rank {
    /// See [`super::credit::Level`].
    pub level: i128,
    /// A number that grows with each insertion.
    pub turn: u64,
}

impl Ord for Rank {
    fn cmp(&self, other: &Rank) -> Ordering {
        other.level.cmp(&self.level).then(self.turn.cmp(&other.turn))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Rank) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Copy, Clone, Debug)]
struct Node {
    rank: Rank,
    left: Row,
    right: Row,
    height: u8,
    /// Where this one may run, and where it prefers to.
    sets: Sets,
    /// The same, for this one and all below it together.
    below: Sets,
}

/// Two sets that are looked for in the same way.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Sets {
    pub hard: CpuSet,
    pub preferred: CpuSet,
}

/// Which of the two.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Hard,
    Preferred,
}

impl Sets {
    fn meets(&self, which: Which, cpus: &CpuSet) -> bool {
        match which {
            Which::Hard => self.hard.intersects(cpus),
            Which::Preferred => self.preferred.intersects(cpus),
        }
    }

    fn with(self, other: Sets) -> Sets {
        Sets { hard: self.hard | other.hard, preferred: self.preferred | other.preferred }
    }
}

const EMPTY: Node = Node {
    rank: Rank { level: 0, turn: 0 },
    left: NIL,
    right: NIL,
    height: 0,
    sets: Sets { hard: CpuSet::EMPTY, preferred: CpuSet::EMPTY },
    below: Sets { hard: CpuSet::EMPTY, preferred: CpuSet::EMPTY },
};

/// An AVL tree whose nodes know the CPUs of all below them.
///
/// So the first in order that may run on a CPU is found in one descent, however the others are pinned: insertion, removal and
/// search are O(log n). Nodes are rows of one table, and none is allocated after [`WaitTree::reserve`]. Recursion is as deep as
/// the tree is high: 1.44 · log2(n), 18 for 4096.
#[derive(Debug)]
pub(super) struct WaitTree {
    nodes: Vec<Node>,
    root: Row,
    len: usize,
    turns: u64,
}

impl WaitTree {
    pub const fn new() -> WaitTree {
        WaitTree { nodes: Vec::new(), root: NIL, len: 0, turns: 0 }
    }

    /// Makes rows `0..rows` usable.
    pub fn reserve(&mut self, rows: usize) -> Result<(), OutOfMemory> {
        let more = rows.saturating_sub(self.nodes.len());
        self.nodes.try_reserve_exact(more).map_err(|_| OutOfMemory)?;
        if more > 0 {
            self.nodes.resize(rows, EMPTY);
        }
        Ok(())
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The CPUs that anyone who waits may run on.
    pub fn reach(&self) -> CpuSet {
        self.node(self.root).map_or(CpuSet::EMPTY, |node| node.below.hard)
    }

    /// The row must not be in the tree.
    pub fn insert(&mut self, row: Row, level: i128, sets: Sets) {
        let rank = Rank { level, turn: self.turns };
        self.turns = self.turns.wrapping_add(1);
        if let Some(node) = self.nodes.get_mut(row as usize) {
            *node = Node { rank, left: NIL, right: NIL, height: 1, sets, below: sets };
            self.root = self.inserted(self.root, row, rank);
            self.len = self.len.saturating_add(1);
        }
    }

    /// The row must be in the tree.
    pub fn remove(&mut self, row: Row) {
        if let Some(&Node { rank, .. }) = self.node(row) {
            self.root = self.removed(self.root, row, rank);
            self.len = self.len.saturating_sub(1);
        }
    }

    /// The first in order who may run on the CPU.
    #[inline]
    pub fn first_on(&self, cpu: CpuId) -> Option<(Row, i128)> {
        if self.is_empty() { None } else { self.first(Which::Hard, &CpuSet::of(cpu)) }
    }

    /// The first in order for whom the set shares a CPU with `cpus`.
    pub fn first(&self, which: Which, cpus: &CpuSet) -> Option<(Row, i128)> {
        let mut at = self.root;
        loop {
            let node = self.node(at)?;
            // What is below meets `cpus` only if one of those below does by itself, so that the descent never turns back.
            if !node.below.meets(which, cpus) {
                return None;
            }
            let left = self.node(node.left).is_some_and(|left| left.below.meets(which, cpus));
            if left {
                at = node.left;
            } else if node.sets.meets(which, cpus) {
                return Some((at, node.rank.level));
            } else {
                at = node.right;
            }
        }
    }

    fn node(&self, row: Row) -> Option<&Node> {
        self.nodes.get(row as usize)
    }

    fn inserted(&mut self, at: Row, row: Row, rank: Rank) -> Row {
        let Some(&Node { rank: here, left, right, .. }) = self.node(at) else { return row };
        if rank < here {
            let left = self.inserted(left, row, rank);
            self.balanced(at, left, right)
        } else {
            let right = self.inserted(right, row, rank);
            self.balanced(at, left, right)
        }
    }

    fn removed(&mut self, at: Row, row: Row, rank: Rank) -> Row {
        let Some(&Node { rank: here, left, right, .. }) = self.node(at) else { return NIL };
        if at == row {
            if right == NIL {
                return left;
            }
            let (next, right) = self.without_first(right);
            return self.balanced(next, left, right);
        }
        if rank < here {
            let left = self.removed(left, row, rank);
            self.balanced(at, left, right)
        } else {
            let right = self.removed(right, row, rank);
            self.balanced(at, left, right)
        }
    }

    /// The first below `at`, and what is left without it.
    fn without_first(&mut self, at: Row) -> (Row, Row) {
        let Some(&Node { left, right, .. }) = self.node(at) else { return (NIL, NIL) };
        if left == NIL {
            return (at, right);
        }
        let (first, left) = self.without_first(left);
        (first, self.balanced(at, left, right))
    }

    /// Makes a tree of `at` and two subtrees whose heights differ by two at most.
    fn balanced(&mut self, at: Row, left: Row, right: Row) -> Row {
        let (l, r) = (self.height(left), self.height(right));
        if l > r.saturating_add(1) {
            let Some(&Node { left: a, right: b, .. }) = self.node(left) else { return at };
            if self.height(a) >= self.height(b) {
                let at = self.joined(at, b, right);
                self.joined(left, a, at)
            } else {
                let Some(&Node { left: c, right: d, .. }) = self.node(b) else { return at };
                let left = self.joined(left, a, c);
                let at = self.joined(at, d, right);
                self.joined(b, left, at)
            }
        } else if r > l.saturating_add(1) {
            let Some(&Node { left: a, right: b, .. }) = self.node(right) else { return at };
            if self.height(b) >= self.height(a) {
                let at = self.joined(at, left, a);
                self.joined(right, at, b)
            } else {
                let Some(&Node { left: c, right: d, .. }) = self.node(a) else { return at };
                let at = self.joined(at, left, c);
                let right = self.joined(right, d, b);
                self.joined(a, at, right)
            }
        } else {
            self.joined(at, left, right)
        }
    }

    fn joined(&mut self, at: Row, left: Row, right: Row) -> Row {
        let height = self.height(left).max(self.height(right)).saturating_add(1);
        let below = self.below(left).with(self.below(right));
        if let Some(node) = self.nodes.get_mut(at as usize) {
            let below = below.with(node.sets);
            *node = Node { left, right, height, below, ..*node };
        }
        at
    }

    fn height(&self, at: Row) -> u8 {
        self.node(at).map_or(0, |node| node.height)
    }

    fn below(&self, at: Row) -> Sets {
        self.node(at).map_or(Sets::default(), |node| node.below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROWS: u32 = 64;

    fn tree() -> WaitTree {
        let mut tree = WaitTree::new();
        tree.reserve(ROWS as usize).unwrap();
        tree
    }

    fn on(cpus: u8) -> Sets {
        let set = |bits: u8| (0..8).filter(|bit| bits >> bit & 1 != 0).map(CpuId).collect();
        Sets { hard: set(cpus), preferred: set(cpus & 0x55) }
    }

    fn check(tree: &WaitTree, at: Row) -> usize {
        let Some(node) = tree.node(at) else { return 0 };
        let (l, r) = (tree.height(node.left), tree.height(node.right));
        assert!(l.abs_diff(r) <= 1, "out of balance: {l} and {r}");
        assert_eq!(node.height, l.max(r) + 1);
        check(tree, node.left) + 1 + check(tree, node.right)
    }

    #[test]
    fn those_with_equal_credit_take_turns() {
        let mut tree = tree();
        [5, 3, 9].into_iter().for_each(|row| tree.insert(row, 0, on(1)));
        let next = |tree: &WaitTree| tree.first(Which::Hard, &CpuSet::ALL).map(|(row, _)| row);
        assert_eq!(next(&tree), Some(5));
        tree.remove(5);
        tree.insert(5, 0, on(1));
        assert_eq!(next(&tree), Some(3));
    }

    proptest! {
        #[test]
        fn the_tree_agrees_with_a_sorted_list(steps in prop::collection::vec((0..ROWS, -8..8i128, 1..=255u8), 1..400)) {
            let mut tree = tree();
            let storage = tree.nodes.capacity();
            let mut model: Vec<(Row, i128, u8)> = Vec::new();
            for (row, level, cpus) in steps {
                match model.iter().position(|&(other, ..)| other == row) {
                    Some(place) => {
                        model.remove(place);
                        tree.remove(row);
                    }
                    None => {
                        let place = model.partition_point(|&(_, other, _)| other >= level);
                        model.insert(place, (row, level, cpus));
                        tree.insert(row, level, on(cpus));
                    }
                }
                prop_assert_eq!(check(&tree, tree.root), model.len());
                prop_assert_eq!(tree.len(), model.len());
                prop_assert_eq!(tree.reach(), on(model.iter().fold(0, |all, (.., cpus)| all | cpus)).hard);
                for cpu in 0..8 {
                    let one = CpuSet::of(CpuId(cpu));
                    let hard = model.iter().find(|(.., cpus)| cpus >> cpu & 1 != 0);
                    prop_assert_eq!(tree.first(Which::Hard, &one), hard.map(|&(row, level, _)| (row, level)));
                    let preferred = hard.filter(|_| cpu % 2 == 0);
                    prop_assert_eq!(tree.first(Which::Preferred, &one), preferred.map(|&(row, level, _)| (row, level)));
                }
            }
            prop_assert_eq!(storage, tree.nodes.capacity());
        }
    }
}
