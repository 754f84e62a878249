//! Memory that a domain is promised and has not yet (populate on demand): what is marked so, what its cache is to hold, and what becomes of a
//! domain that uses more than there is.

use core::sync::atomic::Ordering;

use mm::addr::{Gfn, PageSize};
use mm::p2m::{Pod, Swept};
use xen_abi::errno::Errno;
use xen_abi::sched::SHUTDOWN_CRASH;

use super::charge;
use crate::domain::{Domain, shut_down};
use crate::machine::Machine;
use crate::system::System;

/// Pages that are looked at for zeroes before others get a chance.
const SWEPT_TOGETHER: u64 = 1024;
/// Such parts where it is better to have done with it.
const PARTS_TOGETHER: u32 = 16;

/// Has `2^order` pages at `gfn` populated when they are touched. Nothing is counted yet, but the tables that larger pages may come apart into are
/// kept ready. EEXIST if there is something else; EINVAL for gfns that do not exist, and for a domain whose frames have their places; ENOMEM.
pub fn mark<M: Machine>(system: &System<M>, domain: &Domain<M>, gfn: Gfn, order: u8) -> Result<(), Errno> {
    let frames = 1u64.checked_shl(order.into()).ok_or(Errno::EINVAL)?;
    if domain.one_to_one {
        return Err(Errno::EINVAL);
    }
    if domain.control.is_dying() {
        return Err(Errno::ENOMEM);
    }
    let entries = domain.p2m.pod().entries.saturating_add(frames);
    domain.p2m.keep_tables_for_splits(entries)?;
    let flush = domain.p2m.mark_on_demand(gfn, frames)?;
    system.machine.flush(domain, flush);
    Ok(())
}

/// Populates `gfn` now, if it is to be populated on demand. ERESTART if the caller should let others run first, and ask again; ENOMEM if there is
/// no memory for it: that is the domain's end.
pub fn populate<M: Machine>(system: &System<M>, domain: &Domain<M>, gfn: Gfn) -> Result<(), Errno> {
    for _ in 0..PARTS_TOGETHER {
        if domain.p2m.lookup(gfn).is_none_or(|found| !found.kind.comes_when_touched()) {
            return Ok(());
        }
        touched(system, domain, gfn)?;
    }
    Err(Errno::ERESTART)
}

/// The domain has touched such a `gfn`; it is to touch it again, which may bring it here again. Where the cache is empty, pages of zeroes are
/// looked for that the domain can do without, a part of its memory at a time. ENOMEM if there are none: that is its end.
#[cold]
#[inline(never)]
pub fn touched<M: Machine>(system: &System<M>, domain: &Domain<M>, gfn: Gfn) -> Result<(), Errno> {
    match domain.p2m.populate(gfn) {
        Err(Errno::ENOMEM) => {}
        Err(Errno::ENOBUFS) => return Err(starve(system, domain, gfn, Errno::ENOBUFS)),
        // It may have been taken away meanwhile.
        _ => return Ok(()),
    }
    if search(system, domain) != Some(Swept::Nothing) {
        return Ok(());
    }
    // Somebody else may have found something, or given it up.
    match domain.p2m.populate(gfn) {
        Err(why @ (Errno::ENOMEM | Errno::ENOBUFS)) => Err(starve(system, domain, gfn, why)),
        _ => Ok(()),
    }
}

/// Another domain has asked for a page of the domain's that cannot be populated now, and may ask again. Does a part of the search for zeroes, so
/// that whoever asks often enough sees its end; false if that has come, without success.
#[cold]
#[inline(never)]
pub fn assist<M: Machine>(system: &System<M>, domain: &Domain<M>) -> bool {
    let Pod { entries, cache } = domain.p2m.pod();
    entries == 0 || cache > 0 || domain.control.is_dying() || search(system, domain) != Some(Swept::Nothing)
}

/// A part of the search; `None` while another CPU is at it.
fn search<M: Machine>(system: &System<M>, domain: &Domain<M>) -> Option<Swept> {
    let (withheld, flush) = domain.p2m.withhold_zeroes(SWEPT_TOGETHER)?;
    system.machine.flush(domain, flush);
    Some(domain.p2m.reclaim_zeroes(withheld))
}

/// Crashes a domain that has touched a page which cannot be populated.
#[cold]
#[inline(never)]
fn starve<M: Machine>(system: &System<M>, domain: &Domain<M>, gfn: Gfn, why: Errno) -> Errno {
    let (id, gfn, Pod { entries, cache }) = (domain.id.0, gfn.0, domain.p2m.pod());
    if domain.shutdown_reason().is_some() {
        // It has been said.
    } else if why == Errno::ENOBUFS {
        let tables = domain.p2m.table_frames();
        log::error!(
            target: "memory",
            "domain {id} has no memory for another page table beside {tables}: gfn {gfn:#x} cannot be populated; raise its shadow_memory=, or free memory of the host's"
        );
    } else {
        log::error!(
            target: "memory",
            "domain {id} uses more than it has before its balloon driver gives some back: gfn {gfn:#x} cannot be populated, nor can {entries} pages with {cache} in the cache; raise its memory="
        );
    }
    shut_down(system, domain, SHUTDOWN_CRASH as u8);
    Errno::ENOMEM
}

/// Goes on with having the domain's memory, cache included, be `target` pages, for about `budget` pages; true when there is nothing left to do.
/// The cache is never made larger than what there is to populate, unless the domain has no other memory yet: then it is being built. Nor is it
/// made smaller for a target below what the domain has, as its balloon driver may not have got there yet: pages that it gives up do that.
/// EINVAL if the domain may not have as much, ENOMEM if there is too little memory.
pub fn approach<M: Machine>(system: &System<M>, domain: &Domain<M>, target: u64, budget: u64) -> Result<bool, Errno> {
    let held = domain.pages.load(Ordering::Relaxed);
    let Pod { entries, cache } = domain.p2m.pod();
    let populated = held.saturating_sub(cache);
    // A control domain is told its target as well, whatever it may have.
    if !domain.is_control() && target > domain.max_pages.load(Ordering::Relaxed) {
        return Err(Errno::EINVAL);
    }
    if domain.one_to_one || domain.control.is_dying() || target < held || populated > 0 && entries == 0 {
        return Ok(true);
    }
    let wanted = target.saturating_sub(populated);
    let wanted = if populated > 0 { wanted.min(entries) } else { wanted };
    if wanted < cache {
        shrink(domain, wanted, budget);
        return Ok(cache.saturating_sub(wanted) <= budget);
    }
    let (mut missing, mut left) = (wanted.saturating_sub(cache), budget);
    while missing > 0 && left > 0 {
        let added = add(system, domain, missing)?;
        (missing, left) = (missing.saturating_sub(added), left.saturating_sub(added));
    }
    Ok(missing == 0)
}

/// Adds frames to the cache, 2 MiB at once if so many are wanted and there are; how many.
fn add<M: Machine>(system: &System<M>, domain: &Domain<M>, wanted: u64) -> Result<u64, Errno> {
    let orders = [PageSize::Size2M.order(), 0];
    let mut failed = Errno::ENOMEM;
    for order in orders.into_iter().filter(|order| 1u64.wrapping_shl(u32::from(*order)) <= wanted) {
        let frames = 1u64.wrapping_shl(order.into());
        charge(domain, frames)?;
        match system.draw(domain, order) {
            Ok((block, _)) => {
                domain.p2m.fill_cache(block.scrub());
                return Ok(frames);
            }
            Err(errno) => {
                domain.pages.fetch_sub(frames, Ordering::Relaxed);
                failed = errno;
            }
        }
    }
    Err(failed)
}

/// Takes frames out of the cache until it has but `least`, `most` at most; how many.
pub(super) fn shrink<M: Machine>(domain: &Domain<M>, least: u64, most: u64) -> u64 {
    let freed = domain.p2m.shrink_cache(least, most);
    domain.pages.fetch_sub(freed, Ordering::Relaxed);
    freed
}

/// `count` pages are not to be populated any more: the cache gives up as many, if it has too many.
pub(super) fn trim<M: Machine>(domain: &Domain<M>, count: u64) {
    let freed = domain.p2m.trim_cache(count);
    domain.pages.fetch_sub(freed, Ordering::Relaxed);
}
