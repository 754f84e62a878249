//! XENMEM: a domain's physical address space.

use core::sync::atomic::Ordering;

use mm::addr::{Gfn, Mfn};
use mm::table::PageKind;
use xen_abi::errno::Errno;
use xen_abi::handle::GuestHandle;
use xen_abi::memory::*;
use xen_abi::types::DomainId;

use crate::domain::Domain;
use crate::grant::Kind;
use crate::hypercall::{Arguments, Caller, Outcome};
use crate::machine::{Machine, Width};
use crate::physmap;

/// Extents that are worked on before others get a chance.
const BATCH: u64 = 256;
/// The largest extent that an ordinary domain, and the control domain, may ask for: 2 MiB and 1 GiB.
const LARGEST_ORDER: u32 = 9;
const LARGEST_CONTROL_ORDER: u32 = 18;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<Outcome, Errno> {
    let [command, argument, ..] = arguments;
    if caller.width == Width::Bits32 {
        // The structures of 32-bit callers differ.
        return super::memory_compat::op(caller, arguments);
    }
    let operation = command as u32 & MEMOP_CMD_MASK;
    let start = command >> MEMOP_EXTENT_SHIFT;
    let value = match operation {
        XENMEM_POPULATE_PHYSMAP | XENMEM_DECREASE_RESERVATION | XENMEM_INCREASE_RESERVATION => {
            let reservation = caller.read(caller.handle::<MemoryReservation>(argument))?;
            return reserve(caller, arguments, operation, start, &reservation);
        }
        XENMEM_ADD_TO_PHYSMAP => {
            let request = caller.read(caller.handle::<AddToPhysmap>(argument))?;
            add_to_physmap(caller, &request)?
        }
        XENMEM_ADD_TO_PHYSMAP_BATCH => {
            let request = caller.read(caller.handle::<AddToPhysmapBatch>(argument))?;
            return add_batch(caller, arguments, start, &request);
        }
        XENMEM_REMOVE_FROM_PHYSMAP => {
            let request = caller.read(caller.handle::<RemoveFromPhysmap>(argument))?;
            let domain = caller.target(request.domid)?;
            remove(caller, &domain, Gfn(request.gpfn))?
        }
        XENMEM_MEMORY_MAP => memory_map(caller, argument)?,
        XENMEM_MACHINE_MEMORY_MAP => {
            caller.require_control()?;
            memory_map(caller, argument)?
        }
        XENMEM_CURRENT_RESERVATION | XENMEM_MAXIMUM_RESERVATION | XENMEM_MAXIMUM_GPFN => {
            let request = caller.read(caller.handle::<MemoryDomain>(argument))?;
            let domain = caller.target(request.domid)?;
            match operation {
                XENMEM_CURRENT_RESERVATION => domain.pages.load(Ordering::Relaxed),
                XENMEM_MAXIMUM_RESERVATION => domain.max_pages.load(Ordering::Relaxed),
                _ => highest_gfn(&domain),
            }
        }
        XENMEM_MAXIMUM_RAM_PAGE => caller.system.memory.max_frame().0,
        XENMEM_ACQUIRE_RESOURCE => acquire_resource(caller, argument)?,
        // No page sharing, nothing paged out.
        XENMEM_GET_SHARING_FREED_PAGES | XENMEM_GET_SHARING_SHARED_PAGES => 0,
        _ => return Err(Errno::ENOSYS),
    };
    Ok(Outcome::Return(value as i64))
}

// ---- reservations ----

fn reserve<M: Machine>(
    caller: &mut Caller<'_, M>,
    arguments: Arguments,
    operation: u32,
    start: u64,
    reservation: &MemoryReservation,
) -> Result<Outcome, Errno> {
    let done = |count: u64| Ok(Outcome::Return(count as i64));
    // Too many to count in the continuation's bits, or a continuation beyond the end: nothing was done, as Xen has it.
    if reservation.nr_extents > u64::from(u32::MAX) >> MEMOP_EXTENT_SHIFT || start > reservation.nr_extents {
        return done(start);
    }
    let largest = if caller.domain.is_control() { LARGEST_CONTROL_ORDER } else { LARGEST_ORDER };
    if reservation.extent_order > largest {
        return done(start);
    }
    let Ok(domain) = caller.target(reservation.domid) else { return done(start) };
    let order = reservation.extent_order as u8;
    let frames = 1u64.checked_shl(order.into()).ok_or(Errno::EINVAL)?;
    let end = reservation.nr_extents.min(start.saturating_add((BATCH / frames.min(BATCH)).max(1)));
    for index in start..end {
        let Ok(gfn) = caller.read_at(reservation.extent_start, index) else { return done(index) };
        let result = match operation {
            XENMEM_POPULATE_PHYSMAP => physmap::populate(caller.system, &domain, Gfn(gfn), order),
            XENMEM_DECREASE_RESERVATION => give_back(caller, &domain, Gfn(gfn), frames),
            // A translated domain's memory is populated at a place; frames without one are of no use to it.
            _ => Err(Errno::EOPNOTSUPP),
        };
        if result.is_err() {
            return done(index);
        }
    }
    if end == reservation.nr_extents {
        return done(end);
    }
    let [_, rest @ ..] = arguments;
    let [a, b, c, d] = rest;
    Ok(Outcome::Continue([u64::from(operation) | (end << MEMOP_EXTENT_SHIFT), a, b, c, d]))
}

fn give_back<M: Machine>(
    caller: &Caller<'_, M>,
    domain: &Domain<M>,
    gfn: Gfn,
    frames: u64,
) -> Result<(), Errno> {
    for index in 0..frames {
        physmap::remove(caller.system, domain, Gfn(gfn.0.checked_add(index).ok_or(Errno::EINVAL)?))?;
    }
    Ok(())
}

// ---- placing ----

fn add_to_physmap<M: Machine>(caller: &mut Caller<'_, M>, request: &AddToPhysmap) -> Result<u64, Errno> {
    let domain = caller.target(request.domid)?;
    if request.space == XENMAPSPACE_GMFN_RANGE {
        // One call, many frames: `size` of them.
        for index in 0..u64::from(request.size) {
            let idx = request.idx.checked_add(index).ok_or(Errno::EINVAL)?;
            let gfn = Gfn(request.gpfn.checked_add(index).ok_or(Errno::EINVAL)?);
            add_one(caller, &domain, XENMAPSPACE_GMFN, idx, gfn, DomainId::INVALID)?;
        }
        return Ok(0);
    }
    add_one(caller, &domain, request.space, request.idx, Gfn(request.gpfn), DomainId::INVALID).map(|()| 0)
}

fn add_batch<M: Machine>(
    caller: &mut Caller<'_, M>,
    arguments: Arguments,
    start: u64,
    request: &AddToPhysmapBatch,
) -> Result<Outcome, Errno> {
    let domain = caller.target(request.domid)?;
    let count = u64::from(request.size);
    if start > count {
        return Err(Errno::EILSEQ);
    }
    let end = count.min(start.saturating_add(BATCH));
    for index in start..end {
        let idx = caller.read_at(request.idxs, index)?;
        let gfn = Gfn(caller.read_at(request.gpfns, index)?);
        let result = add_one(caller, &domain, u32::from(request.space), idx, gfn, request.foreign_domid);
        let status = result.map_or_else(|errno| errno.as_return() as i32, |()| 0);
        caller.write_at(request.errs, index, &status)?;
    }
    if end == count {
        return Ok(Outcome::Return(0));
    }
    let [_, a, b, c, d] = arguments;
    let command = u64::from(XENMEM_ADD_TO_PHYSMAP_BATCH) | (end << MEMOP_EXTENT_SHIFT);
    Ok(Outcome::Continue([command, a, b, c, d]))
}

/// Puts one page of `space` at `gfn`.
fn add_one<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Domain<M>,
    space: u32,
    idx: u64,
    gfn: Gfn,
    foreign: DomainId,
) -> Result<(), Errno> {
    let system = caller.system;
    match space {
        XENMAPSPACE_SHARED_INFO if idx == 0 => {
            let before = domain.shared_info_moved_to(Some(gfn));
            unmap_old(caller, domain, before, gfn, domain.shared_info.mfn());
            physmap::place(system, domain, gfn, domain.shared_info.mfn(), PageKind::Ram)
        }
        XENMAPSPACE_GRANT_TABLE => {
            let status = idx & u64::from(XENMAPIDX_GRANT_TABLE_STATUS) != 0;
            let kind = if status { Kind::Status } else { Kind::Entries };
            let index = (idx & !u64::from(XENMAPIDX_GRANT_TABLE_STATUS)) as u32;
            if idx > u64::from(u32::MAX) {
                return Err(Errno::EINVAL);
            }
            let mfn = domain.grants.table().frame(system.memory, kind, index)?;
            let before = domain.grants.table().moved_to(kind, index, Some(gfn));
            unmap_old(caller, domain, before, gfn, mfn);
            physmap::place(system, domain, gfn, mfn, PageKind::Ram)
        }
        XENMAPSPACE_GMFN => move_page(caller, domain, Gfn(idx), gfn),
        XENMAPSPACE_GMFN_FOREIGN => {
            caller.require_control()?;
            if foreign == DomainId::SELF || foreign == domain.id {
                return Err(Errno::EINVAL);
            }
            let other = caller.system.domain(foreign).ok_or(Errno::ESRCH)?;
            map_foreign(caller, domain, &other, Gfn(idx), gfn)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// A page of the host's making is seen in one place only: the old place is emptied, if the page is still what is there.
fn unmap_old<M: Machine>(
    caller: &Caller<'_, M>,
    domain: &Domain<M>,
    before: Option<Gfn>,
    now: Gfn,
    mfn: Mfn,
) {
    if let Some(old) = before.filter(|old| *old != now)
        && domain.p2m.lookup(old).is_some_and(|mapping| mapping.mfn == mfn)
    {
        let _ = physmap::remove(caller.system, domain, old);
    }
}

/// XENMAPSPACE_gmfn: the frame at `from` is seen at `to` from now on.
fn move_page<M: Machine>(caller: &Caller<'_, M>, domain: &Domain<M>, from: Gfn, to: Gfn) -> Result<(), Errno> {
    if domain.one_to_one {
        // Moving a frame would break gfn = mfn, on which its DMA rests.
        return Err(Errno::EOPNOTSUPP);
    }
    let (reference, mapping) = domain.p2m.reference(from)?;
    if from == to || !mapping.kind.is_own_memory() {
        return Err(Errno::EINVAL);
    }
    physmap::place(caller.system, domain, to, reference.mfn(), PageKind::Ram)?;
    let flush = domain.p2m.unmap(from, 1)?;
    caller.system.machine.flush(domain, flush);
    Ok(())
}

fn map_foreign<M: Machine>(
    caller: &Caller<'_, M>,
    domain: &Domain<M>,
    other: &Domain<M>,
    theirs: Gfn,
    gfn: Gfn,
) -> Result<(), Errno> {
    let (reference, mapping) = other.p2m.reference(theirs)?;
    let kind = if mapping.kind.writable() { PageKind::Foreign } else { PageKind::ForeignRo };
    physmap::place(caller.system, domain, gfn, reference.mfn(), kind)?;
    // The mapping owns the reference from here on; `physmap::remove` gives it back.
    reference.keep();
    Ok(())
}

fn remove<M: Machine>(caller: &Caller<'_, M>, domain: &Domain<M>, gfn: Gfn) -> Result<u64, Errno> {
    if domain.p2m.lookup(gfn).is_some_and(|mapping| mapping.mfn == domain.shared_info.mfn()) {
        domain.shared_info_moved_to(None);
    }
    physmap::remove(caller.system, domain, gfn).map(|()| 0)
}

// ---- asking ----

fn memory_map<M: Machine>(caller: &mut Caller<'_, M>, argument: u64) -> Result<u64, Errno> {
    let handle = caller.handle::<MemoryMap>(argument);
    let mut request = caller.read(handle)?;
    let domain = caller.domain.clone();
    if domain.memory_map.is_empty() {
        return Err(Errno::ENOSYS);
    }
    let count = (domain.memory_map.len() as u64).min(u64::from(request.nr_entries));
    for (index, entry) in (0..count).zip(&domain.memory_map) {
        caller.write_at(request.buffer, index, entry)?;
    }
    request.nr_entries = count as u32;
    caller.write(handle, &request).map(|()| 0)
}

/// The highest gfn that maps anything.
fn highest_gfn<M: Machine>(domain: &Domain<M>) -> u64 {
    let ends = domain.memory_map.iter().map(|entry| entry.addr.saturating_add(entry.size));
    ends.max().unwrap_or(0).saturating_sub(1) >> mm::PAGE_SHIFT
}

/// XENMEM_acquire_resource: frames that are no part of a domain's address space, for its toolstack to map.
fn acquire_resource<M: Machine>(caller: &mut Caller<'_, M>, argument: u64) -> Result<u64, Errno> {
    let handle = caller.handle::<AcquireResource>(argument);
    let mut request = caller.read(handle)?;
    if request.pad != 0 {
        return Err(Errno::EINVAL);
    }
    let target = caller.target(request.domid)?;
    let kind = match (u32::from(request.r#type), request.id) {
        (XENMEM_RESOURCE_GRANT_TABLE, XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED) => Kind::Entries,
        (XENMEM_RESOURCE_GRANT_TABLE, XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS) => Kind::Status,
        (XENMEM_RESOURCE_GRANT_TABLE, _) => return Err(Errno::EINVAL),
        _ => return Err(Errno::EOPNOTSUPP),
    };
    let frame_list: GuestHandle<u64> = request.frame_list;
    if frame_list.is_null() {
        if request.nr_frames != 0 {
            return Err(Errno::EINVAL);
        }
        request.nr_frames = target.grants.table().max_frames();
        return caller.write(handle, &request).map(|()| 0);
    }
    if request.nr_frames == 0 || u64::from(request.nr_frames) > BATCH {
        return Err(Errno::EINVAL);
    }
    for index in 0..u64::from(request.nr_frames) {
        let frame = request.frame.checked_add(index).and_then(|at| u32::try_from(at).ok()).ok_or(Errno::EINVAL)?;
        let mfn = target.grants.table().frame(caller.system.memory, kind, frame)?;
        let gfn = Gfn(caller.read_at(frame_list, index)?);
        // The page stays the other domain's: this is a foreign mapping of it, with a reference of its own.
        let reference = caller.system.memory.reference(mfn, target.id)?;
        physmap::place(caller.system, caller.domain, gfn, mfn, PageKind::Foreign)?;
        reference.keep();
    }
    Ok(0)
}
