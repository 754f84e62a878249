//! The long-lived door to guest memory: a page that both sides look at, such as shared_info, vcpu_info, FIFO queues and grant
//! tables.

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use xen_abi::errno::Errno;
use xen_abi::types::DomainId;

use crate::addr::{Gfn, HostPhys, Mfn};
use crate::memory::{FrameRef, Memory};
use crate::p2m::P2m;
use crate::table::PageFormat;
use crate::window::PageView;

#[derive(Debug)]
enum Keeper {
    /// The guest's own frame, kept from being freed.
    Guest(#[allow(dead_code, reason = "held for its drop")] FrameRef),
    /// A frame of the host's making, given up when this goes.
    Host { memory: &'static Memory, owner: DomainId },
}

/// A page that the host and a domain share. It stays in memory as long as this value lives.
#[derive(Debug)]
pub struct SharedPage {
    view: PageView,
    mfn: Mfn,
    keeper: Keeper,
}

impl SharedPage {
    /// The domain's own page behind `gfn`.
    ///
    /// # Errors
    /// EINVAL if there is no memory which the domain may write, EPERM if it is not its own, EAGAIN if it is being unmapped.
    pub fn of_guest<F: PageFormat>(p2m: &P2m<F>, memory: &'static Memory, gfn: Gfn) -> Result<Self, Errno> {
        let (reference, mapping) = p2m.reference(gfn)?;
        if !mapping.kind.writable() {
            return Err(Errno::EINVAL);
        }
        Self::of_frame(memory, reference)
    }

    /// The page behind a reference that was taken before.
    ///
    /// # Errors
    /// EFAULT if the window does not show it, which no frame with a reference comes to.
    pub fn of_frame(memory: &'static Memory, reference: FrameRef) -> Result<Self, Errno> {
        let mfn = reference.mfn();
        Ok(Self { view: memory.window().page(mfn)?, mfn, keeper: Keeper::Guest(reference) })
    }

    /// A new page of zeroes, charged to `owner`. When this is dropped the page is freed as soon as nobody maps it any more.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn allocate(memory: &'static Memory, owner: DomainId) -> Result<Self, Errno> {
        Self::allocate_below(memory, owner, None)
    }

    /// As [`allocate`](Self::allocate), for what must lie below an address.
    pub fn allocate_below(memory: &'static Memory, owner: DomainId, below: Option<HostPhys>) -> Result<Self, Errno> {
        let mfn = memory.allocate(0, below)?.scrub().into_shared(owner);
        Ok(Self { view: memory.window().page(mfn)?, mfn, keeper: Keeper::Host { memory, owner } })
    }

    #[inline]
    pub fn mfn(&self) -> Mfn {
        self.mfn
    }

    /// Whether the frame is the guest's own, and not one of the host's making.
    pub fn is_guests(&self) -> bool {
        matches!(self.keeper, Keeper::Guest(_))
    }

    /// The byte at `offset`; `None` beyond the page.
    #[inline]
    pub fn atomic_u8(&self, offset: usize) -> Option<&AtomicU8> {
        self.view.atomic_u8(offset)
    }

    /// The word at `offset`; `None` if it is not aligned or beyond the page.
    #[inline]
    pub fn atomic_u16(&self, offset: usize) -> Option<&AtomicU16> {
        self.view.atomic_u16(offset)
    }

    /// The word at `offset`; `None` if it is not aligned or beyond the page.
    #[inline]
    pub fn atomic_u32(&self, offset: usize) -> Option<&AtomicU32> {
        self.view.atomic_u32(offset)
    }

    /// The word at `offset`; `None` if it is not aligned or beyond the page.
    #[inline]
    pub fn atomic_u64(&self, offset: usize) -> Option<&AtomicU64> {
        self.view.atomic_u64(offset)
    }

    /// Copies out of the page; `None`, and nothing done, where that reaches beyond its end.
    #[inline]
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        self.view.read(offset, to)
    }

    /// Copies into the page; `None`, and nothing done, where that reaches beyond its end.
    #[inline]
    pub fn write(&self, offset: usize, from: &[u8]) -> Option<()> {
        self.view.write(offset, from)
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        if let Keeper::Host { memory, owner } = &self.keeper
            && let Err(error) = memory.abandon(self.mfn, *owner)
        {
            log::error!("memory: shared page {} of domain {} cannot be freed: {error:?}", self.mfn, owner.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering;

    use super::*;
    use crate::addr::PageSize;
    use crate::fake;
    use crate::table::{MemoryType, PageKind};

    const OWNER: DomainId = DomainId(4);

    #[test]
    fn both_sides_see_one_page() {
        let memory = fake::memory(64);
        let mfn = memory.allocate(0, None).unwrap().scrub().give_to(OWNER);
        let p2m = P2m::new(fake::Format::new(PageSize::Size4K), memory, OWNER).unwrap();
        assert!(p2m.map(Gfn(7), mfn, 1, PageKind::Ram, MemoryType::WriteBack).unwrap().is_none());
        let page = SharedPage::of_guest(&p2m, memory, Gfn(7)).unwrap();
        page.atomic_u32(8).unwrap().store(0x1234_5678, Ordering::Relaxed);
        let mut bytes = [0; 4];
        crate::GuestMemory::new(&p2m).copy_from(crate::GuestPhys(0x7008), &mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 0x1234_5678);
        assert_eq!(memory.free_owned(mfn, 0, OWNER), Err(Errno::EBUSY));
        drop(page);
        assert_eq!(memory.free_owned(mfn, 0, OWNER), Ok(()));
        assert_eq!(SharedPage::of_guest(&p2m, memory, Gfn(8)).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn words_outside_or_askew_are_refused() {
        let page = SharedPage::allocate(fake::memory(64), OWNER).unwrap();
        assert!(page.atomic_u8(4095).is_some() && page.atomic_u8(4096).is_none());
        assert!(page.atomic_u16(4094).is_some() && page.atomic_u16(4093).is_none());
        assert!(page.atomic_u32(4092).is_some() && page.atomic_u32(4094).is_none());
        assert!(page.atomic_u64(4088).is_some() && page.atomic_u64(4092).is_none() && page.atomic_u64(4096).is_none());
        assert!(page.write(4090, &[0; 7]).is_none() && page.write(4090, &[0; 6]).is_some());
        assert!(page.read(usize::MAX, &mut [0]).is_none());
    }

    #[test]
    fn a_host_page_outlives_its_value_while_it_is_mapped_elsewhere() {
        let memory = fake::memory(64);
        let free = memory.free_frames();
        let page = SharedPage::allocate(memory, OWNER).unwrap();
        let mapped = memory.reference(page.mfn(), OWNER).unwrap();
        drop(page);
        assert_eq!(memory.free_frames(), free - 1);
        drop(mapped);
        assert_eq!(memory.free_frames(), free);
    }
}
