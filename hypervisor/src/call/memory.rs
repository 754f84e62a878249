//! XENMEM: a domain's physical address space. Longer operations say in the command's upper bits where they go on.

use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use mm::addr::{Gfn, Mfn};
use mm::table::PageKind;
use xen_abi::errno::Errno;
use xen_abi::memory::*;
use xen_abi::types::DomainId;
use zerocopy::IntoBytes;

use crate::domain::Domain;
use crate::grant::Kind;
use crate::hypercall::{Arguments, Caller, Outcome};
use crate::machine::{Machine, Width};
use crate::physmap::{self, Changes, on_demand};

#[cfg(test)]
mod tests;

/// Pages that are worked on before others get a chance.
const BATCH: u64 = 256;
/// Pages that are zeroed and put aside, or given back, before others get a chance: 2 MiB, as they are drawn by that.
const CACHED_TOGETHER: u64 = 512;
/// The largest extent that an ordinary domain, and the control domain, may ask for: 2 MiB and 1 GiB.
const LARGEST_ORDER: u32 = 9;
const LARGEST_CONTROL_ORDER: u32 = 18;
/// Regions of a memory map.
const MOST_REGIONS: u32 = 128;

/// The first argument.
#[derive(Clone, Copy)]
struct Command {
    operation: u32,
    /// Where to go on.
    start: u64,
    arguments: Arguments,
}

impl Command {
    fn decode(arguments: Arguments) -> Command {
        let [command, ..] = arguments;
        Command { operation: command as u32 & MEMOP_CMD_MASK, start: command >> MEMOP_EXTENT_SHIFT, arguments }
    }

    /// The rest is for later.
    fn go_on_at(&self, next: u64) -> Outcome {
        let [_, a, b, c, d] = self.arguments;
        Outcome::Continue([u64::from(self.operation) | next.wrapping_shl(MEMOP_EXTENT_SHIFT), a, b, c, d])
    }
}

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<Outcome, Errno> {
    let [_, argument, ..] = arguments;
    let command = Command::decode(arguments);
    let value = match command.operation {
        XENMEM_POPULATE_PHYSMAP | XENMEM_DECREASE_RESERVATION | XENMEM_INCREASE_RESERVATION => {
            return Ok(match caller.read_arg(caller.handle::<MemoryReservation>(argument)) {
                Ok(reservation) => reserve(caller, &command, &reservation),
                Err(Errno::ERESTART) => Outcome::Continue(arguments),
                // Not -EFAULT: as many extents as before are done.
                Err(_) => Outcome::Return(command.start as i64),
            });
        }
        XENMEM_ADD_TO_PHYSMAP => {
            let request = caller.read_arg(caller.handle::<AddToPhysmap>(argument))?;
            return add_to_physmap(caller, &command, &request);
        }
        XENMEM_ADD_TO_PHYSMAP_BATCH => {
            let request = caller.read_arg(caller.handle::<AddToPhysmapBatch>(argument))?;
            return add_batch(caller, &command, &request);
        }
        XENMEM_REMOVE_FROM_PHYSMAP => {
            let request = caller.read_arg(caller.handle::<RemoveFromPhysmap>(argument))?;
            let domain = caller.target(request.domid)?;
            remove(caller, &domain, Gfn(request.gpfn))?
        }
        XENMEM_MEMORY_MAP => memory_map(caller, argument)?,
        XENMEM_MACHINE_MEMORY_MAP => machine_memory_map(caller, argument)?,
        XENMEM_CURRENT_RESERVATION | XENMEM_MAXIMUM_RESERVATION | XENMEM_MAXIMUM_GPFN | XENMEM_GET_VNUMAINFO => {
            let request = caller.read(caller.handle::<MemoryDomain>(argument))?;
            let domain = caller.target(request.domid)?;
            match command.operation {
                XENMEM_CURRENT_RESERVATION => domain.pages.load(Ordering::Relaxed),
                // Xen counts pages by 32 bits, and without a limit says so.
                XENMEM_MAXIMUM_RESERVATION => domain.max_pages.load(Ordering::Relaxed).min(u32::MAX.into()),
                XENMEM_MAXIMUM_GPFN => domain.p2m.highest_mapped().map_or(0, |gfn| gfn.0),
                // No domain has virtual NUMA nodes.
                _ => return Err(Errno::EOPNOTSUPP),
            }
        }
        XENMEM_SET_MEMORY_MAP => set_memory_map(caller, argument)?,
        XENMEM_CLAIM_PAGES => {
            let request = caller.read_arg(caller.handle::<MemoryReservation>(argument))?;
            caller.require_control()?;
            if !request.extent_start.is_null() || request.extent_order != 0 || request.mem_flags != 0 {
                return Err(Errno::EINVAL);
            }
            let domain = caller.target(request.domid)?;
            caller.system.claim(&domain, request.nr_extents).map(|()| 0)?
        }
        XENMEM_SET_POD_TARGET | XENMEM_GET_POD_TARGET => return pod_target(caller, &command, argument),
        XENMEM_MAXIMUM_RAM_PAGE => caller.system.memory.max_frame().0,
        XENMEM_ACQUIRE_RESOURCE => return acquire_resource(caller, &command, argument),
        // No page sharing, nothing paged out.
        XENMEM_GET_SHARING_FREED_PAGES | XENMEM_GET_SHARING_SHARED_PAGES => 0,
        _ => return Err(Errno::ENOSYS),
    };
    Ok(Outcome::Return(value as i64))
}

/// Sets how much memory a domain is to have of which pages are populated on demand, or tells how much it has. ESRCH for a domain that there is
/// not, EINVAL for more than it may have; ENOMEM.
fn pod_target<M: Machine>(caller: &mut Caller<'_, M>, command: &Command, argument: u64) -> Result<Outcome, Errno> {
    caller.require_control()?;
    let handle = caller.handle::<PodTarget>(argument);
    let mut request = caller.read(handle)?;
    let domain = caller.target(request.domid)?;
    if command.operation == XENMEM_SET_POD_TARGET
        && !on_demand::approach(caller.system, &domain, request.target_pages, CACHED_TOGETHER)?
    {
        return Ok(command.go_on_at(0));
    }
    let pod = domain.p2m.pod();
    request.tot_pages = domain.pages.load(Ordering::Relaxed);
    (request.pod_cache_pages, request.pod_entries) = (pod.cache, pod.entries);
    // Without the padding, of which a 32-bit caller has less.
    let told = request.as_bytes().get(..offset_of!(PodTarget, pad)).ok_or(Errno::EINVAL)?;
    caller.write_bytes(argument, told).map(|()| Outcome::Return(0))
}

// ---- reservations ----

/// Says how many extents were carried out, however it ended: what is wrong with the rest is not said.
fn reserve<M: Machine>(caller: &mut Caller<'_, M>, command: &Command, reservation: &MemoryReservation) -> Outcome {
    let start = command.start;
    let done = |count: u64| Outcome::Return(count as i64);
    // More than the continuation's bits can count.
    let most = match caller.width {
        Width::Bits64 => u64::MAX >> MEMOP_EXTENT_SHIFT,
        Width::Bits32 => u64::from(u32::MAX >> MEMOP_EXTENT_SHIFT),
    };
    if reservation.nr_extents > most || start >= reservation.nr_extents {
        return done(start);
    }
    let largest = if caller.domain.is_control() { LARGEST_CONTROL_ORDER } else { LARGEST_ORDER };
    if reservation.extent_order > largest {
        return done(start);
    }
    let Ok(domain) = caller.target(reservation.domid) else { return done(start) };
    let on_demand = reservation.mem_flags & XENMEMF_POPULATE_ON_DEMAND != 0;
    // That is for who makes a domain to say.
    if on_demand && domain.id == caller.domain.id {
        return done(start);
    }
    let order = reservation.extent_order as u8;
    let frames = 1u64.wrapping_shl(order.into());
    let turn = BATCH.wrapping_shr(order.into()).max(1);
    let end = reservation.nr_extents.min(start.saturating_add(turn));
    let mut changes = Changes::new(caller.system, &domain);
    for index in start..end {
        let gfn = match caller.read_arg_at(reservation.extent_start, index) {
            Ok(gfn) => Gfn(gfn),
            Err(Errno::ERESTART) => return command.go_on_at(index),
            Err(_) => return done(index),
        };
        let result = match command.operation {
            XENMEM_POPULATE_PHYSMAP if on_demand => on_demand::mark(caller.system, &domain, gfn, order),
            XENMEM_POPULATE_PHYSMAP => physmap::populate(caller.system, &domain, gfn, order),
            XENMEM_DECREASE_RESERVATION => changes.remove_extent(gfn, frames),
            // A translated domain's memory is populated at a place; frames without one are of no use to it.
            _ => Err(Errno::EOPNOTSUPP),
        };
        if result.is_err() {
            return done(index);
        }
    }
    if end < reservation.nr_extents { command.go_on_at(end) } else { done(end) }
}

// ---- placing ----

fn add_to_physmap<M: Machine>(
    caller: &mut Caller<'_, M>,
    command: &Command,
    request: &AddToPhysmap,
) -> Result<Outcome, Errno> {
    let domain = caller.target(request.domid)?;
    let done = Ok(Outcome::Return(0));
    match request.space {
        // Another domain's pages come by the batch, which has a field to name it.
        XENMAPSPACE_GMFN_FOREIGN => return Err(Errno::ENOSYS),
        XENMAPSPACE_GMFN_RANGE => {}
        space => {
            let what = Placed { space, index: request.idx, foreign: DomainId::INVALID };
            return add_one(caller, &domain, &what, Gfn(request.gpfn)).and(done);
        }
    }
    // One call, many pages.
    let count = u64::from(request.size);
    let end = count.min(command.start.saturating_add(BATCH));
    if command.start > count {
        return Err(Errno::EILSEQ);
    }
    for index in command.start..end {
        let from = Gfn(request.idx.checked_add(index).ok_or(Errno::EINVAL)?);
        let to = Gfn(request.gpfn.checked_add(index).ok_or(Errno::EINVAL)?);
        match physmap::move_page(caller.system, &domain, from, to) {
            Err(Errno::ERESTART) => return Ok(command.go_on_at(index)),
            moved => moved?,
        }
    }
    if end < count { Ok(command.go_on_at(end)) } else { done }
}

fn add_batch<M: Machine>(
    caller: &mut Caller<'_, M>,
    command: &Command,
    request: &AddToPhysmapBatch,
) -> Result<Outcome, Errno> {
    let domain = caller.target(request.domid)?;
    let space = u32::from(request.space);
    // A device's frames have to say nothing of another domain.
    let odd_device = space == XENMAPSPACE_DEV_MMIO && request.foreign_domid != DomainId(0);
    if space == XENMAPSPACE_GMFN_RANGE || odd_device {
        return Err(Errno::EOPNOTSUPP);
    }
    let count = u64::from(request.size);
    if command.start > count {
        return Err(Errno::EILSEQ);
    }
    let end = count.min(command.start.saturating_add(BATCH));
    for element in command.start..end {
        let index = caller.read_arg_at(request.idxs, element);
        let (index, gfn) = match index.and_then(|index| Ok((index, caller.read_arg_at(request.gpfns, element)?))) {
            Err(Errno::ERESTART) => return Ok(command.go_on_at(element)),
            read => read?,
        };
        let what = Placed { space, index, foreign: request.foreign_domid };
        let added = add_one(caller, &domain, &what, Gfn(gfn));
        if added == Err(Errno::ERESTART) {
            return Ok(command.go_on_at(element));
        }
        caller.write_at(request.errs, element, &added.map_or_else(Errno::as_status, |()| 0))?;
        // That has taken its time.
        let next = element.saturating_add(1);
        if added == Err(Errno::ENOENT) && next < count {
            return Ok(command.go_on_at(next));
        }
    }
    Ok(if end < count { command.go_on_at(end) } else { Outcome::Return(0) })
}

/// What is to be placed.
struct Placed {
    space: u32,
    /// Which one of the space.
    index: u64,
    /// Whose, where the space is another domain's.
    foreign: DomainId,
}

/// Puts one page of a space at `gfn`.
fn add_one<M: Machine>(caller: &Caller<'_, M>, domain: &Domain<M>, what: &Placed, gfn: Gfn) -> Result<(), Errno> {
    match what.space {
        XENMAPSPACE_SHARED_INFO if what.index == 0 => {
            show(caller, domain, gfn, domain.shared_info.mfn(), |gfn| domain.shared_info_moved_to(gfn))
        }
        XENMAPSPACE_GRANT_TABLE => {
            const STATUS: u32 = XENMAPIDX_GRANT_TABLE_STATUS;
            let index = u32::try_from(what.index).map_err(|_| Errno::EINVAL)?;
            let kind = if index & STATUS != 0 { Kind::Status } else { Kind::Entries };
            let index = index & !STATUS;
            let table = domain.grants.table();
            let mfn = table.frame(caller.system.memory, kind, index)?;
            show(caller, domain, gfn, mfn, |gfn| table.moved_to(kind, index, gfn))
        }
        XENMAPSPACE_GMFN => physmap::move_page(caller.system, domain, Gfn(what.index), gfn),
        XENMAPSPACE_GMFN_FOREIGN => map_foreign(caller, domain, what.foreign, Gfn(what.index), gfn),
        _ => Err(Errno::EINVAL),
    }
}

/// A page of the host's making is seen in one place: the old one is emptied, if the page is still what is there. `moved_to` notes the new
/// one and says which the old one was.
fn show<M: Machine>(
    caller: &Caller<'_, M>,
    domain: &Domain<M>,
    gfn: Gfn,
    mfn: Mfn,
    moved_to: impl FnOnce(Option<Gfn>) -> Option<Gfn>,
) -> Result<(), Errno> {
    let mut changes = Changes::new(caller.system, domain);
    changes.place(gfn, mfn, PageKind::Ram)?;
    if let Some(old) = moved_to(Some(gfn)).filter(|old| *old != gfn) {
        // The guest may have put something else there long ago.
        let _ = changes.remove_frame(old, mfn);
    }
    Ok(())
}

/// XENMAPSPACE_gmfn_foreign: a page of another domain's memory, for one that controls it. ESRCH if there is no such domain, EPERM or
/// EINVAL for what is no domain of its own, EINVAL if it has no memory of its own there, ENOENT if it may have some later: then the caller asks
/// again.
fn map_foreign<M: Machine>(
    caller: &Caller<'_, M>,
    domain: &Domain<M>,
    foreign: DomainId,
    theirs: Gfn,
    gfn: Gfn,
) -> Result<(), Errno> {
    if !domain.is_control() || foreign == domain.id {
        return Err(Errno::EPERM);
    }
    if foreign == DomainId::XEN {
        return Err(Errno::EINVAL);
    }
    let other = caller.system.domain(foreign).ok_or(Errno::ESRCH)?;
    let (reference, mapping) = other.p2m.reference(theirs).map_err(|why| match why {
        Errno::ENOMEM if on_demand::assist(caller.system, &other) => Errno::ENOENT,
        _ => Errno::EINVAL,
    })?;
    let kind = if mapping.kind.writable() { PageKind::Foreign } else { PageKind::ForeignRo };
    Changes::new(caller.system, domain).place(gfn, reference.mfn(), kind)?;
    // The mapping owns the reference from here on; removing it gives it back.
    reference.keep();
    Ok(())
}

fn remove<M: Machine>(caller: &Caller<'_, M>, domain: &Domain<M>, gfn: Gfn) -> Result<u64, Errno> {
    Changes::new(caller.system, domain).remove(gfn).map(|()| 0)
}

// ---- asking ----

/// As much of the domain's memory map as there is room for.
fn memory_map<M: Machine>(caller: &mut Caller<'_, M>, argument: u64) -> Result<u64, Errno> {
    let handle = caller.handle::<MemoryMap>(argument);
    let mut request = caller.read_arg(handle)?;
    let domain = caller.domain;
    let length = domain.control.map_len();
    if length == 0 {
        return Err(Errno::ENOSYS);
    }
    request.nr_entries = request.nr_entries.min(length);
    if !request.buffer.is_null() {
        for index in 0..request.nr_entries {
            let entry = domain.control.map_entry(index).ok_or(Errno::EINVAL)?;
            caller.write_at(request.buffer, index.into(), &entry)?;
        }
    }
    caller.write_arg(handle, &request).map(|()| 0)
}

/// Sets what another domain's XENMEM_memory_map answers. EPERM for who does not control it, EINVAL for too long a map, ENOMEM.
fn set_memory_map<M: Machine>(caller: &mut Caller<'_, M>, argument: u64) -> Result<u64, Errno> {
    let request = caller.read_arg(caller.handle::<ForeignMemoryMap>(argument))?;
    caller.require_control()?;
    let domain = caller.target(request.domid)?;
    if request.map.nr_entries > MOST_REGIONS {
        return Err(Errno::EINVAL);
    }
    let mut map = Vec::new();
    map.try_reserve_exact(request.map.nr_entries as usize).map_err(|_| Errno::ENOMEM)?;
    for index in 0..request.map.nr_entries {
        map.push(caller.read_at(request.map.buffer, index.into())?);
    }
    domain.control.set_map(map);
    Ok(0)
}

/// The machine's memory map, which is Dom0's; or its length, if there is no buffer. EINVAL if there is too little room.
fn machine_memory_map<M: Machine>(caller: &mut Caller<'_, M>, argument: u64) -> Result<u64, Errno> {
    caller.require_control()?;
    let handle = caller.handle::<MemoryMap>(argument);
    let mut request = caller.read_arg(handle)?;
    let length = caller.domain.control.map_len();
    if !request.buffer.is_null() {
        if request.nr_entries < length {
            return Err(Errno::EINVAL);
        }
        return memory_map(caller, argument);
    }
    request.nr_entries = length;
    caller.write_arg(handle, &request).map(|()| 0)
}

/// XENMEM_acquire_resource: frames that are no part of a domain's address space, for its toolstack to map.
fn acquire_resource<M: Machine>(
    caller: &mut Caller<'_, M>,
    command: &Command,
    argument: u64,
) -> Result<Outcome, Errno> {
    let handle = caller.handle::<AcquireResource>(argument);
    let mut request = caller.read_arg(handle)?;
    if request.pad != 0 {
        return Err(Errno::EINVAL);
    }
    // Not one's own.
    if !caller.domain.is_control() || request.domid == caller.domain.id {
        return Err(Errno::EPERM);
    }
    let target = caller.system.domain(request.domid).ok_or(Errno::ESRCH)?;
    let kind = match (u32::from(request.r#type), request.id) {
        (XENMEM_RESOURCE_GRANT_TABLE, XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED) => Kind::Entries,
        (XENMEM_RESOURCE_GRANT_TABLE, XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS) => Kind::Status,
        (XENMEM_RESOURCE_IOREQ_SERVER | XENMEM_RESOURCE_VMTRACE_BUF, _) => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EINVAL),
    };
    if request.frame_list.is_null() {
        if request.nr_frames != 0 {
            return Err(Errno::EINVAL);
        }
        request.nr_frames = target.grants.table().most(kind);
        return caller.write_arg(handle, &request).map(|()| Outcome::Return(0));
    }
    let count = u64::from(request.nr_frames);
    let beyond = request.frame.checked_add(count).is_none_or(|end| end > target.grants.table().most(kind).into());
    if command.start >= count || beyond {
        return Err(Errno::EINVAL);
    }
    let end = count.min(command.start.saturating_add(BATCH));
    for index in command.start..end {
        let frame = request.frame.saturating_add(index) as u32;
        let mfn = target.grants.table().frame(caller.system.memory, kind, frame)?;
        let gfn = Gfn(caller.read_arg_at(request.frame_list, index)?);
        // The page stays the other domain's: this is a foreign mapping of it, with a reference of its own.
        let reference = caller.system.memory.reference(mfn, target.id)?;
        Changes::new(caller.system, caller.domain).place(gfn, mfn, PageKind::Foreign)?;
        reference.keep();
    }
    Ok(if end < count { command.go_on_at(end) } else { Outcome::Return(0) })
}
