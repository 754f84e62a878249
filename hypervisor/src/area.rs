//! A structure that the guest and the hypervisor share at a place of the guest's choosing: a [`SharedPage`] and an offset in it.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use mm::SharedPage;

/// `len` bytes at `offset` of a shared page; never crosses the page.
pub struct Area {
    page: SharedPage,
    offset: usize,
    len: usize,
}

impl Area {
    /// `None` if the bytes do not lie within one page.
    pub fn new(page: SharedPage, offset: usize, len: usize) -> Option<Area> {
        (offset.checked_add(len)? <= mm::PAGE_SIZE).then_some(Area { page, offset, len })
    }

    fn place(&self, field: usize, size: usize) -> Option<usize> {
        (field.checked_add(size)? <= self.len).then(|| self.offset.wrapping_add(field))
    }

    #[inline]
    pub fn atomic_u8(&self, field: usize) -> Option<&AtomicU8> {
        self.page.atomic_u8(self.place(field, 1)?)
    }

    #[inline]
    pub fn atomic_u32(&self, field: usize) -> Option<&AtomicU32> {
        self.page.atomic_u32(self.place(field, 4)?)
    }

    #[inline]
    pub fn atomic_u64(&self, field: usize) -> Option<&AtomicU64> {
        self.page.atomic_u64(self.place(field, 8)?)
    }

    /// Stores a `u64` that may be only four-byte aligned (32-bit layouts): as two halves where it must.
    pub fn store_u64(&self, field: usize, value: u64) {
        if let Some(whole) = self.atomic_u64(field) {
            whole.store(value, Ordering::Relaxed);
        } else if let (Some(low), Some(high)) = (self.atomic_u32(field), self.atomic_u32(field.wrapping_add(4))) {
            low.store(value as u32, Ordering::Relaxed);
            high.store((value >> 32) as u32, Ordering::Relaxed);
        }
    }

    pub fn store_u32(&self, field: usize, value: u32) {
        if let Some(word) = self.atomic_u32(field) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

impl Area {
    #[inline]
    pub fn page(&self) -> &SharedPage {
        &self.page
    }

    #[inline]
    pub fn offset(&self) -> usize {
        self.offset
    }
}
