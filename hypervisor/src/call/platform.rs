//! XENPF: what Dom0 asks of the platform, and tells it. What is answered here has one layout for both widths.

use xen_abi::errno::Errno;
use xen_abi::platform::*;

use crate::hypercall::{Arguments, Caller};
use crate::machine::Machine;
use crate::wallclock;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<u64, Errno> {
    let [argument, ..] = arguments;
    let handle = caller.handle::<PlatformOp>(argument);
    let mut op = caller.read(handle)?;
    if op.interface_version != XENPF_INTERFACE_VERSION {
        return Err(Errno::EACCES);
    }
    match op.cmd {
        XENPF_GET_CPUINFO => {
            let mut info: PcpuInfo = op.u.get();
            let machine = &caller.system.machine;
            // An id beyond the last is no error: it answers with the highest id that there is.
            let known = machine.physical_cpu(info.xen_cpuid);
            info.max_present = known.or_else(|| machine.physical_cpu(0)).map_or(0, |cpu| cpu.highest);
            match known {
                Some(cpu) => {
                    info.flags = if cpu.online { XEN_PCPU_FLAGS_ONLINE } else { 0 };
                    info.apic_id = cpu.apic_id;
                    info.acpi_id = cpu.acpi_id;
                }
                None => info.flags = XEN_PCPU_FLAGS_INVALID,
            }
            op.u.set(&info);
            caller.write(handle, &op).map(|()| 0)
        }
        XENPF_SETTIME64 => {
            let time: Settime64 = op.u.get();
            if time.mbz != 0 {
                return Err(Errno::EINVAL);
            }
            set_time(caller, time.secs, time.nsecs, time.system_time)
        }
        XENPF_SETTIME32 => {
            let time: Settime32 = op.u.get();
            set_time(caller, u64::from(time.secs), time.nsecs, time.system_time)
        }
        // There is no EFI run-time service to offer, and no VBE or disk data is kept: "not there", which every kernel takes for an answer.
        XENPF_FIRMWARE_INFO => Err(Errno::ENODEV),
        XENPF_GET_DOM0_CONSOLE => Err(Errno::ENODEV),
        // Corten does not steer power states yet; Dom0's uploads are taken note of and not used.
        XENPF_SET_PROCESSOR_PMINFO => Ok(0),
        _ => Err(Errno::ENOSYS),
    }
}

/// It is so late at system time `at`. Every domain's wall clock follows.
fn set_time<M: Machine>(caller: &mut Caller<'_, M>, seconds: u64, nanoseconds: u32, at: u64) -> Result<u64, Errno> {
    let system = caller.system;
    system.machine.set_wallclock(seconds, nanoseconds, sched::Nanos(at));
    system.for_each(|domain| wallclock::update_wallclock(system, domain));
    Ok(0)
}
