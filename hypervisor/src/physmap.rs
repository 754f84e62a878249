//! What a domain's physical address space holds: putting frames in, taking them out, and what becomes of a frame.
//!
//! A frame of the domain's own memory is mapped at one gfn, from when it is given until it is taken away. Whoever empties a gfn decides by
//! what was there at that very moment, so of several who empty the same one, one has the frame; and the frame is anybody's only
//! when no CPU sees it any more.

use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use mm::addr::{Gfn, Mfn, PageSize};
use mm::table::{Mapping, MemoryType, PageKind};
use mm::{Extent, Flush, FrameKind};
use xen_abi::errno::Errno;

use crate::domain::Domain;
use crate::machine::Machine;
use crate::system::System;

pub mod on_demand;

/// Changes that end with one flush.
const TOGETHER: usize = 32;

/// What becomes of frames once no CPU sees them any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// A page of the host's making stays where it is.
    Kept,
    /// The domain's own memory: given up.
    GivenUp,
    /// A foreign mapping's reference: given back.
    Released,
    /// There was no frame: it was to be populated on demand.
    NeverWas,
}

/// Pages on their way out of a domain's address space. They are gone from the p2m; dropping this flushes, and then lets the frames go.
#[must_use]
pub struct Changes<'a, M: Machine> {
    system: &'a System<M>,
    domain: &'a Domain<M>,
    flush: Flush,
    gone: ArrayVec<(Mfn, PageSize, Fate), TOGETHER>,
}

impl<M: Machine> Drop for Changes<'_, M> {
    fn drop(&mut self) {
        self.settle();
    }
}

impl<'a, M: Machine> Changes<'a, M> {
    pub fn new(system: &'a System<M>, domain: &'a Domain<M>) -> Self {
        Changes { system, domain, flush: Flush::none(), gone: ArrayVec::new() }
    }

    /// Empties one gfn. ENOENT if there is nothing that is the domain's to remove (a device's registers are not), EINVAL for a grant,
    /// which is unmapped by its handle, and for a gfn that does not exist, ENOMEM.
    pub fn remove(&mut self, gfn: Gfn) -> Result<(), Errno> {
        self.remove_page(gfn, PageSize::Size4K)
    }

    /// Empties `frames` gfns one by one, as [`remove`](Self::remove) does, until one cannot be.
    pub fn remove_extent(&mut self, gfn: Gfn, frames: u64) -> Result<(), Errno> {
        const LARGE: u64 = PageSize::Size2M.frames();
        let end = gfn.checked_add(frames).ok_or(Errno::EINVAL)?;
        let mut at = gfn;
        while at < end {
            let large = at.is_aligned(LARGE)
                && end.0.saturating_sub(at.0) >= LARGE
                && self.domain.p2m.lookup(at).is_some_and(|mapping| mapping.size >= PageSize::Size2M);
            let size = if large { PageSize::Size2M } else { PageSize::Size4K };
            self.remove_page(at, size)?;
            at = at.checked_add(size.frames()).ok_or(Errno::EINVAL)?;
        }
        Ok(())
    }

    /// Empties a gfn if it shows this frame. ENOENT if it does not.
    pub fn remove_frame(&mut self, gfn: Gfn, mfn: Mfn) -> Result<(), Errno> {
        self.remove_if(gfn, PageSize::Size4K, |mapping| mapping.mfn == mfn && mapping.kind != PageKind::OnDemand)
    }

    fn remove_page(&mut self, gfn: Gfn, size: PageSize) -> Result<(), Errno> {
        self.remove_if(gfn, size, |_| true)
    }

    fn remove_if(&mut self, gfn: Gfn, size: PageSize, wanted: impl FnOnce(&Mapping) -> bool) -> Result<(), Errno> {
        let (system, domain) = (self.system, self.domain);
        let mut fate = Fate::Kept;
        let (mapping, flush) = domain.p2m.take(gfn, size, |mapping| {
            fate = removable(system, domain, mapping, size)?;
            if wanted(mapping) { Ok(()) } else { Err(Errno::ENOENT) }
        })?;
        self.add(mapping.mfn, size, fate, flush);
        Ok(())
    }

    /// Maps a frame at `gfn`; what was there goes first. A frame of the host's own making (shared_info, grant table) is RAM that the
    /// guest may write. EPERM if a device is there, EINVAL if a grant is or the gfn does not exist, ENOMEM.
    pub fn place(&mut self, gfn: Gfn, mfn: Mfn, kind: PageKind) -> Result<(), Errno> {
        let (system, domain) = (self.system, self.domain);
        let mut fate = Fate::Kept;
        let agree = |before: Option<&Mapping>| {
            fate = match before {
                Some(Mapping { kind: PageKind::Mmio | PageKind::MmioReadOnly, .. }) => return Err(Errno::EPERM),
                Some(mapping) => removable(system, domain, mapping, PageSize::Size4K)?,
                None => Fate::Kept,
            };
            Ok(())
        };
        let (before, flush) = domain.p2m.put(gfn, mfn, kind, MemoryType::WriteBack, agree)?;
        if let Some(before) = before {
            self.add(before.mfn, PageSize::Size4K, fate, flush);
        }
        Ok(())
    }

    fn add(&mut self, mfn: Mfn, size: PageSize, fate: Fate, flush: Flush) {
        self.flush = core::mem::replace(&mut self.flush, Flush::none()).merge(flush);
        if fate == Fate::NeverWas {
            on_demand::trim(self.domain, size.frames());
            return;
        }
        // There is room: a full list is settled at once.
        let _ = self.gone.try_push((mfn, size, fate));
        if self.gone.is_full() {
            self.settle();
        }
    }

    fn settle(&mut self) {
        let flush = core::mem::replace(&mut self.flush, Flush::none());
        if !flush.is_none() {
            self.system.machine.flush(self.domain, flush);
        }
        for (mfn, size, fate) in self.gone.drain(..) {
            match fate {
                Fate::Kept | Fate::NeverWas => {}
                Fate::GivenUp => give_up(self.system, self.domain, mfn, size),
                Fate::Released => self.system.memory.release(mfn),
            }
        }
    }
}

/// What becomes of the frames behind a mapping if it goes.
fn removable<M: Machine>(
    system: &System<M>,
    domain: &Domain<M>,
    mapping: &Mapping,
    size: PageSize,
) -> Result<Fate, Errno> {
    let fate = |mfn: Mfn| {
        let state = system.memory.state(mfn);
        match state.kind() {
            FrameKind::Owned if state.owner() == domain.id => Ok(Fate::GivenUp),
            FrameKind::Shared => Ok(Fate::Kept),
            // What the firmware left, say.
            _ => Err(Errno::ENOENT),
        }
    };
    match mapping.kind {
        PageKind::Ram | PageKind::RamReadOnly | PageKind::LogDirty | PageKind::Withheld if size == PageSize::Size4K => {
            fate(mapping.mfn)
        }
        PageKind::Ram | PageKind::RamReadOnly | PageKind::LogDirty | PageKind::Withheld => {
            let frames = (0..size.frames()).map_while(|index| mapping.mfn.checked_add(index));
            for mfn in frames {
                if fate(mfn)? != Fate::GivenUp {
                    return Err(Errno::ENOENT);
                }
            }
            Ok(Fate::GivenUp)
        }
        PageKind::Foreign | PageKind::ForeignRo => Ok(Fate::Released),
        PageKind::OnDemand => Ok(Fate::NeverWas),
        PageKind::Mmio | PageKind::MmioReadOnly => Err(Errno::ENOENT),
        PageKind::GrantRw | PageKind::GrantRo | PageKind::Ioreq | PageKind::Broken => Err(Errno::EINVAL),
    }
}

/// Frames of the domain's own memory go back: to its own cache, where that has less than is to be populated on demand, to everyone, or, as a
/// one-to-one domain's DMA may still go there, to nobody. Whoever still refers to them keeps them until they are done.
fn give_up<M: Machine>(system: &System<M>, domain: &Domain<M>, mfn: Mfn, size: PageSize) {
    let frames = size.frames();
    if domain.p2m.cache_wants_more() && !domain.control.is_dying() && domain.p2m.keep_in_cache(mfn, size) {
        // Of a large page, it may be more than is wanted.
        on_demand::trim(domain, frames);
        return;
    }
    let whole = !domain.one_to_one && size != PageSize::Size4K;
    if !whole || system.memory.free_owned(mfn, size.order(), domain.id).is_err() {
        for mfn in (0..frames).map_while(|index| mfn.checked_add(index)) {
            let given = if domain.one_to_one {
                system.memory.park(mfn, domain.id)
            } else {
                system.memory.abandon(mfn, domain.id)
            };
            debug_assert_eq!(given, Ok(()), "{mfn} was the domain's own");
        }
    }
    // Those that linger are counted as such before they are no longer counted here: twice meanwhile, and never not at all.
    domain.pages.fetch_sub(frames, Ordering::Release);
}

/// Gives the domain RAM at `gfn`, `2^order` frames, where nothing is mapped. EEXIST if something is; ENOMEM if there is no memory, if the
/// domain has as much as it may have, or, for a one-to-one domain, if these are not frames that it gave up; EINVAL for gfns that do
/// not exist.
pub fn populate<M: Machine>(system: &System<M>, domain: &Domain<M>, gfn: Gfn, order: u8) -> Result<(), Errno> {
    let frames = 1u64.checked_shl(order.into()).ok_or(Errno::EINVAL)?;
    charge(domain, frames)?;
    let populated =
        if domain.one_to_one { take_back(system, domain, gfn, frames) } else { give_new(system, domain, gfn, order) };
    if populated.is_err() {
        domain.pages.fetch_sub(frames, Ordering::Relaxed);
    }
    populated
}

/// Counts pages that a domain is about to get. ENOMEM if it would have more than it may, with those that it gave up but that are not free yet, or is on
/// its way out.
fn charge<M: Machine>(domain: &Domain<M>, frames: u64) -> Result<(), Errno> {
    if domain.control.is_dying() {
        return Err(Errno::ENOMEM);
    }
    let most = domain.max_pages.load(Ordering::Relaxed);
    // In this order: see `give_up`.
    let add = |held: u64| {
        let lingering = domain.p2m.memory().lingering(domain.id);
        held.checked_add(frames).filter(|total| total.saturating_add(lingering) <= most)
    };
    domain.pages.fetch_update(Ordering::Relaxed, Ordering::Acquire, add).map(|_| ()).map_err(|_| Errno::ENOMEM)
}

fn give_new<M: Machine>(system: &System<M>, domain: &Domain<M>, gfn: Gfn, order: u8) -> Result<(), Errno> {
    let frames = 1u64.wrapping_shl(order.into());
    if order >= PageSize::Size2M.order() {
        let pages = domain.pages.load(Ordering::Relaxed).saturating_add(domain.p2m.pod().entries);
        domain.p2m.keep_tables_for_code(pages)?;
    }
    let (block, claimed) = system.draw(domain, order)?;
    if order > PageSize::Size2M.order() && !block.is_known_clean() {
        // Zeroing a gibibyte takes long. Smaller pages are asked for next.
        system.restore_claim(domain, claimed);
        drop(block);
        return Err(Errno::ENOMEM);
    }
    let mfn = block.scrub().give_to(domain.id);
    let filled = fill(system, domain, gfn, mfn, frames);
    if filled.is_err() {
        system.restore_claim(domain, claimed);
        let freed = system.memory.free_owned(mfn, order, domain.id);
        debug_assert_eq!(freed, Ok(()), "nobody has seen it");
    }
    filled
}

/// Frames of a one-to-one domain come back to where they were.
fn take_back<M: Machine>(system: &System<M>, domain: &Domain<M>, gfn: Gfn, frames: u64) -> Result<(), Errno> {
    let mfns = |count: u64| (0..count).map_while(|index| Mfn(gfn.0).checked_add(index));
    let mut taken = 0u64;
    for mfn in mfns(frames) {
        if system.memory.unpark(mfn, domain.id).is_err() {
            break;
        }
        taken = taken.saturating_add(1);
    }
    let filled = if taken == frames { fill(system, domain, gfn, Mfn(gfn.0), frames) } else { Err(Errno::ENOMEM) };
    if filled.is_err() {
        for mfn in mfns(taken) {
            let parked = system.memory.park(mfn, domain.id);
            debug_assert_eq!(parked, Ok(()), "it was the domain's own all the time");
        }
    }
    filled
}

fn fill<M: Machine>(system: &System<M>, domain: &Domain<M>, gfn: Gfn, mfn: Mfn, frames: u64) -> Result<(), Errno> {
    if frames == 1 {
        return domain.p2m.insert(gfn, mfn, PageKind::Ram, MemoryType::WriteBack);
    }
    let flush = domain.p2m.map_absent(gfn, mfn, frames, PageKind::Ram, MemoryType::WriteBack)?;
    system.machine.flush(domain, flush);
    Ok(())
}

/// Moves a page of the domain's own memory: what was at `to` goes first, and `from` is a hole afterwards. EACCES if there is no such page
/// at `from`; EPERM, EINVAL and ENOMEM as for [`Changes::place`], ERESTART and ENOMEM as for [`on_demand::populate`]; then the page is where it was.
pub fn move_page<M: Machine>(system: &System<M>, domain: &Domain<M>, from: Gfn, to: Gfn) -> Result<(), Errno> {
    let own = |mapping: &Mapping| {
        let state = system.memory.state(mapping.mfn);
        let own = mapping.kind.is_own_memory() && state.kind() == FrameKind::Owned && state.owner() == domain.id;
        if own { Ok(()) } else { Err(Errno::EACCES) }
    };
    on_demand::populate(system, domain, from)?;
    if from == to {
        return domain.p2m.lookup(from).as_ref().map_or(Err(Errno::EACCES), own);
    }
    if domain.one_to_one {
        let mapping = domain.p2m.lookup(from).ok_or(Errno::EACCES)?;
        own(&mapping)?;
        copy_over(system, domain, mapping.mfn, to)?;
        return Changes::new(system, domain).remove_frame(from, mapping.mfn);
    }
    let taken = domain.p2m.take(from, PageSize::Size4K, own);
    // From here on the frame is in no place, and nobody else's.
    let (mapping, flush) = taken.map_err(|errno| if errno == Errno::ENOENT { Errno::EACCES } else { errno })?;
    let mut changes = Changes::new(system, domain);
    changes.add(mapping.mfn, PageSize::Size4K, Fate::Kept, flush);
    let placed = changes.place(to, mapping.mfn, PageKind::Ram);
    if placed.is_err() && domain.p2m.insert(from, mapping.mfn, mapping.kind, mapping.memory).is_err() {
        // Another vCPU has put something there meanwhile.
        changes.add(mapping.mfn, PageSize::Size4K, Fate::GivenUp, Flush::none());
    }
    placed
}

/// In a one-to-one domain frames stay where they are, as its DMA rests on that. Their content can be moved.
fn copy_over<M: Machine>(system: &System<M>, domain: &Domain<M>, from: Mfn, to: Gfn) -> Result<(), Errno> {
    let in_place =
        domain.p2m.lookup(to).is_some_and(|mapping| mapping.kind.is_own_memory() && mapping.mfn == Mfn(to.0));
    if !in_place {
        match domain.p2m.lookup(to).map(|mapping| mapping.kind) {
            Some(PageKind::Mmio | PageKind::MmioReadOnly) => return Err(Errno::EPERM),
            Some(_) => Changes::new(system, domain).remove(to)?,
            None => {}
        }
        populate(system, domain, to, 0)?;
    }
    Ok(system.memory.window().copy_frame(from, Mfn(to.0))?)
}

/// Takes a domain's address space apart from `at` on, about `budget` pages at a time; true when nothing is left there. Nothing walks it any
/// more; grants are let go by their handles.
pub fn relinquish<M: Machine>(system: &System<M>, domain: &Domain<M>, at: &mut Gfn, budget: u64) -> bool {
    const LARGE: u64 = PageSize::Size2M.frames();
    let mut left = budget.saturating_sub(on_demand::shrink(domain, 0, budget));
    // Those above each page, or more of them that are empty.
    let mut tables = budget.saturating_add(1).saturating_mul(4);
    while left > 0 {
        // A leaf, whole or what is left of it: its parts below are gone.
        let extent = match domain.p2m.next_mapped(*at, &mut tables) {
            Ok(Some(extent)) => extent,
            Ok(None) => return true,
            Err(next) => {
                *at = next;
                return false;
            }
        };
        let Extent { gfn, frames: rest, mapping } = extent;
        let part = rest.min(LARGE);
        let mut changes = Changes::new(system, domain);
        let gone = match changes.remove_extent(gfn, part) {
            Ok(()) => part,
            // There is no table to split it by.
            Err(Errno::ENOMEM) if changes.remove_page(gfn, mapping.size).is_ok() => rest,
            // Nothing that must be given back: a device, a grant.
            Err(_) => match domain.p2m.unmap(gfn, rest) {
                Ok(flush) => {
                    system.machine.flush(domain, flush);
                    rest
                }
                Err(_) => return false,
            },
        };
        *at = Gfn(gfn.0.saturating_add(gone));
        left = left.saturating_sub(gone);
    }
    false
}

#[cfg(test)]
mod tests;
