//! HVMOP: parameters and upcall vectors.

use xen_abi::errno::Errno;
use xen_abi::hvm::*;
use xen_abi::types::VcpuId;

use crate::domain::{Callback, Domain};
use crate::hypercall::{Arguments, Caller};
use crate::machine::Machine;

/// The first vector that a local APIC accepts.
const FIRST_VECTOR: u8 = 16;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<u64, Errno> {
    let [command, argument, ..] = arguments;
    match command as u32 {
        HVMOP_SET_PARAM => {
            let param = caller.read(caller.handle::<Param>(argument))?;
            let domain = caller.target(param.domid)?;
            set_param(caller, &domain, &param).map(|()| 0)
        }
        HVMOP_GET_PARAM => {
            let handle = caller.handle::<Param>(argument);
            let mut param = caller.read(handle)?;
            let domain = caller.target(param.domid)?;
            param.value = domain.params.get(param.index).ok_or(Errno::EINVAL)?;
            caller.write(handle, &param).map(|()| 0)
        }
        HVMOP_SET_EVTCHN_UPCALL_VECTOR => {
            let request = caller.read(caller.handle::<EvtchnUpcallVector>(argument))?;
            if request.vector < FIRST_VECTOR {
                return Err(Errno::EINVAL);
            }
            let vcpu = caller.domain.vcpu(VcpuId(request.vcpu)).ok_or(Errno::ENOENT)?;
            vcpu.set_upcall_vector(request.vector);
            // An upcall may have been waiting for a way in.
            crate::event::raise_if_pending(caller.system, caller.domain, vcpu);
            Ok(0)
        }
        HVMOP_GET_TIME => {
            let time = GetTime { now: caller.system.machine.now().0 };
            caller.write(caller.handle(argument), &time).map(|()| 0)
        }
        HVMOP_GET_MEM_TYPE => {
            let handle = caller.handle::<GetMemType>(argument);
            let mut request = caller.read(handle)?;
            let domain = caller.target(request.domid)?;
            request.mem_type = match domain.p2m.lookup(mm::addr::Gfn(request.pfn)).map(|mapping| mapping.kind) {
                Some(mm::table::PageKind::Ram | mm::table::PageKind::LogDirty) => HVMMEM_RAM_RW,
                Some(mm::table::PageKind::RamReadOnly) => HVMMEM_RAM_RO,
                _ => HVMMEM_MMIO_DM,
            };
            caller.write(handle, &request).map(|()| 0)
        }
        HVMOP_FLUSH_TLBS => Err(Errno::ENOSYS),
        HVMOP_PAGETABLE_DYING => Ok(0),
        _ => Err(Errno::ENOSYS),
    }
}

fn set_param<M: Machine>(caller: &mut Caller<'_, M>, domain: &Domain<M>, param: &Param) -> Result<(), Errno> {
    match param.index {
        HVM_PARAM_CALLBACK_IRQ => {
            let kind = param.value >> HVM_PARAM_CALLBACK_IRQ_TYPE_SHIFT;
            domain.set_callback(match kind {
                HVM_PARAM_CALLBACK_TYPE_VECTOR => Callback::Vector(param.value as u8),
                HVM_PARAM_CALLBACK_TYPE_GSI if param.value != 0 => Callback::Gsi(param.value as u8),
                _ => Callback::None,
            });
            domain.latch_width(caller.width);
            crate::wallclock::update_wallclock(caller.system, domain);
        }
        // The guest's frames for its store and console rings, and what only the toolstack may set.
        HVM_PARAM_STORE_PFN | HVM_PARAM_CONSOLE_PFN | HVM_PARAM_STORE_EVTCHN | HVM_PARAM_CONSOLE_EVTCHN
            if !caller.domain.is_control() =>
        {
            return Err(Errno::EPERM);
        }
        HVM_PARAM_TIMER_MODE if param.value > HVMPTM_ONE_MISSED_TICK_PENDING => return Err(Errno::EINVAL),
        HVM_PARAM_NESTEDHVM | HVM_PARAM_ALTP2M if param.value != 0 => return Err(Errno::EOPNOTSUPP),
        _ => {}
    }
    domain.params.set(param.index, param.value).ok_or(Errno::EINVAL)
}
