//! The transient door to guest memory: copy and done.
//!
//! A copy may run while another CPU unmaps the frame; it then is one that began before. The machine waits with its shoot-down
//! until this CPU has left the host code that it is in, so the frame is not yet someone else's. That holds for the domain that
//! runs on this CPU. For another's memory take a [reference](crate::P2m::reference) first.

use core::sync::atomic::{AtomicU64, Ordering};

use xen_abi::errno::Errno;

use crate::addr::{GuestPhys, HostPhys, PAGE_SIZE};
use crate::memory::Memory;
use crate::p2m::{Cached, P2m};
use crate::table::PageFormat;

/// Where `at` is in the machine's memory, if there is memory and it may be used so.
#[inline]
fn place<F: PageFormat>(p2m: &P2m<F>, at: GuestPhys, write: bool) -> Result<HostPhys, Errno> {
    match p2m.lookup(at.gfn()) {
        Some(found) if found.kind.is_memory() && (!write || found.kind.writable()) => {
            Ok(HostPhys(found.mfn.phys().0 | at.page_offset() as u64))
        }
        Some(found) if found.kind.comes_when_touched() => touched_place(p2m, at, write),
        _ => Err(Errno::EFAULT),
    }
}

/// As [`place`], where there is no memory yet.
#[cold]
#[inline(never)]
fn touched_place<F: PageFormat>(p2m: &P2m<F>, at: GuestPhys, write: bool) -> Result<HostPhys, Errno> {
    match p2m.touch(at.gfn()) {
        Ok(found) if !write || found.kind.writable() => Ok(HostPhys(found.mfn.phys().0 | at.page_offset() as u64)),
        _ => Err(Errno::EFAULT),
    }
}

/// The bytes from `at` to the end of its frame, at most `len`.
#[inline]
fn piece(at: GuestPhys, len: usize) -> usize {
    PAGE_SIZE.wrapping_sub(at.page_offset()).min(len)
}

/// A domain's memory, by guest-physical addresses.
#[derive(Debug)]
pub struct GuestMemory<'a, F: PageFormat> {
    pub p2m: &'a P2m<F>,
    pub memory: &'static Memory,
}

impl<F: PageFormat> Clone for GuestMemory<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: PageFormat> Copy for GuestMemory<'_, F> {}

impl<'a, F: PageFormat> GuestMemory<'a, F> {
    pub fn new(p2m: &'a P2m<F>) -> Self {
        Self { p2m, memory: p2m.memory() }
    }

    /// Copies out of the guest.
    ///
    /// # Errors
    /// EFAULT where there is no memory; what lies before has been copied.
    pub fn copy_from(&self, mut at: GuestPhys, mut to: &mut [u8]) -> Result<(), Errno> {
        while let Some((chunk, rest)) =
            to.split_at_mut_checked(piece(at, to.len())).filter(|(chunk, _)| !chunk.is_empty())
        {
            self.memory.window().copy_from(place(self.p2m, at, false)?, chunk)?;
            at = at.plus(chunk.len() as u64);
            to = rest;
        }
        Ok(())
    }

    /// Copies into the guest.
    ///
    /// # Errors
    /// EFAULT where there is no memory or the guest itself may not write; what lies before has been copied.
    pub fn copy_to(&self, mut at: GuestPhys, mut from: &[u8]) -> Result<(), Errno> {
        while let Some((chunk, rest)) =
            from.split_at_checked(piece(at, from.len())).filter(|(chunk, _)| !chunk.is_empty())
        {
            self.memory.window().copy_to(place(self.p2m, at, true)?, chunk)?;
            at = at.plus(chunk.len() as u64);
            from = rest;
        }
        Ok(())
    }

    /// Fills a range with zeroes.
    ///
    /// # Errors
    /// As [`copy_to`](Self::copy_to).
    pub fn zero(&self, mut at: GuestPhys, mut len: u64) -> Result<(), Errno> {
        const ZEROES: [u8; 256] = [0; 256];
        while len > 0 {
            let count = if at.page_offset() == 0 && len >= PAGE_SIZE as u64 {
                self.memory.window().zero_frame(place(self.p2m, at, true)?.mfn())?;
                PAGE_SIZE as u64
            } else {
                let most = PAGE_SIZE.wrapping_sub(at.page_offset()).min(ZEROES.len()) as u64;
                let count = most.min(len);
                self.copy_to(at, ZEROES.get(..count as usize).unwrap_or(&ZEROES))?;
                count
            };
            at = at.plus(count);
            len = len.wrapping_sub(count);
        }
        Ok(())
    }

    /// Reads an aligned 64-bit word in one piece.
    ///
    /// # Errors
    /// EFAULT where there is no memory or `at` is not aligned.
    #[inline]
    pub fn load_u64(&self, at: GuestPhys) -> Result<u64, Errno> {
        Ok(self.memory.window().read_u64(place(self.p2m, at, false)?)?)
    }

    /// Replaces an aligned 64-bit word if it still is `current`, in one piece; whether it was. For the accessed and dirty
    /// bits of the guest's page tables.
    ///
    /// # Errors
    /// EFAULT where there is no memory, it is read-only or `at` is not aligned.
    #[inline]
    pub fn compare_exchange_u64(&self, at: GuestPhys, current: u64, new: u64) -> Result<bool, Errno> {
        let word: &AtomicU64 = self.memory.window().atomic_u64(place(self.p2m, at, true)?)?;
        Ok(word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }
}

/// As [`GuestMemory`], with a vCPU's cache of translations, and a frame at a time. For the vCPU that runs on this CPU.
impl<F: PageFormat> Cached<'_, F> {
    /// Copies out of one frame of the guest's.
    ///
    /// # Errors
    /// EFAULT where there is no memory, or beyond the end of the frame.
    #[inline(always)]
    pub fn copy_from(&mut self, at: GuestPhys, to: &mut [u8]) -> Result<(), Errno> {
        let place = self.place(at, to.len(), false)?;
        Ok(self.window().copy_from(place, to)?)
    }

    /// Copies into one frame of the guest's.
    ///
    /// # Errors
    /// As [`copy_from`](Self::copy_from), and where the guest itself may not write.
    #[inline]
    pub fn copy_to(&mut self, at: GuestPhys, from: &[u8]) -> Result<(), Errno> {
        let place = self.place(at, from.len(), true)?;
        Ok(self.window().copy_to(place, from)?)
    }

    #[inline(always)]
    fn place(&mut self, at: GuestPhys, len: usize, write: bool) -> Result<HostPhys, Errno> {
        if len > PAGE_SIZE.wrapping_sub(at.page_offset()) {
            return Err(Errno::EFAULT);
        }
        let found = self.lookup(at.gfn()).filter(|page| !write || page.writable());
        found.map(|page| page.at(at.page_offset())).ok_or(Errno::EFAULT)
    }
}

#[cfg(test)]
mod tests {
    use xen_abi::types::DomainId;

    use super::*;
    use crate::addr::{Gfn, Mfn, PageSize};
    use crate::fake;
    use crate::p2m::P2mCache;
    use crate::table::{MemoryType, PageKind};

    const OWNER: DomainId = DomainId(1);

    /// A guest with four frames of memory at gfn 16, backwards in the machine's, then one read-only and one of a device.
    fn guest() -> P2m<fake::Format> {
        let memory = fake::memory(64);
        let mfn = memory.allocate(3, None).unwrap().scrub().give_to(OWNER);
        let p2m = P2m::new(fake::Format::new(PageSize::Size4K), memory, OWNER).unwrap();
        let kinds = [PageKind::Ram, PageKind::Ram, PageKind::Ram, PageKind::Ram, PageKind::RamReadOnly, PageKind::Mmio];
        for (i, kind) in kinds.into_iter().enumerate() {
            let flush = p2m.map(Gfn(16 + i as u64), Mfn(mfn.0 + 7 - i as u64), 1, kind, MemoryType::WriteBack).unwrap();
            assert!(flush.is_none());
        }
        p2m
    }

    #[test]
    fn a_copy_across_frames_that_are_apart_arrives_whole() {
        let p2m = guest();
        let guest = GuestMemory::new(&p2m);
        let bytes: Vec<u8> = (0..3 * 4096 + 11).map(|i| (i * 7 % 251) as u8).collect();
        let at = GuestPhys(0x10_000 + 123);
        guest.copy_to(at, &bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        guest.copy_from(at, &mut back).unwrap();
        assert_eq!(back, bytes);
        let mut cache = P2mCache::new();
        let mut cached = cache.of(&p2m);
        let mut piece = [0; 4096 - 123];
        cached.copy_from(at, &mut piece).unwrap();
        assert_eq!(piece, bytes[..4096 - 123]);
        assert_eq!(cached.copy_from(at, &mut back), Err(Errno::EFAULT), "more than a frame");
        assert_eq!(cached.copy_to(at, &bytes[..4096 - 122]), Err(Errno::EFAULT), "more than a frame");
        let first = p2m.lookup(Gfn(16)).unwrap().mfn;
        let mut direct = [0; 4];
        p2m.memory().window().copy_from(HostPhys(first.phys().0 + 123), &mut direct).unwrap();
        assert_eq!(direct, bytes[..4]);
    }

    #[test]
    fn no_more_is_copied_than_there_is() {
        let p2m = guest();
        let guest = GuestMemory::new(&p2m);
        assert_eq!(guest.copy_from(GuestPhys(0xfff8), &mut [0; 16]), Err(Errno::EFAULT));
        assert_eq!(guest.copy_from(GuestPhys(0x14_ff8), &mut [0; 16]), Err(Errno::EFAULT), "a device's registers");
        assert_eq!(guest.copy_from(GuestPhys(u64::MAX - 3), &mut [0; 16]), Err(Errno::EFAULT));
        assert_eq!(guest.copy_from(GuestPhys(u64::MAX), &mut []), Ok(()));
    }

    #[test]
    fn what_the_guest_may_only_read_is_not_written_for_it() {
        let p2m = guest();
        let guest = GuestMemory::new(&p2m);
        let at = GuestPhys(0x14_000);
        assert_eq!(guest.copy_to(at, &[1]), Err(Errno::EFAULT));
        assert_eq!(guest.zero(at, 4096), Err(Errno::EFAULT));
        assert_eq!(P2mCache::new().of(&p2m).copy_to(at, &[1]), Err(Errno::EFAULT));
        assert_eq!(guest.compare_exchange_u64(at, 0, 1), Err(Errno::EFAULT));
        assert_eq!(guest.load_u64(at), Ok(0));
    }

    #[test]
    fn a_word_is_exchanged_only_if_it_is_as_expected() {
        let p2m = guest();
        let guest = GuestMemory::new(&p2m);
        let at = GuestPhys(0x10_008);
        assert_eq!(guest.compare_exchange_u64(at, 0, 7), Ok(true));
        assert_eq!(guest.compare_exchange_u64(at, 0, 8), Ok(false));
        assert_eq!(guest.load_u64(at), Ok(7));
        assert_eq!(guest.load_u64(GuestPhys(0x10_009)), Err(Errno::EFAULT));
    }

    #[test]
    fn zeroing_covers_the_range_and_no_more() {
        let p2m = guest();
        let guest = GuestMemory::new(&p2m);
        guest.copy_to(GuestPhys(0x10_000), &[0xff; 4 * 4096]).unwrap();
        guest.zero(GuestPhys(0x10_f01), 4096 + 300).unwrap();
        let mut bytes = vec![0; 4 * 4096];
        guest.copy_from(GuestPhys(0x10_000), &mut bytes).unwrap();
        for (i, byte) in bytes.iter().enumerate() {
            assert_eq!(*byte == 0, (0xf01..0xf01 + 4096 + 300).contains(&i), "byte {i:#x}");
        }
    }
}
