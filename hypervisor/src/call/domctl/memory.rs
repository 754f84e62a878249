//! How much memory a domain may have, and what its pages are.

use core::sync::atomic::Ordering;

use mm::addr::Gfn;
use xen_abi::domctl::*;
use xen_abi::errno::Errno;

use super::{Answer, life};
use crate::domain::Domain;
use crate::hypercall::Caller;
use crate::machine::Machine;

const PAGE: u64 = mm::PAGE_SIZE as u64;
/// Pages that one XEN_DOMCTL_getpageframeinfo3 may ask for.
const MOST_PAGES: u64 = 1024;

/// XEN_DOMCTL_max_mem. What the domain has already stays its own.
pub(super) fn max_mem<M: Machine>(domain: &Domain<M>, request: MaxMem) -> Result<Answer, Errno> {
    const KIB_A_PAGE: u64 = PAGE / 1024;
    let pages = request.max_memkb.checked_div(KIB_A_PAGE).unwrap_or(0);
    domain.max_pages.store(pages.min(u32::MAX.into()), Ordering::Relaxed);
    Ok(Answer::Done)
}

pub(super) fn pool<M: Machine>(domain: &Domain<M>, op: &mut Domctl) -> Result<Answer, Errno> {
    op.u.set(&PagingMempool { size: domain.control.pool.load(Ordering::Relaxed) });
    Ok(Answer::Tell)
}

/// XEN_DOMCTL_set_paging_mempool_size: a limit, of which pages are drawn as they are needed. EINVAL for what is no number of pages.
pub(super) fn set_pool<M: Machine>(domain: &Domain<M>, request: PagingMempool) -> Result<Answer, Errno> {
    if !request.size.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    life::set_pool(domain, request.size.checked_div(PAGE).unwrap_or(0));
    Ok(Answer::Done)
}

/// The pool in MiB. ENOSYS for the rest: there is no log of dirty pages yet.
pub(super) fn shadow_op<M: Machine>(domain: &Domain<M>, op: &mut Domctl) -> Result<Answer, Errno> {
    const MIB: u64 = 1 << 20;
    let mut request: ShadowOp = op.u.get();
    match request.op {
        XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION => {
            request.mb = domain.control.pool.load(Ordering::Relaxed).div_ceil(MIB) as u32;
            op.u.set(&request);
            Ok(Answer::Tell)
        }
        XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION => {
            life::set_pool(domain, u64::from(request.mb).saturating_mul(MIB / PAGE));
            Ok(Answer::Done)
        }
        XEN_DOMCTL_SHADOW_OP_OFF => Ok(Answer::Done),
        _ => Err(Errno::ENOSYS),
    }
}

/// XEN_DOMCTL_getpageframeinfo3: of a translated domain, whether there is memory. E2BIG for too many pages.
pub(super) fn page_info<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Domain<M>,
    request: GetPageFrameInfo3,
) -> Result<Answer, Errno> {
    if request.num > MOST_PAGES {
        return Err(Errno::E2BIG);
    }
    for index in 0..request.num {
        let gfn = Gfn(caller.read_at(request.array, index)?);
        let kind = match domain.p2m.lookup(gfn).map(|mapping| mapping.kind) {
            Some(kind) if kind.is_own_memory() || kind.comes_when_touched() => XEN_DOMCTL_PFINFO_NOTAB,
            _ => XEN_DOMCTL_PFINFO_XTAB,
        };
        caller.write_at(request.array, index, &u64::from(kind))?;
    }
    Ok(Answer::Done)
}
