//! The only door to physical memory.
//!
//! On the machine the window is a direct map; on the host it is a piece of the heap (see `fake`). What lies behind it is
//! shared with guests, devices and other CPUs, so nothing here ever makes a reference to it except to atomics.
//!
//! The window cannot tell whose a frame is. Its users keep to frames that the frame table gives them (page tables, frames of
//! a domain, frames in transit) and to firmware's tables; never to those that hold Rust values, the heap's and the image's.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use xen_abi::errno::Errno;

use crate::addr::{HostPhys, Mfn, PAGE_SHIFT, PAGE_SIZE};
use crate::copy;

/// A physical address that the window does not show, or one not aligned as the access needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddress(pub HostPhys);

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "physical address {} is misaligned or beyond the end of memory", self.0)
    }
}

impl From<BadAddress> for Errno {
    fn from(_: BadAddress) -> Self {
        Self::EFAULT
    }
}

/// A view of physical memory from address zero up to a limit.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    base: *mut u8,
    limit: u64,
}

// SAFETY: the window is a number; what is behind it is only touched atomically or by copies that admit of racing.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

macro_rules! atomics {
    ($($(#[$doc:meta])* $name:ident: $atomic:ty;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// `BadAddress` if it is not aligned to its size or lies beyond the limit.
        #[inline]
        pub fn $name(&self, at: HostPhys) -> Result<&'static $atomic, BadAddress> {
            const SIZE: u64 = size_of::<$atomic>() as u64;
            if !at.is_aligned(SIZE) {
                return Err(BadAddress(at));
            }
            let pointer = self.pointer(at, SIZE)?;
            // SAFETY: mapped for ever, in bounds and aligned; others touch it by atomics or volatile copies.
            Ok(unsafe { <$atomic>::from_ptr(pointer.cast()) })
        }
    )*};
}

impl Window {
    /// A window whose byte 0 appears at `base` and which ends before `limit`.
    ///
    /// # Safety
    /// All RAM below `limit` must stay mapped there, readable and writable, for ever. Memory that Rust values live in may be
    /// behind the window, but then nobody may pass an address there to its methods.
    pub const unsafe fn new(base: *mut u8, limit: HostPhys) -> Self {
        Self { base, limit: limit.0 }
    }

    /// The first address that is not shown.
    pub const fn limit(&self) -> HostPhys {
        HostPhys(self.limit)
    }

    /// Where `len` bytes from `at` appear.
    #[inline]
    pub fn pointer(&self, at: HostPhys, len: u64) -> Result<*mut u8, BadAddress> {
        match at.0.checked_add(len) {
            Some(end) if end <= self.limit => Ok(self.base.wrapping_add(at.0 as usize)),
            _ => Err(BadAddress(at)),
        }
    }

    /// The frame whose memory appears at `pointer`.
    pub(crate) fn mfn_of(&self, pointer: *mut u8) -> Option<Mfn> {
        let at = pointer.addr().checked_sub(self.base.addr())? as u64;
        (at < self.limit).then(|| HostPhys(at).mfn())
    }

    /// Entry `index` (its low nine bits) of the page table in frame `table`.
    #[inline]
    pub(crate) fn table_entry(&self, table: Mfn, index: u64) -> Result<&'static AtomicU64, BadAddress> {
        let pointer = self.pointer(table.phys(), PAGE_SIZE as u64)?;
        // SAFETY: the frame is mapped for ever and the entry inside it and aligned; page tables are only touched by atomics.
        Ok(unsafe { AtomicU64::from_ptr(pointer.wrapping_add((index as usize & 511) << 3).cast()) })
    }

    atomics! {
        /// The byte at `at`.
        atomic_u8: AtomicU8;
        /// The 16-bit word at `at`.
        atomic_u16: AtomicU16;
        /// The 32-bit word at `at`.
        atomic_u32: AtomicU32;
        /// The 64-bit word at `at`.
        atomic_u64: AtomicU64;
    }

    /// Reads the aligned word at `at`, in one piece.
    #[inline]
    pub fn read_u64(&self, at: HostPhys) -> Result<u64, BadAddress> {
        Ok(self.atomic_u64(at)?.load(Ordering::Relaxed))
    }

    /// Writes the aligned word at `at`, in one piece.
    #[inline]
    pub fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BadAddress> {
        self.atomic_u64(at)?.store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Copies from physical memory. What others change meanwhile may arrive mixed, but aligned words of up to eight bytes
    /// within 64 bytes arrive whole.
    #[inline(always)]
    pub fn copy_from(&self, from: HostPhys, to: &mut [u8]) -> Result<(), BadAddress> {
        let pointer = self.pointer(from, to.len() as u64)?;
        // SAFETY: in bounds, mapped; without references by the module's rule.
        unsafe { copy::read(pointer, to) };
        Ok(())
    }

    /// Copies to physical memory; as whole as [`copy_from`](Self::copy_from).
    #[inline]
    pub fn copy_to(&self, to: HostPhys, from: &[u8]) -> Result<(), BadAddress> {
        let pointer = self.pointer(to, from.len() as u64)?;
        // SAFETY: in bounds, mapped; without references by the module's rule.
        unsafe { copy::write(pointer, from) };
        Ok(())
    }

    /// Copies between two places in physical memory, both within the window, upwards if they overlap.
    pub fn copy_within(&self, from: HostPhys, to: HostPhys, len: usize) -> Result<(), BadAddress> {
        let (source, target) = (self.pointer(from, len as u64)?, self.pointer(to, len as u64)?);
        // SAFETY: both in bounds, mapped and without references. Overlap is well defined for the string instruction.
        unsafe { copy::string_copy(source, target, len) };
        Ok(())
    }

    /// Copies a whole frame.
    pub fn copy_frame(&self, from: Mfn, to: Mfn) -> Result<(), BadAddress> {
        self.copy_within(from.phys(), to.phys(), PAGE_SIZE)
    }

    /// Fills a frame with zeroes.
    pub fn zero_frame(&self, frame: Mfn) -> Result<(), BadAddress> {
        self.zero_frames(frame, 1)
    }

    /// Fills `count` frames with zeroes.
    pub fn zero_frames(&self, first: Mfn, count: u64) -> Result<(), BadAddress> {
        let bytes = count.checked_mul(PAGE_SIZE as u64).ok_or(BadAddress(first.phys()))?;
        let pointer = self.pointer(first.phys(), bytes)?;
        // SAFETY: in bounds, mapped; without references by the module's rule.
        unsafe { copy::string_zero(pointer, bytes as usize >> 3) };
        Ok(())
    }

    /// A view of one frame, for those who touch it often.
    pub fn page(&self, frame: Mfn) -> Result<PageView, BadAddress> {
        if frame.0 > u64::MAX >> PAGE_SHIFT {
            return Err(BadAddress(HostPhys(u64::MAX)));
        }
        Ok(PageView { base: self.pointer(frame.phys(), PAGE_SIZE as u64)? })
    }
}

/// One frame seen through the window. Does not keep the frame from being freed: see [`crate::shared`] for that.
#[derive(Clone, Copy, Debug)]
pub struct PageView {
    base: *mut u8,
}

// SAFETY: as for `Window`, of which this is a piece.
unsafe impl Send for PageView {}
// SAFETY: as above.
unsafe impl Sync for PageView {}

macro_rules! page_atomics {
    ($($name:ident: $atomic:ty;)*) => {$(
        /// The word at `offset`; `None` where it is not aligned to its size or does not lie in the page.
        #[inline]
        pub fn $name(&self, offset: usize) -> Option<&$atomic> {
            if offset & size_of::<$atomic>().wrapping_sub(1) != 0 || offset >= PAGE_SIZE {
                return None;
            }
            // SAFETY: an aligned word that begins in a mapped page lies in it; others touch it by atomics or volatile copies.
            Some(unsafe { <$atomic>::from_ptr(self.base.wrapping_add(offset).cast()) })
        }
    )*};
}

impl PageView {
    page_atomics! {
        atomic_u8: AtomicU8;
        atomic_u16: AtomicU16;
        atomic_u32: AtomicU32;
        atomic_u64: AtomicU64;
    }

    fn range(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        (end <= PAGE_SIZE).then(|| self.base.wrapping_add(offset))
    }

    /// Copies out of the page; `None`, and nothing done, where it would reach beyond its end.
    #[inline]
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        let from = self.range(offset, to.len())?;
        // SAFETY: within a mapped page, without references by the module's rule.
        unsafe { copy::read(from, to) };
        Some(())
    }

    /// Copies into the page; `None`, and nothing done, where it would reach beyond its end.
    #[inline]
    pub fn write(&self, offset: usize, from: &[u8]) -> Option<()> {
        let to = self.range(offset, from.len())?;
        // SAFETY: within a mapped page, without references by the module's rule.
        unsafe { copy::write(to, from) };
        Some(())
    }
}
