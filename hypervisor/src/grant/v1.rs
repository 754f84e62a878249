//! Entries of version 1: eight bytes, with the status bits among the flags that the granter writes.

use core::sync::atomic::Ordering;

use mm::SharedPage;
use xen_abi::grant::*;
use xen_abi::types::DomainId;

use super::{Granted, Refused, Wanted};

/// Entries in a frame.
pub const PER_FRAME: u32 = (mm::PAGE_SIZE / SIZE) as u32;

const SIZE: usize = size_of::<EntryV1>();
const FRAME: usize = core::mem::offset_of!(EntryV1, frame);

/// How often the granter may change the entry under our eyes.
const PATIENCE: u32 = 5;

/// Checks entry `index` and sets the status bits of this use, in one step.
#[inline]
pub fn claim(page: &SharedPage, index: usize, wanted: Wanted) -> Result<Granted, Refused> {
    let at = index.wrapping_mul(SIZE);
    // Flags in the low half, the domain in the high one.
    let header = page.atomic_u32(at).ok_or(Refused::BadReference)?;
    let frame = page.atomic_u32(at.wrapping_add(FRAME)).ok_or(Refused::BadReference)?;
    let mut seen = header.load(Ordering::Acquire);
    for _ in 0..PATIENCE {
        check(seen as u16, DomainId((seen >> 16) as u16), wanted)?;
        let status = if wanted.write { GTF_READING | GTF_WRITING } else { GTF_READING };
        let claimed = seen | u32::from(status);
        if claimed == seen {
            return Ok(Granted::whole(frame.load(Ordering::Acquire).into()));
        }
        match header.compare_exchange(seen, claimed, Ordering::SeqCst, Ordering::Acquire) {
            // The granter may not change the frame of an entry in use, so it is read once the entry is.
            Ok(_) => return Ok(Granted::whole(frame.load(Ordering::Acquire).into())),
            Err(now) => seen = now,
        }
    }
    Err(Refused::General)
}

#[inline]
fn check(flags: u16, domain: DomainId, wanted: Wanted) -> Result<(), Refused> {
    let permitted = flags & GTF_TYPE_MASK == GTF_PERMIT_ACCESS && domain == wanted.by;
    let writable = flags & GTF_READONLY == 0 || !wanted.write;
    if permitted && writable { Ok(()) } else { Err(Refused::General) }
}

/// Clears the status bits `status` of entry `index`.
#[inline]
pub fn release(page: &SharedPage, index: usize, status: u16) {
    if let Some(flags) = page.atomic_u16(index.wrapping_mul(SIZE)) {
        flags.fetch_and(!status, Ordering::SeqCst);
    }
}

/// The whole entry, for those who move it.
pub fn read(page: &SharedPage, index: usize) -> Option<EntryV1> {
    let word = page.atomic_u64(index.checked_mul(SIZE)?)?.load(Ordering::Acquire);
    Some(zerocopy::transmute!(word))
}

pub fn write(page: &SharedPage, index: usize, entry: EntryV1) -> Option<()> {
    page.atomic_u64(index.checked_mul(SIZE)?)?.store(zerocopy::transmute!(entry), Ordering::Release);
    Some(())
}
