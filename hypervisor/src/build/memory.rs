//! The memory of a domain that is not mapped one to one: free frames, in the largest blocks that there are.

use core::ops::ControlFlow;

use mm::addr::{Gfn, GuestPhys, Mfn, PageSize};
use mm::table::{MemoryType, PageFormat, PageKind};
use mm::{Extent, GuestMemory, P2m, RangeSet};
use xen_abi::Errno;

use super::pvh::GuestWriter;

/// The blocks that are asked for: a page of each size.
const SIZES: [PageSize; 3] = [PageSize::Size1G, PageSize::Size2M, PageSize::Size4K];

/// An address space full of memory, before there is a domain that it belongs to. If none comes of it, the frames are free again.
#[derive(Debug)]
pub struct Populated<F: PageFormat>(Option<P2m<F>>);

impl<F: PageFormat> Populated<F> {
    /// Gives the empty `p2m` zeroed memory in all of `ram` (bytes, whole pages). ENOMEM if there is too little, EINVAL for gfns that do
    /// not exist.
    pub fn new(p2m: P2m<F>, ram: &RangeSet) -> Result<Populated<F>, Errno> {
        let populated = Populated(Some(p2m));
        let p2m = populated.p2m()?;
        for range in ram.iter() {
            let end = GuestPhys(range.end).gfn();
            let mut at = GuestPhys(range.start).gfn();
            // A size that has run out is not asked for again.
            let mut sizes = SIZES.as_slice();
            while at < end {
                let left = end.0.saturating_sub(at.0);
                let fits = |size: &PageSize| at.is_aligned(size.frames()) && size.frames() <= left;
                let size = sizes.iter().copied().find(fits).ok_or(Errno::ENOMEM)?;
                match give(p2m, at, size) {
                    Err(Errno::ENOMEM) if size != PageSize::Size4K => {
                        let smaller = sizes.iter().position(|other| *other < size).ok_or(Errno::ENOMEM)?;
                        sizes = sizes.get(smaller..).unwrap_or_default();
                    }
                    result => {
                        result?;
                        at = at.checked_add(size.frames()).ok_or(Errno::EINVAL)?;
                    }
                }
            }
        }
        Ok(populated)
    }

    /// The address space. EINVAL cannot be.
    pub fn p2m(&self) -> Result<&P2m<F>, Errno> {
        self.0.as_ref().ok_or(Errno::EINVAL)
    }

    /// The address space, for the domain that it belongs to from now on.
    pub fn into_p2m(mut self) -> Option<P2m<F>> {
        self.0.take()
    }
}

/// Gives one page. ENOMEM if there is no such block, or no memory for the tables.
fn give<F: PageFormat>(p2m: &P2m<F>, at: Gfn, size: PageSize) -> Result<(), Errno> {
    let mfn = p2m.memory().allocate(size.order(), None)?.scrub().give_to(p2m.owner());
    let mapped = p2m.map_absent(at, mfn, size.frames(), PageKind::Ram, MemoryType::WriteBack).map(|flush| {
        // No CPU has seen these tables.
        flush.spend();
    });
    if mapped.is_err() {
        free(p2m, mfn, size.frames());
    }
    mapped
}

/// Frees frames that nobody but the address space has.
fn free<F: PageFormat>(p2m: &P2m<F>, first: Mfn, frames: u64) {
    for mfn in (0..frames).map_while(|index| first.checked_add(index)) {
        let freed = p2m.memory().abandon(mfn, p2m.owner());
        debug_assert_eq!(freed, Ok(()), "{mfn} was given to the domain");
    }
}

impl<F: PageFormat> Drop for Populated<F> {
    fn drop(&mut self) {
        let Some(p2m) = self.0.take() else { return };
        let _ = p2m.visit(Gfn(0), u64::MAX, |Extent { mapping, frames, .. }| {
            free(&p2m, mapping.mfn, frames);
            ControlFlow::<()>::Continue(())
        });
    }
}

impl<F: PageFormat> GuestWriter for Populated<F> {
    fn write(&mut self, at: GuestPhys, bytes: &[u8]) -> Result<(), Errno> {
        GuestMemory::new(self.p2m()?).copy_to(at, bytes)
    }

    fn zero(&mut self, at: GuestPhys, len: u64) -> Result<(), Errno> {
        GuestMemory::new(self.p2m()?).zero(at, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mm::Memory;
    use mm::fake::{self, Format};
    use xen_abi::types::DomainId;

    const OWNER: DomainId = DomainId(3);
    const LARGE: u64 = 512;
    const PAGE: u64 = mm::PAGE_SIZE as u64;

    fn empty(memory: &'static Memory) -> P2m<Format> {
        P2m::new(Format::default(), memory, OWNER).unwrap()
    }

    fn ram(pages: core::ops::Range<u64>) -> RangeSet {
        let mut set = RangeSet::new();
        set.insert(pages.start * PAGE..pages.end * PAGE).unwrap();
        set
    }

    #[test]
    fn memory_comes_in_the_largest_pages_that_fit_and_holds_zeroes() {
        let memory = fake::memory(4 * LARGE);
        let p2m = Populated::new(empty(memory), &ram(LARGE - 2..2 * LARGE + 3)).unwrap().into_p2m().unwrap();
        let size = |gfn| p2m.lookup(Gfn(gfn)).map(|mapping| mapping.size);
        assert_eq!(size(LARGE - 3), None);
        assert_eq!((size(LARGE - 1), size(LARGE)), (Some(PageSize::Size4K), Some(PageSize::Size2M)));
        assert_eq!((size(2 * LARGE + 2), size(2 * LARGE + 3)), (Some(PageSize::Size4K), None));
        let guest = GuestMemory::new(&p2m);
        for gfn in LARGE - 2..2 * LARGE + 3 {
            assert_eq!(guest.load_u64(Gfn(gfn).phys()), Ok(0));
        }
    }

    #[test]
    fn where_large_blocks_run_out_small_ones_serve() {
        let memory = fake::memory(4 * LARGE);
        // A frame in the middle of each large block is taken.
        for block in 0..4 {
            memory.claim_range(Mfn(block * LARGE + 9)..Mfn(block * LARGE + 10), DomainId::DOM0).unwrap();
        }
        let p2m = Populated::new(empty(memory), &ram(0..2 * LARGE)).unwrap().into_p2m().unwrap();
        assert_eq!(p2m.lookup(Gfn(LARGE)).unwrap().size, PageSize::Size4K);
        assert!(p2m.lookup(Gfn(2 * LARGE - 1)).is_some());
    }

    #[test]
    fn what_does_not_come_to_be_leaves_no_trace() {
        let memory = fake::memory(2 * LARGE);
        let free = memory.free_frames();
        assert_eq!(Populated::new(empty(memory), &ram(0..3 * LARGE)).unwrap_err(), Errno::ENOMEM);
        assert_eq!(memory.free_frames(), free);
        let mut populated = Populated::new(empty(memory), &ram(0..LARGE + 1)).unwrap();
        populated.write(GuestPhys(LARGE * PAGE - 3), b"across two pages").unwrap();
        assert_eq!(populated.write(GuestPhys((LARGE + 1) * PAGE - 3), b"beyond"), Err(Errno::EFAULT));
        drop(populated);
        assert_eq!(memory.free_frames(), free);
    }
}
