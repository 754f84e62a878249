//! What a domain, or the machine, says of its CPU.

use alloc::sync::Arc;
use alloc::vec::Vec;

use xen_abi::domctl::{CpuPolicy as Request, Domctl};
use xen_abi::errno::Errno;
use xen_abi::handle::GuestHandle;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Answer, another};
use crate::cpu_policy::{CpuPolicy, MAX_LEAVES, MAX_MSRS, NOTHING};
use crate::domain::Domain;
use crate::hypercall::Caller;
use crate::machine::Machine;

/// Writes a list for which the caller has room for so many elements, or just counts it where there is no room; how many there are. ENOBUFS if
/// there is too little room.
pub fn tell<M: Machine, T: IntoBytes + Immutable>(
    caller: &mut Caller<'_, M>,
    list: &[T],
    to: GuestHandle<T>,
    room: u32,
) -> Result<u32, Errno> {
    let count = list.len() as u32;
    if !to.is_null() {
        if room < count {
            return Err(Errno::ENOBUFS);
        }
        for (index, element) in (0..).zip(list) {
            caller.write_at(to, index, element)?;
        }
    }
    Ok(count)
}

/// The same for a part of a policy. Where there is no room, as many as any policy has: the toolstack makes room once, for all of them and for what
/// its own library adds.
pub fn tell_policy<M: Machine, T: IntoBytes + Immutable>(
    caller: &mut Caller<'_, M>,
    list: &[T],
    to: GuestHandle<T>,
    room: u32,
    most: u32,
) -> Result<u32, Errno> {
    if to.is_null() { Ok(most) } else { tell(caller, list, to, room) }
}

/// Reads a list of at most `most` elements. E2BIG for more, ENOMEM.
fn read<M: Machine, T: FromBytes + IntoBytes>(
    caller: &mut Caller<'_, M>,
    from: GuestHandle<T>,
    count: u32,
    most: u32,
) -> Result<Vec<T>, Errno> {
    if count > most {
        return Err(Errno::E2BIG);
    }
    let mut list = Vec::new();
    list.try_reserve_exact(count as usize).map_err(|_| Errno::ENOMEM)?;
    for index in 0..count {
        list.push(caller.read_at(from, index.into())?);
    }
    Ok(list)
}

/// XEN_DOMCTL_get_cpu_policy.
pub(super) fn get<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Domain<M>,
    op: &mut Domctl,
) -> Result<Answer, Errno> {
    let mut request: Request = op.u.get();
    let CpuPolicy { leaves, msrs } = caller.system.machine.policy(domain)?;
    request.nr_leaves = tell_policy(caller, &leaves, request.leaves, request.nr_leaves, MAX_LEAVES)?;
    request.nr_msrs = tell_policy(caller, &msrs, request.msrs, request.nr_msrs, MAX_MSRS)?;
    op.u.set(&request);
    Ok(Answer::Tell)
}

/// XEN_DOMCTL_set_cpu_policy: what is not sent stays. EEXIST once the domain has run; what is refused is told by leaf and MSR.
pub(super) fn set<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Arc<Domain<M>>,
    op: &mut Domctl,
) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    let mut request: Request = op.u.get();
    if domain.control.is_finished() {
        return Err(Errno::EEXIST);
    }
    let leaves = read(caller, request.leaves, request.nr_leaves, MAX_LEAVES)?;
    let msrs = read(caller, request.msrs, request.nr_msrs, MAX_MSRS)?;
    (request.err_leaf, request.err_subleaf, request.err_msr) = (NOTHING, NOTHING, NOTHING);
    let done = caller.system.machine.set_policy(domain, &leaves, &msrs);
    if let Err(refused) = done {
        (request.err_leaf, request.err_subleaf, request.err_msr) = (refused.leaf, refused.subleaf, refused.msr);
    }
    op.u.set(&request);
    match done {
        Ok(()) => Ok(Answer::Tell),
        Err(refused) => Ok(Answer::TellAndFail(refused.error)),
    }
}
