//! A few recent translations, for walking a guest's page tables in software: each of those steps looks a gfn up.

use super::{P2m, Region};
use crate::addr::{Gfn, Mfn};
use crate::table::{Mapping, PageFormat};

const SLOTS: usize = 8;

#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct Slot {
    /// `gfn >> 9`; the maximum for none.
    region: u64,
    what: Region,
}

const NOTHING: Slot = Slot { region: u64::MAX, what: Region::Table(Mfn(0)) };

/// A vCPU's cache of the lookups in its domain's p2m: direct-mapped, an entry for 2 MiB of guest memory, all dropped when
/// the p2m's generation changes. It is a copy of what a TLB could hold: as stale as that, and no longer.
#[derive(Clone, Debug)]
pub struct P2mCache {
    generation: u64,
    slots: [Slot; SLOTS],
}

impl Default for P2mCache {
    fn default() -> Self {
        Self::new()
    }
}

impl P2mCache {
    /// An empty cache. It must only ever be used with one p2m.
    pub const fn new() -> Self {
        Self { generation: 0, slots: [NOTHING; SLOTS] }
    }

    /// As [`P2m::lookup`].
    #[inline]
    pub fn lookup<F: PageFormat>(&mut self, p2m: &P2m<F>, gfn: Gfn) -> Option<Mapping> {
        let region = gfn.0 >> 9;
        match self.slots.get(region as usize & (SLOTS - 1)) {
            Some(slot) if slot.region == region && p2m.generation() == self.generation => found(p2m, slot.what, gfn),
            _ => self.miss(p2m, gfn),
        }
    }

    #[cold]
    #[inline(never)]
    fn miss<F: PageFormat>(&mut self, p2m: &P2m<F>, gfn: Gfn) -> Option<Mapping> {
        // The generation is read first: a change during the walk makes the entry stale at once.
        let generation = p2m.generation();
        if generation != self.generation {
            *self = Self { generation, ..Self::new() };
        }
        let what = p2m.lookup_region(gfn)?;
        let region = gfn.0 >> 9;
        *self.slots.get_mut(region as usize & (SLOTS - 1))? = Slot { region, what };
        found(p2m, what, gfn)
    }
}

#[inline]
fn found<F: PageFormat>(p2m: &P2m<F>, what: Region, gfn: Gfn) -> Option<Mapping> {
    match what {
        Region::Whole(mapping) => Some(Mapping { mfn: mapping.mfn.plus(gfn.0 & 511), ..mapping }),
        Region::Table(table) => p2m.lookup_in(table, gfn),
    }
}

#[cfg(test)]
mod tests {
    use xen_abi::types::DomainId;

    use super::P2m;
    use super::*;
    use crate::addr::PageSize;
    use crate::fake;
    use crate::table::{MemoryType, PageKind};

    #[test]
    fn the_cache_agrees_with_the_p2m_whatever_changes() {
        let memory = fake::memory(128);
        let p2m = P2m::new(fake::Format::new(PageSize::Size1G), memory, DomainId(1)).unwrap();
        let mut cache = P2mCache::new();
        let mut check = |p2m: &P2m<fake::Format>| {
            for _ in 0..2 {
                for gfn in (0..12 * 512).step_by(37).chain(1 << 18..(1 << 18) + 3) {
                    assert_eq!(cache.lookup(p2m, Gfn(gfn)), p2m.lookup(Gfn(gfn)), "gfn {gfn:#x}");
                }
            }
        };
        check(&p2m);
        let map = |gfn, mfn, frames, kind| {
            let _ = p2m.map(Gfn(gfn), Mfn(mfn), frames, kind, MemoryType::WriteBack).unwrap().spend();
        };
        map(0, 0x10_0000, 12 * 512, PageKind::Ram);
        check(&p2m);
        map(700, 5, 100, PageKind::Ram);
        check(&p2m);
        map(1 << 18, 1 << 18, 1 << 18, PageKind::Mmio);
        check(&p2m);
        let _ = p2m.unmap(Gfn(500), 300).unwrap().spend();
        check(&p2m);
        let _ = p2m.change_kind(Gfn(1024), 600, PageKind::Ram, PageKind::LogDirty).unwrap().spend();
        check(&p2m);
        map(512, 0x2000, 512, PageKind::Ram);
        check(&p2m);
    }

    #[test]
    fn a_hit_ends_with_the_generation() {
        let p2m = P2m::new(fake::Format::default(), fake::memory(64), DomainId(1)).unwrap();
        let mut cache = P2mCache::new();
        for mfn in [512, 1024, 7, 2048] {
            let _ = p2m.map(Gfn(512), Mfn(mfn), 512, PageKind::Ram, MemoryType::WriteBack).unwrap().spend();
            assert_eq!(cache.lookup(&p2m, Gfn(600)).map(|found| found.mfn), Some(Mfn(mfn + 88)));
        }
        let _ = p2m.unmap(Gfn(512), 512).unwrap().spend();
        assert_eq!(cache.lookup(&p2m, Gfn(600)), None);
    }
}
