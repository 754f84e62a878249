//! HVMOP: parameters and upcall vectors. One layout for both widths.

use mm::addr::Gfn;
use mm::table::PageKind;
use xen_abi::errno::Errno;
use xen_abi::hvm::*;
use xen_abi::sched::SHUTDOWN_MAX;
use xen_abi::types::VcpuId;

use crate::domain::{Callback, Domain};
use crate::event;
use crate::hypercall::{Arguments, Caller};
use crate::machine::Machine;
use crate::wallclock;

#[cfg(test)]
mod tests;

/// The first vector that a local APIC accepts.
const FIRST_VECTOR: u8 = 16;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<u64, Errno> {
    let [command, argument, ..] = arguments;
    match command as u32 {
        HVMOP_SET_PARAM => {
            let param = caller.read(caller.handle::<Param>(argument))?;
            set_param(caller, &param)?;
        }
        HVMOP_GET_PARAM => {
            let handle = caller.handle::<Param>(argument);
            let mut param = caller.read(handle)?;
            param.value = get_param(caller, &param)?;
            caller.write(handle, &param)?;
        }
        HVMOP_SET_EVTCHN_UPCALL_VECTOR => {
            let request = caller.read(caller.handle::<EvtchnUpcallVector>(argument))?;
            if request.vector < FIRST_VECTOR {
                return Err(Errno::EINVAL);
            }
            let vcpu = caller.domain.vcpu(VcpuId(request.vcpu)).ok_or(Errno::ENOENT)?;
            vcpu.set_upcall_vector(request.vector);
            // An upcall may have been waiting for a way in.
            event::raise_if_pending(caller.system, caller.domain, vcpu);
        }
        HVMOP_GET_TIME => {
            let time = GetTime { now: caller.system.machine.now().0 };
            caller.write(caller.handle(argument), &time)?;
        }
        HVMOP_GET_MEM_TYPE => {
            let handle = caller.handle::<GetMemType>(argument);
            let mut request = caller.read(handle)?;
            let domain = caller.target(request.domid)?;
            request.mem_type = match domain.p2m.lookup(Gfn(request.pfn)).map(|mapping| mapping.kind) {
                Some(PageKind::Ram | PageKind::LogDirty | PageKind::GrantRw) => HVMMEM_RAM_RW,
                Some(kind) if kind.comes_when_touched() => HVMMEM_RAM_RW,
                Some(PageKind::RamReadOnly | PageKind::GrantRo) => HVMMEM_RAM_RO,
                _ => HVMMEM_MMIO_DM,
            };
            caller.write(handle, &request)?;
        }
        // For shadowed page tables, which there are none of: the kernel stops telling of each that dies.
        HVMOP_PAGETABLE_DYING => return Err(Errno::EINVAL),
        HVMOP_ALTP2M => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

/// Who may do what with a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// There is none by this number, or not any more.
    Gone,
    /// Only whoever controls the domain may set and read it.
    Toolstack,
    /// The domain itself may read it.
    Readable,
    /// The domain itself may set it, too.
    Writable,
}

const fn access(index: u32) -> Access {
    match index {
        HVM_PARAM_CALLBACK_IRQ
        | HVM_PARAM_STORE_EVTCHN
        | HVM_PARAM_CONSOLE_EVTCHN
        | HVM_PARAM_VM86_TSS
        | HVM_PARAM_VM86_TSS_SIZED
        | HVM_PARAM_ACPI_IOPORTS_LOCATION
        | HVM_PARAM_VM_GENERATION_ID_ADDR
        | HVM_PARAM_X87_FIP_WIDTH => Access::Writable,
        HVM_PARAM_STORE_PFN | HVM_PARAM_CONSOLE_PFN | HVM_PARAM_ALTP2M => Access::Readable,
        HVM_PARAM_PAE_ENABLED
        | HVM_PARAM_DM_DOMAIN
        | HVM_PARAM_MEMORY_EVENT_CR0
        | HVM_PARAM_MEMORY_EVENT_CR3
        | HVM_PARAM_MEMORY_EVENT_CR4
        | HVM_PARAM_MEMORY_EVENT_INT3
        | HVM_PARAM_NESTEDHVM
        | HVM_PARAM_MEMORY_EVENT_SINGLE_STEP
        | HVM_PARAM_BUFIOREQ_EVTCHN
        | HVM_PARAM_MEMORY_EVENT_MSR
        | HVM_NR_PARAMS.. => Access::Gone,
        _ => Access::Toolstack,
    }
}

/// EINVAL for a parameter that does not exist, ESRCH for a domain that does not, EPERM if it is not the caller's to read.
fn get_param<M: Machine>(caller: &Caller<'_, M>, param: &Param) -> Result<u64, Errno> {
    let access = access(param.index);
    if param.index >= HVM_NR_PARAMS {
        return Err(Errno::EINVAL);
    }
    let domain = caller.target(param.domid)?;
    match access {
        Access::Gone => Err(Errno::EINVAL),
        Access::Toolstack if domain.id == caller.domain.id => Err(Errno::EPERM),
        _ => domain.params.get(param.index).ok_or(Errno::EINVAL),
    }
}

/// As [`get_param`], and EINVAL for a value that makes no sense.
fn set_param<M: Machine>(caller: &Caller<'_, M>, param: &Param) -> Result<(), Errno> {
    let access = access(param.index);
    if param.index >= HVM_NR_PARAMS {
        return Err(Errno::EINVAL);
    }
    let domain = caller.target(param.domid)?;
    match access {
        Access::Gone => return Err(Errno::EINVAL),
        Access::Toolstack | Access::Readable if domain.id == caller.domain.id => return Err(Errno::EPERM),
        _ => {}
    }
    let value = param.value;
    match param.index {
        HVM_PARAM_TIMER_MODE if value > HVMPTM_ONE_MISSED_TICK_PENDING => return Err(Errno::EINVAL),
        HVM_PARAM_TRIPLE_FAULT_REASON if value > SHUTDOWN_MAX.into() => return Err(Errno::EINVAL),
        HVM_PARAM_X87_FIP_WIDTH if !matches!(value, 0 | 4 | 8) => return Err(Errno::EINVAL),
        HVM_PARAM_ALTP2M if value > XEN_ALTP2M_LIMITED => return Err(Errno::EINVAL),
        HVM_PARAM_ALTP2M if value != XEN_ALTP2M_DISABLED => return Err(Errno::EOPNOTSUPP),
        HVM_PARAM_CALLBACK_IRQ => set_callback(caller, &domain, value),
        _ => {}
    }
    domain.params.set(param.index, value).ok_or(Errno::EINVAL)
}

/// The callback also says how wide the guest is: from now on what it shares has the layout of this caller's.
fn set_callback<M: Machine>(caller: &Caller<'_, M>, domain: &Domain<M>, value: u64) {
    domain.set_callback(match value >> HVM_PARAM_CALLBACK_IRQ_TYPE_SHIFT {
        HVM_PARAM_CALLBACK_TYPE_VECTOR => Callback::Vector(value as u8),
        HVM_PARAM_CALLBACK_TYPE_GSI if value != 0 => Callback::Gsi(value as u8),
        _ => Callback::None,
    });
    if domain.id == caller.domain.id {
        wallclock::latch_width(caller.system, domain, caller.width);
    }
    // Upcalls may have been waiting for a way in.
    for vcpu in &domain.vcpus {
        event::raise_if_pending(caller.system, domain, vcpu);
    }
}
