//! Mapping and unmapping another domain's frames.
//!
//! A mapping is three things that come and go together: a pin on the granter's entry, a reference to the frame, and a page in the
//! mapper's p2m. It ends in the reverse order: the page goes first, then the machine flushes, and only then may the frame be freed
//! ([`Unmapped::finish`]).

use alloc::sync::Arc;

use mm::addr::{Gfn, GuestPhys, Mfn};
use mm::p2m::Flush;
use mm::table::{MemoryType, PageFormat, PageKind};
use xen_abi::errno::Errno;
use xen_abi::grant::*;
use xen_abi::types::GrantRef;

use super::copy::may_write;
use super::maptrack::Track;
use super::{GrantTable, Party, Purpose, Refused, Wanted};

/// What is to be mapped, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    pub gref: GrantRef,
    pub at: Gfn,
    pub write: bool,
}

impl MapRequest {
    /// What a translated domain may ask for: a mapping in its physical memory, and none in page tables.
    #[inline]
    pub fn decode(op: &MapGrantRef) -> Result<MapRequest, Refused> {
        // A translated domain's devices see its physical memory, so that device mappings come with the host mapping.
        const KNOWN: u32 = GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP | GNTMAP_READONLY;
        if op.flags & (GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP) == 0 {
            return Err(Refused::BadReference);
        }
        if op.flags & GNTMAP_HOST_MAP == 0 || op.flags & !KNOWN != 0 {
            return Err(Refused::General);
        }
        let at = GuestPhys(op.host_addr).gfn();
        Ok(MapRequest { gref: op.gref, at, write: op.flags & GNTMAP_READONLY == 0 })
    }
}

const fn kind(write: bool) -> PageKind {
    if write { PageKind::GrantRw } else { PageKind::GrantRo }
}

/// Maps what `granter` granted into `mapper`'s physical memory, where nothing is mapped yet. The handle and the frame.
#[inline]
pub fn map<F: PageFormat>(
    mapper: Party<'_, F>,
    vcpu: usize,
    granter: Party<'_, F>,
    request: MapRequest,
) -> Result<(u32, Mfn), Refused> {
    let MapRequest { gref, at, write } = request;
    let table = &granter.grants.table;
    let granted = table.pin(gref, Wanted { by: mapper.id, write, purpose: Purpose::Map })?;
    let (frame, found) = granter.p2m.reference(granted.frame).map_err(|errno| {
        table.unpin(gref, write);
        refused_page(errno)
    })?;
    // From here on, what is dropped is undone.
    let mfn = frame.mfn();
    let track = Track { table: Arc::clone(table), gref, write, frame, at };
    if write && !may_write(found.kind) {
        return Err(Refused::General);
    }
    let handle = mapper.grants.maptrack.allocate(vcpu).ok_or(Refused::NoRoom)?;
    match mapper.p2m.insert(at, mfn, kind(write), MemoryType::WriteBack) {
        Ok(()) => {
            mapper.grants.maptrack.fill(handle, track);
            Ok((handle, mfn))
        }
        Err(errno) => {
            mapper.grants.maptrack.give_back(handle);
            Err(if errno == Errno::ENOMEM { Refused::NoRoom } else { Refused::General })
        }
    }
}

/// Why a granter's frame cannot be had.
pub(super) fn refused_page(errno: Errno) -> Refused {
    match errno {
        // It may be populated by the time of the next try.
        Errno::ENOMEM | Errno::ENOBUFS => Refused::Again,
        Errno::EAGAIN | Errno::EBUSY => Refused::Again,
        _ => Refused::BadPage,
    }
}

/// What is to be unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmapRequest {
    pub handle: u32,
    pub at: Gfn,
}

impl UnmapRequest {
    #[inline]
    pub fn decode(op: &UnmapGrantRef) -> UnmapRequest {
        UnmapRequest { handle: op.handle, at: GuestPhys(op.host_addr).gfn() }
    }

    /// Replacing a mapping by another page is for page tables only.
    pub fn decode_replace(op: &UnmapAndReplace) -> Result<UnmapRequest, Refused> {
        if op.new_addr != 0 {
            return Err(Refused::General);
        }
        Ok(UnmapRequest { handle: op.handle, at: GuestPhys(op.host_addr).gfn() })
    }
}

/// A mapping that is gone from the p2m, though CPUs may still use it.
#[must_use = "the pin, the frame and the handle are given back by `finish`"]
pub struct Unmapped {
    handle: u32,
    track: Track,
}

/// Takes a mapping out of the p2m. Of several who name the same handle, one succeeds.
#[inline]
pub fn unmap<F: PageFormat>(mapper: Party<'_, F>, request: UnmapRequest) -> Result<(Unmapped, Flush), Refused> {
    let UnmapRequest { handle, at } = request;
    let here = |track: &Track| if track.at == at { Ok(()) } else { Err(Refused::BadAddress) };
    let track = mapper.grants.maptrack.take(handle, Refused::BadHandle, here)?;
    let flush = mapper.p2m.remove(at, track.frame.mfn(), kind(track.write));
    Ok((Unmapped { handle, track }, flush))
}

impl Unmapped {
    /// Gives everything back. The flush that came with it must have been spent.
    #[inline]
    pub fn finish(self, mapper: &GrantTable) {
        drop(self.track);
        mapper.maptrack.give_back(self.handle);
    }
}

/// Lets go of up to `limit` mappings of a domain that is being taken down: nothing walks its p2m any more. The handle to go on with,
/// or `None` when there are no more.
pub fn release_all(mapper: &GrantTable, from: u32, limit: usize) -> Option<u32> {
    let mut released = 0usize;
    for handle in mapper.maptrack.handles().skip(from as usize) {
        if released == limit {
            return Some(handle);
        }
        if let Ok(track) = mapper.maptrack.take(handle, (), |_| Ok(())) {
            Unmapped { handle, track }.finish(mapper);
            released = released.saturating_add(1);
        }
    }
    None
}
