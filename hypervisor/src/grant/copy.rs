//! Copying between pages of which one at least is granted.

use mm::FrameRef;
use mm::addr::{Gfn, HostPhys, PAGE_SIZE};
use mm::table::{PageFormat, PageKind};
use xen_abi::grant::*;
use xen_abi::types::{DomainId, GrantRef};

use super::map::refused_page;
use super::{Party, Purpose, Refused, Table, Wanted};

/// Whether a granter's page of this kind may be written through a grant.
pub(super) const fn may_write(kind: PageKind) -> bool {
    matches!(kind, PageKind::Ram | PageKind::LogDirty)
}

/// One side of a copy, as the caller described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// What this domain granted to the caller.
    Grant(DomainId, GrantRef),
    /// The caller's own memory.
    Own(Gfn),
}

impl Place {
    fn decode(pointer: &CopyPtr, is_grant: bool, caller: DomainId) -> Result<Place, Refused> {
        if is_grant {
            let domain = if pointer.domid == DomainId::SELF { caller } else { pointer.domid };
            Ok(Place::Grant(domain, pointer.gref()))
        } else if pointer.domid == DomainId::SELF || pointer.domid == caller {
            Ok(Place::Own(Gfn(pointer.frame_or_ref)))
        } else {
            Err(Refused::Denied)
        }
    }

    /// The domain whose memory this is; `None` for the caller's own.
    #[inline]
    pub fn granter(&self) -> Option<DomainId> {
        match *self {
            Place::Grant(domain, _) => Some(domain),
            Place::Own(_) => None,
        }
    }
}

/// A copy within two pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRequest {
    pub source: Place,
    pub dest: Place,
    source_offset: u16,
    dest_offset: u16,
    length: u16,
}

impl CopyRequest {
    #[inline]
    pub fn decode(op: &GrantCopy, caller: DomainId) -> Result<CopyRequest, Refused> {
        let fits = |offset: u16| u32::from(offset).wrapping_add(u32::from(op.len)) <= PAGE_SIZE as u32;
        if !fits(op.source.offset) || !fits(op.dest.offset) {
            return Err(Refused::BadCopy);
        }
        Ok(CopyRequest {
            source: Place::decode(&op.source, op.flags & GNTCOPY_SOURCE_GREF != 0, caller)?,
            dest: Place::decode(&op.dest, op.flags & GNTCOPY_DEST_GREF != 0, caller)?,
            source_offset: op.source.offset,
            dest_offset: op.dest.offset,
            length: op.len,
        })
    }
}

/// A side that is ready: the frame cannot go away, and the grant is pinned.
struct Side<'a> {
    frame: FrameRef,
    pin: Option<(&'a Table, GrantRef, bool)>,
    offset: u16,
}

impl Drop for Side<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some((table, gref, write)) = self.pin {
            table.unpin(gref, write);
        }
    }
}

impl<'a> Side<'a> {
    /// `owner` is the domain that `place` names.
    #[inline]
    fn prepare<F: PageFormat>(
        owner: Party<'a, F>,
        caller: DomainId,
        place: Place,
        (offset, length): (u16, u16),
        write: bool,
    ) -> Result<Side<'a>, Refused> {
        let (gfn, pin) = match place {
            Place::Own(gfn) => (gfn, None),
            Place::Grant(_, gref) => {
                let table = owner.grants.table();
                let granted = table.pin(gref, Wanted { by: caller, write, purpose: Purpose::Copy })?;
                if !granted.covers(offset, length) {
                    table.unpin(gref, write);
                    return Err(Refused::General);
                }
                (granted.frame, Some((table, gref, write)))
            }
        };
        let found =
            owner.p2m.reference(gfn).map_err(refused_page).and_then(|(frame, found)| {
                if write && !may_write(found.kind) { Err(Refused::General) } else { Ok(frame) }
            });
        match (found, pin) {
            (Ok(frame), pin) => Ok(Side { frame, pin, offset }),
            (Err(refused), Some((table, gref, write))) => {
                table.unpin(gref, write);
                Err(refused)
            }
            (Err(refused), None) => Err(refused),
        }
    }

    #[inline]
    fn address(&self) -> HostPhys {
        HostPhys(self.frame.mfn().phys().0 | u64::from(self.offset))
    }
}

/// Copies. `source` and `dest` are the domains that the request's places name.
#[inline]
pub fn copy<F: PageFormat>(
    caller: DomainId,
    source: Party<'_, F>,
    dest: Party<'_, F>,
    request: &CopyRequest,
) -> Result<(), Refused> {
    let from = Side::prepare(source, caller, request.source, (request.source_offset, request.length), false)?;
    let to = Side::prepare(dest, caller, request.dest, (request.dest_offset, request.length), true)?;
    let window = source.p2m.memory().window();
    let copied = window.copy_within(from.address(), to.address(), request.length.into());
    copied.map_err(|_| Refused::BadPage)
}
