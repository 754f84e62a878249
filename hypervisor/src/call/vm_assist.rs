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

#[cfg(test)]
mod tests {
    use sched::Nanos;
    use xen_abi::numbers::{VCPU_OP, VM_ASSIST};
    use xen_abi::vcpu::{RegisterArea, RunstateInfo, VCPUOP_REGISTER_RUNSTATE_PHYS_AREA};

    use super::*;
    use crate::fake::{self, Running, page};
    use crate::runstate::State;

    const FLAG: u64 = VMASST_TYPE_RUNSTATE_UPDATE_FLAG as u64;

    #[test]
    fn the_one_assistance_there_is_is_switched_and_no_other() {
        let system = fake::system(256);
        let mut guest = Running::new(system, &fake::add_domain(system, 5, 16));
        let mut ask = |command: u32, kind| guest.call(VM_ASSIST, &[command.into(), kind]).0;
        for kind in [0, 1, 2, 3, 4, 6, 32, 64, u64::MAX] {
            assert_eq!(ask(VMASST_CMD_ENABLE, kind), Errno::EINVAL.as_return());
        }
        assert_eq!(ask(7, FLAG), Errno::ENOSYS.as_return());
        assert_eq!(ask(VMASST_CMD_ENABLE, FLAG | 1 << 32), 0, "types have 32 bits");
        assert_eq!(ask(VMASST_CMD_DISABLE, FLAG), 0);
    }

    #[test]
    fn a_runstate_changes_between_two_stores_of_its_time() {
        let system = fake::system(256);
        let mut guest = Running::new(system, &fake::add_domain(system, 5, 16));
        assert_eq!(guest.call(VM_ASSIST, &[VMASST_CMD_ENABLE.into(), FLAG]).0, 0);
        guest.poke(page(1), &RegisterArea { addr: page(2) });
        assert_eq!(guest.call(VCPU_OP, &[VCPUOP_REGISTER_RUNSTATE_PHYS_AREA.into(), 0, page(1)]).0, 0);
        guest.vcpu().runstate.lock().enter(State::Running, Nanos(77));
        // When all is written the flag is gone.
        let info: RunstateInfo = guest.peek(page(2));
        assert_eq!((info.state, info.state_entry_time), (0, 77));
    }
}
