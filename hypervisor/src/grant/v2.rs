//! Entries of version 2: sixteen bytes that only the granter writes, with the status bits in an array of their own.

use core::sync::atomic::Ordering;

use mm::SharedPage;
use mm::addr::Gfn;
use xen_abi::grant::*;
use xen_abi::types::DomainId;

use super::{Granted, Purpose, Refused, Wanted};

/// Entries in a frame.
pub const PER_FRAME: u32 = (mm::PAGE_SIZE / SIZE) as u32;
/// Status words in a frame of them.
pub const STATUS_PER_FRAME: u32 = (mm::PAGE_SIZE / STATUS_SIZE) as u32;

const SIZE: usize = size_of::<EntryV2>();
const STATUS_SIZE: usize = 2;
const PART: usize = core::mem::offset_of!(EntryV2, page_off);
const FRAME: usize = core::mem::offset_of!(EntryV2, frame);

/// Where an entry is, and where its status.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub page: &'a SharedPage,
    pub index: usize,
    pub status_page: &'a SharedPage,
    pub status_index: usize,
}

/// Sets the status bits of this use and checks the entry. `before` are the bits that other uses have set: they stay if this one is
/// refused.
#[inline]
pub fn claim(place: Place<'_>, wanted: Wanted, before: u16) -> Result<Granted, Refused> {
    let at = place.index.wrapping_mul(SIZE);
    // Flags in the low half, the domain in the high one.
    let header = place.page.atomic_u32(at).ok_or(Refused::BadReference)?;
    let part = place.page.atomic_u32(at.wrapping_add(PART)).ok_or(Refused::BadReference)?;
    let frame = place.page.atomic_u64(at.wrapping_add(FRAME)).ok_or(Refused::BadReference)?;
    let status = place.page_status().ok_or(Refused::BadReference)?;

    let bits = if wanted.write { GTF_READING | GTF_WRITING } else { GTF_READING };
    check(header.load(Ordering::Acquire), wanted)?;
    // The granter clears its flags and then looks at the status, so here it is the other way round: whoever comes second sees it.
    status.fetch_or(bits, Ordering::SeqCst);
    let seen = header.load(Ordering::SeqCst);
    if let Err(refused) = check(seen, wanted) {
        status.fetch_and(!(bits & !before), Ordering::SeqCst);
        return Err(refused);
    }
    let frame = frame.load(Ordering::Acquire);
    if seen as u16 & GTF_SUB_PAGE == 0 {
        return Ok(Granted::whole(frame));
    }
    let part = part.load(Ordering::Acquire);
    Ok(Granted { frame: Gfn(frame), offset: part as u16, length: (part >> 16) as u16 })
}

#[inline]
fn check(header: u32, wanted: Wanted) -> Result<(), Refused> {
    let (flags, domain) = (header as u16, DomainId((header >> 16) as u16));
    let forms = match wanted.purpose {
        Purpose::Map => GTF_TYPE_MASK | GTF_SUB_PAGE,
        Purpose::Copy => GTF_TYPE_MASK,
    };
    let permitted = flags & forms == GTF_PERMIT_ACCESS && domain == wanted.by;
    let writable = flags & GTF_READONLY == 0 || !wanted.write;
    if permitted && writable { Ok(()) } else { Err(Refused::General) }
}

/// Clears the status bits `status`.
#[inline]
pub fn release(place: Place<'_>, status: u16) {
    if let Some(word) = place.page_status() {
        word.fetch_and(!status, Ordering::SeqCst);
    }
}

impl<'a> Place<'a> {
    #[inline]
    fn page_status(&self) -> Option<&'a core::sync::atomic::AtomicU16> {
        self.status_page.atomic_u16(self.status_index.wrapping_mul(STATUS_SIZE))
    }

    /// The status word, for those who move the entry.
    pub fn status(&self) -> Option<u16> {
        Some(self.page_status()?.load(Ordering::Acquire))
    }

    pub fn set_status(&self, status: u16) -> Option<()> {
        self.page_status()?.store(status, Ordering::Release);
        Some(())
    }
}

/// The whole entry, for those who move it.
pub fn read(page: &SharedPage, index: usize) -> Option<EntryV2> {
    let at = index.checked_mul(SIZE)?;
    let head = page.atomic_u64(at)?.load(Ordering::Acquire);
    let frame = page.atomic_u64(at.checked_add(FRAME)?)?.load(Ordering::Acquire);
    Some(zerocopy::transmute!([head, frame]))
}

pub fn write(page: &SharedPage, index: usize, entry: EntryV2) -> Option<()> {
    let [head, frame]: [u64; 2] = zerocopy::transmute!(entry);
    let at = index.checked_mul(SIZE)?;
    page.atomic_u64(at.checked_add(FRAME)?)?.store(frame, Ordering::Release);
    page.atomic_u64(at)?.store(head, Ordering::Release);
    Some(())
}
