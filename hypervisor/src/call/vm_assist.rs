//! VMASST: the one assistance that a PVH guest may switch.

use core::sync::atomic::Ordering;

use xen_abi::errno::Errno;
use xen_abi::vm_assist::*;

use crate::hypercall::{Arguments, Caller};
use crate::machine::Machine;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<u64, Errno> {
    let [command, kind, ..] = arguments;
    if kind as u32 != VMASST_TYPE_RUNSTATE_UPDATE_FLAG {
        return Err(Errno::EINVAL);
    }
    let bit = 1u64 << VMASST_TYPE_RUNSTATE_UPDATE_FLAG;
    let flagged = match command as u32 {
        VMASST_CMD_ENABLE => {
            caller.domain.vm_assist.fetch_or(bit, Ordering::Relaxed);
            true
        }
        VMASST_CMD_DISABLE => {
            caller.domain.vm_assist.fetch_and(!bit, Ordering::Relaxed);
            false
        }
        _ => return Err(Errno::ENOSYS),
    };
    for vcpu in &caller.domain.vcpus {
        vcpu.runstate.lock().set_flagged(flagged);
    }
    Ok(0)
}
