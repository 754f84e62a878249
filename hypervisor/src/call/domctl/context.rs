//! The state of a domain's vCPUs and virtual devices (XEN_DOMCTL_gethvmcontext and its like).

use alloc::sync::Arc;
use alloc::vec::Vec;

use xen_abi::domctl::{Domctl, HvmContext, HvmContextPartial};
use xen_abi::errno::Errno;
use xen_abi::hvm_save::Descriptor;

use super::{Answer, another};
use crate::domain::{Domain, hold_all, release_all};
use crate::hypercall::Caller;
use crate::machine::Machine;
use crate::vcpu::hold;

/// The largest state that is taken: as much as 128 vCPUs with all that they can have.
const MOST: u32 = 4 << 20;

/// Does something while a domain stands still.
fn held<M: Machine, R>(
    caller: &mut Caller<'_, M>,
    domain: &Domain<M>,
    act: impl FnOnce(&mut Caller<'_, M>) -> Result<R, Errno>,
) -> Result<R, Errno> {
    if domain.control.is_dying() {
        return Err(Errno::EINVAL);
    }
    if domain.control.pause()? {
        hold_all(caller.system, domain, hold::PAUSED);
    }
    let result = act(caller);
    if domain.control.unpause()? {
        release_all(caller.system, domain, hold::PAUSED);
    }
    result
}

fn save<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Domain<M>,
    record: Option<(u16, u16)>,
) -> Result<Vec<u8>, Errno> {
    held(caller, domain, |caller| caller.system.machine.save(caller.context, domain, record))
}

/// XEN_DOMCTL_gethvmcontext; without a buffer, how large it is. ENOSPC if there is too little room.
pub(super) fn get<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Arc<Domain<M>>,
    op: &mut Domctl,
) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    let mut request: HvmContext = op.u.get();
    let state = save(caller, domain, None)?;
    if !request.buffer.is_null() {
        if (request.size as usize) < state.len() {
            return Err(Errno::ENOSPC);
        }
        caller.write_bytes(request.buffer.address(), &state)?;
    }
    request.size = state.len() as u32;
    op.u.set(&request);
    Ok(Answer::Tell)
}

/// XEN_DOMCTL_gethvmcontext_partial: one record, without its descriptor; without a buffer, how large it is. ENOENT if there is none, ENOSPC.
pub(super) fn get_one<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Arc<Domain<M>>,
    op: &mut Domctl,
) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    let mut request: HvmContextPartial = op.u.get();
    let kind = u16::try_from(request.r#type).map_err(|_| Errno::EINVAL)?;
    let instance = u16::try_from(request.instance).map_err(|_| Errno::ENOENT)?;
    let state = save(caller, domain, Some((kind, instance)))?;
    let record = state.get(size_of::<Descriptor>()..).ok_or(Errno::ENOENT)?;
    if !request.buffer.is_null() {
        if request.bufsz < record.len() as u64 {
            return Err(Errno::ENOSPC);
        }
        caller.write_bytes(request.buffer.address(), record)?;
    }
    request.bufsz = record.len() as u64;
    op.u.set(&request);
    Ok(Answer::Tell)
}

/// XEN_DOMCTL_sethvmcontext. EINVAL for what is no state that the domain can be in, ENOMEM for far too much.
pub(super) fn set<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Arc<Domain<M>>,
    request: HvmContext,
) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    if request.size > MOST {
        return Err(Errno::ENOMEM);
    }
    let mut state = Vec::new();
    state.try_reserve_exact(request.size as usize).map_err(|_| Errno::ENOMEM)?;
    state.resize(request.size as usize, 0);
    caller.read_bytes(request.buffer.address(), &mut state)?;
    held(caller, domain, |caller| caller.system.machine.restore(caller.context, domain, &state))?;
    Ok(Answer::Done)
}
