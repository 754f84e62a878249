//! What a domain's physical address space holds, entry by entry: putting frames in, taking them out, and what becomes of the frame.

use core::sync::atomic::Ordering;

use mm::addr::{Gfn, Mfn};
use mm::table::{Mapping, MemoryType, PageKind};
use mm::{Flush, FrameKind};
use xen_abi::errno::Errno;

use crate::domain::Domain;
use crate::machine::Machine;
use crate::system::System;

/// What is to become of a frame once no CPU sees it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Nothing,
    /// The domain's own RAM, free for others.
    Free(Mfn),
    /// A foreign mapping's reference.
    Release(Mfn),
}

/// Empties one gfn. ENOENT if nothing is mapped there, EBUSY if the frame is shared or mapped by others, EINVAL for what a domain does not own (MMIO, grants, which
/// are unmapped by their handle).
pub fn remove<M: Machine>(system: &System<M>, domain: &Domain<M>, gfn: Gfn) -> Result<(), Errno> {
    let mapping = domain.p2m.lookup(gfn).ok_or(Errno::ENOENT)?;
    let after = check_removable(system, domain, &mapping)?;
    let flush = domain.p2m.unmap(gfn, 1)?;
    finish(system, domain, flush, after);
    Ok(())
}

/// Decides about the frame before anything is changed; a one-to-one domain's frame is put aside here, still mapped for this moment.
fn check_removable<M: Machine>(system: &System<M>, domain: &Domain<M>, mapping: &Mapping) -> Result<After, Errno> {
    let mfn = mapping.mfn;
    match mapping.kind {
        PageKind::Ram | PageKind::RamReadOnly | PageKind::LogDirty => {
            if system.memory.state(mfn).kind() == FrameKind::Shared {
                return Ok(After::Nothing);
            }
            if domain.one_to_one {
                // Its DMA may still go there: nobody else gets the frame.
                system.memory.park(mfn, domain.id)?;
                domain.pages.fetch_sub(1, Ordering::Relaxed);
                Ok(After::Nothing)
            } else {
                Ok(After::Free(mfn))
            }
        }
        PageKind::Foreign | PageKind::ForeignRo => Ok(After::Release(mfn)),
        PageKind::Mmio
        | PageKind::MmioReadOnly
        | PageKind::GrantRw
        | PageKind::GrantRo
        | PageKind::Ioreq
        | PageKind::Broken => Err(Errno::EINVAL),
    }
}

fn finish<M: Machine>(system: &System<M>, domain: &Domain<M>, flush: Flush, after: After) {
    system.machine.flush(domain, flush);
    match after {
        After::Nothing => {}
        After::Free(mfn) => {
            domain.pages.fetch_sub(1, Ordering::Relaxed);
            // Whoever still refers to it keeps it until they are done.
            let _ = system.memory.abandon(mfn, domain.id);
        }
        After::Release(mfn) => system.memory.release(mfn),
    }
}

/// Gives the domain RAM at `gfn`, `2^order` frames. ENOMEM if there is none (for a one-to-one domain: if these are not frames that it gave up), EINVAL for a gfn that is not aligned or out of reach.
pub fn populate<M: Machine>(system: &System<M>, domain: &Domain<M>, gfn: Gfn, order: u8) -> Result<(), Errno> {
    let frames = 1u64.checked_shl(order.into()).ok_or(Errno::EINVAL)?;
    if gfn.0 & frames.wrapping_sub(1) != 0 {
        return Err(Errno::EINVAL);
    }
    if domain.one_to_one {
        return repopulate(system, domain, gfn, frames);
    }
    let held = domain.pages.load(Ordering::Relaxed);
    if held.saturating_add(frames) > domain.max_pages.load(Ordering::Relaxed) {
        return Err(Errno::ENOMEM);
    }
    let mfn = system.memory.allocate(order, None).map_err(|_| Errno::ENOMEM)?.scrub().give_to(domain.id);
    match domain.p2m.map(gfn, mfn, frames, PageKind::Ram, MemoryType::WriteBack) {
        Ok(flush) => {
            domain.pages.fetch_add(frames, Ordering::Relaxed);
            system.machine.flush(domain, flush);
            Ok(())
        }
        Err(errno) => {
            let _ = system.memory.free_owned(mfn, order, domain.id);
            Err(errno)
        }
    }
}

/// Frames of a one-to-one domain come back to where they were.
fn repopulate<M: Machine>(system: &System<M>, domain: &Domain<M>, gfn: Gfn, frames: u64) -> Result<(), Errno> {
    for index in 0..frames {
        let at = Gfn(gfn.0.checked_add(index).ok_or(Errno::EINVAL)?);
        let mfn = Mfn(at.0);
        system.memory.unpark(mfn, domain.id).map_err(|_| Errno::ENOMEM)?;
        match domain.p2m.map(at, mfn, 1, PageKind::Ram, MemoryType::WriteBack) {
            Ok(flush) => system.machine.flush(domain, flush),
            Err(errno) => {
                let _ = system.memory.park(mfn, domain.id);
                return Err(errno);
            }
        }
        domain.pages.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Maps a frame at `gfn`; what was there goes first. A frame of the host's own making (shared_info, grant table) is counted as RAM that the guest may write.
pub fn place<M: Machine>(
    system: &System<M>,
    domain: &Domain<M>,
    gfn: Gfn,
    mfn: Mfn,
    kind: PageKind,
) -> Result<(), Errno> {
    let before = domain.p2m.lookup(gfn);
    if before.is_some_and(|mapping| mapping.mfn == mfn && mapping.kind == kind) {
        return Ok(());
    }
    let after = match &before {
        Some(mapping) => check_removable(system, domain, mapping)?,
        None => After::Nothing,
    };
    let flush = domain.p2m.map(gfn, mfn, 1, kind, MemoryType::WriteBack)?;
    finish(system, domain, flush, after);
    Ok(())
}
