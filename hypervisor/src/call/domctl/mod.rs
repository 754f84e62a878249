//! DOMCTL: what the toolstack does with domains. One layout for both widths.

mod bitmap;
mod context;
mod info;
mod life;
mod memory;
pub(super) mod policy;
pub(super) mod scheduling;
#[cfg(test)]
mod tests;

use alloc::sync::Arc;

use xen_abi::domctl::*;
use xen_abi::errno::Errno;

use crate::domain::Domain;
use crate::hypercall::{Arguments, Caller, Outcome};
use crate::machine::Machine;
use crate::teardown;

pub(super) use bitmap::write_cpus;
use bitmap::{read_cpus, write_nodes};
pub(super) use info::describe;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Done,
    /// The argument has something to tell.
    Tell,
    /// The same, though nothing came of it.
    TellAndFail(Errno),
    /// There is more to do, and others get a chance first.
    Again,
}

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<Outcome, Errno> {
    let [argument, ..] = arguments;
    let handle = caller.handle::<Domctl>(argument);
    let mut op = caller.read(handle)?;
    if op.interface_version != XEN_DOMCTL_INTERFACE_VERSION {
        return Err(Errno::EACCES);
    }
    // What is told of free memory is right then.
    if teardown::bury(caller.system) {
        return Ok(Outcome::Continue(arguments));
    }
    match serve(caller, &mut op)? {
        Answer::Done => {}
        Answer::Tell => caller.write(handle, &op)?,
        Answer::TellAndFail(errno) => {
            caller.write(handle, &op)?;
            return Err(errno);
        }
        Answer::Again => return Ok(Outcome::Continue(arguments)),
    }
    Ok(Outcome::Return(0))
}

fn serve<M: Machine>(caller: &mut Caller<'_, M>, op: &mut Domctl) -> Result<Answer, Errno> {
    if op.cmd == XEN_DOMCTL_CREATEDOMAIN {
        return life::create(caller, op);
    }
    let domain = &caller.system.domain(op.domain).ok_or(Errno::ESRCH)?;
    let system = caller.system;
    match op.cmd {
        XEN_DOMCTL_DESTROYDOMAIN => life::destroy(caller, domain),
        XEN_DOMCTL_PAUSEDOMAIN => life::pause(caller, domain),
        XEN_DOMCTL_UNPAUSEDOMAIN => life::unpause(caller, domain),
        XEN_DOMCTL_RESUMEDOMAIN => life::resume(caller, domain),
        XEN_DOMCTL_MAX_VCPUS => life::max_vcpus(caller, domain, op.u.get()),
        XEN_DOMCTL_SENDTRIGGER => life::trigger(caller, domain, op.u.get()),
        XEN_DOMCTL_SETDOMAINHANDLE => {
            domain.control.set_handle(op.u.get::<SetDomainHandle>().handle);
            Ok(Answer::Done)
        }
        XEN_DOMCTL_SETTIMEOFFSET => life::set_time_offset(caller, domain, op.u.get()),
        XEN_DOMCTL_SETTSCINFO => life::set_tsc_info(caller, domain, op.u.get()),
        XEN_DOMCTL_GETTSCINFO => life::tsc_info(caller, domain, op),
        XEN_DOMCTL_GETDOMAININFO => {
            op.u.set(&describe(system, domain));
            Ok(Answer::Tell)
        }
        XEN_DOMCTL_GETVCPUINFO => info::vcpu(caller, domain, op),
        XEN_DOMCTL_GET_ADDRESS_SIZE => {
            op.u.set(&AddressSize { size: u64::BITS });
            Ok(Answer::Tell)
        }
        XEN_DOMCTL_GETPAGEFRAMEINFO3 => memory::page_info(caller, domain, op.u.get()),
        XEN_DOMCTL_MAX_MEM => memory::max_mem(domain, op.u.get()),
        XEN_DOMCTL_GET_PAGING_MEMPOOL_SIZE => memory::pool(domain, op),
        XEN_DOMCTL_SET_PAGING_MEMPOOL_SIZE => memory::set_pool(domain, op.u.get()),
        XEN_DOMCTL_SHADOW_OP => memory::shadow_op(domain, op),
        XEN_DOMCTL_GET_CPU_POLICY => policy::get(caller, domain, op),
        XEN_DOMCTL_SET_CPU_POLICY => policy::set(caller, domain, op),
        XEN_DOMCTL_GETHVMCONTEXT => context::get(caller, domain, op),
        XEN_DOMCTL_GETHVMCONTEXT_PARTIAL => context::get_one(caller, domain, op),
        XEN_DOMCTL_SETHVMCONTEXT => context::set(caller, domain, op.u.get()),
        XEN_DOMCTL_GETVCPUCONTEXT => context::vcpu_context(caller, domain, op.u.get()),
        XEN_DOMCTL_SETVCPUAFFINITY => scheduling::set_affinity(caller, domain, op.u.get()),
        XEN_DOMCTL_GETVCPUAFFINITY => scheduling::affinity(caller, domain, op.u.get()),
        XEN_DOMCTL_SETNODEAFFINITY => scheduling::set_node_affinity(caller, op.u.get()),
        XEN_DOMCTL_GETNODEAFFINITY => scheduling::node_affinity(caller, op.u.get()),
        XEN_DOMCTL_SCHEDULER_OP => scheduling::parameters(caller, domain, op),
        // No share of the last-level cache is kept for anyone.
        XEN_DOMCTL_SET_LLC_COLORS => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::ENOSYS),
    }
}

/// A domain that the caller may change, which must be another than its own. EINVAL for its own.
fn another<'a, M: Machine>(caller: &Caller<'_, M>, domain: &'a Arc<Domain<M>>) -> Result<&'a Arc<Domain<M>>, Errno> {
    if domain.id == caller.domain.id { Err(Errno::EINVAL) } else { Ok(domain) }
}
