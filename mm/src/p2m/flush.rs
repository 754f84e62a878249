//! The token of what must be flushed.

/// What must be flushed: translations that were live before a change. The machine spends it by invalidating them on every CPU
/// (and IOMMU) that may have cached them. Until then, what was unmapped must not be given to others.
#[must_use = "stale translations stay in use until the machine spends this"]
#[derive(Debug, PartialEq, Eq)]
pub struct Flush {
    pub(super) generation: u64,
}

impl Flush {
    /// Nothing was live, so there is nothing to do.
    #[inline]
    pub const fn none() -> Self {
        Self { generation: 0 }
    }

    #[inline]
    pub const fn is_none(&self) -> bool {
        self.generation == 0
    }

    /// One flush that does for both; both must be of one p2m.
    #[inline]
    pub fn merge(self, other: Self) -> Self {
        Self { generation: self.generation.max(other.generation) }
    }

    /// Spends the flush: the generation of the p2m that CPUs must have caught up with, or `None` if they need not.
    #[inline]
    pub fn spend(self) -> Option<u64> {
        (self.generation != 0).then_some(self.generation)
    }
}
