//! A few recent translations, for walking a guest's page tables in software: each of those steps looks a gfn up.

use core::num::NonZeroU64;

use xen_abi::errno::Errno;

use super::{P2m, Region};
use crate::addr::{Gfn, HostPhys, Mfn};
use crate::table::{Mapping, PageFormat};
use crate::window::Window;

/// Slots for single pages: the tables and arguments of a few hypercalls.
const PAGES: usize = 32;
/// Slots for 2 MiB of guest memory, which are looked at when a page has no slot.
const REGIONS: usize = 8;

/// A page of memory that the domain may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedPage(NonZeroU64);

impl CachedPage {
    const PRESENT: u64 = 1;
    const WRITABLE: u64 = 2;
    const FRAME: u64 = 0x000f_ffff_ffff_f000;

    fn new(mapping: Mapping) -> Option<Self> {
        let writable = if mapping.kind.writable() { Self::WRITABLE } else { 0 };
        let page = NonZeroU64::new(mapping.mfn.phys().0 & Self::FRAME | writable | Self::PRESENT)?;
        mapping.kind.is_memory().then_some(Self(page))
    }

    /// Where the byte at `offset` of the page is in the machine's memory.
    #[inline]
    pub const fn at(self, offset: usize) -> HostPhys {
        HostPhys(self.0.get() & Self::FRAME | offset as u64)
    }

    /// The domain may write it as well.
    #[inline]
    pub const fn writable(self) -> bool {
        self.0.get() & Self::WRITABLE != 0
    }
}

#[derive(Clone, Copy, Debug)]
struct PageSlot {
    gfn: u64,
    page: Option<CachedPage>,
}

#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct RegionSlot {
    /// `gfn >> 9`; the maximum for none.
    region: u64,
    what: Region,
}

/// A vCPU's cache of the lookups in its domain's p2m: direct-mapped, all dropped when the p2m's generation changes. It is a copy of what
/// a TLB could hold: as stale as that, and no longer. Only memory is cached.
#[derive(Clone, Debug)]
pub struct P2mCache {
    generation: u64,
    pages: [PageSlot; PAGES],
    regions: [RegionSlot; REGIONS],
    missed: Option<Gfn>,
}

impl Default for P2mCache {
    fn default() -> Self {
        Self::new()
    }
}

impl P2mCache {
    /// An empty cache. It must only ever be used with one p2m.
    pub const fn new() -> Self {
        let nothing = RegionSlot { region: u64::MAX, what: Region::Table(Mfn(0)) };
        let pages = [PageSlot { gfn: u64::MAX, page: None }; PAGES];
        Self { generation: 0, pages, regions: [nothing; REGIONS], missed: None }
    }

    /// The page that was looked for last of those that could not be populated. It is told once.
    pub fn take_missed(&mut self) -> Option<Gfn> {
        self.missed.take()
    }

    /// Looks at the p2m's generation, and is up to date then.
    #[inline]
    pub fn of<'a, F: PageFormat>(&'a mut self, p2m: &'a P2m<F>) -> Cached<'a, F> {
        let generation = p2m.generation();
        if generation != self.generation {
            self.start_anew(generation);
        }
        Cached { p2m, cache: self }
    }

    #[cold]
    #[inline(never)]
    fn start_anew(&mut self, generation: u64) {
        *self = Self { generation, ..Self::new() };
    }
}

/// A p2m by way of a cache that was up to date a moment ago. To be held no longer than what was looked up: for a step of an exit's handling.
#[derive(Debug)]
pub struct Cached<'a, F: PageFormat> {
    p2m: &'a P2m<F>,
    cache: &'a mut P2mCache,
}

impl<F: PageFormat> Cached<'_, F> {
    #[inline]
    pub fn window(&self) -> &'static Window {
        self.p2m.memory().window()
    }

    /// The memory behind `gfn`, if there is any.
    #[inline]
    pub fn lookup(&mut self, gfn: Gfn) -> Option<CachedPage> {
        match self.cache.pages.get(gfn.0 as usize % PAGES) {
            Some(slot) if slot.gfn == gfn.0 => slot.page,
            _ => self.miss(gfn),
        }
    }

    /// What is found now may be newer than the generation; it is dropped with it all the same.
    #[cold]
    #[inline(never)]
    fn miss(&mut self, gfn: Gfn) -> Option<CachedPage> {
        let region = gfn.0 >> 9;
        let slot = self.cache.regions.get_mut(region as usize % REGIONS)?;
        if slot.region != region {
            *slot = RegionSlot { region, what: self.p2m.lookup_region(gfn)? };
        }
        let mapping = match slot.what {
            Region::Whole(mapping) => Mapping { mfn: mapping.mfn.plus(gfn.0 & 511), ..mapping },
            Region::Table(table) => self.p2m.lookup_in(table, gfn)?,
        };
        // The last that is done here, so that the common case needs no room on the stack.
        let Some(page) = CachedPage::new(mapping) else { return self.touch(gfn) };
        *self.cache.pages.get_mut(gfn.0 as usize % PAGES)? = PageSlot { gfn: gfn.0, page: Some(page) };
        Some(page)
    }

    /// Memory that is there once it is populated.
    #[cold]
    #[inline(never)]
    fn touch(&mut self, gfn: Gfn) -> Option<CachedPage> {
        let region = gfn.0 >> 9;
        // What is populated changes without a new generation.
        self.cache.regions.get_mut(region as usize % REGIONS)?.region = u64::MAX;
        match self.p2m.touch(gfn) {
            Ok(found) => CachedPage::new(found),
            Err(errno) => {
                self.cache.missed = matches!(errno, Errno::ENOMEM | Errno::ENOBUFS).then_some(gfn);
                None
            }
        }
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
                    let found = p2m.lookup(Gfn(gfn)).and_then(CachedPage::new);
                    assert_eq!(cache.of(p2m).lookup(Gfn(gfn)), found, "gfn {gfn:#x}");
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
            assert_eq!(cache.of(&p2m).lookup(Gfn(600)).map(|page| page.at(5)), Some(HostPhys((mfn + 88) << 12 | 5)));
        }
        let _ = p2m.unmap(Gfn(512), 512).unwrap().spend();
        assert_eq!(cache.of(&p2m).lookup(Gfn(600)), None);
    }
}
