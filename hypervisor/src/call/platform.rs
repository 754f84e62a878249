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

#[cfg(test)]
mod tests {
    use xen_abi::numbers::PLATFORM_OP;
    use zerocopy::{FromBytes, Immutable, IntoBytes};

    use super::*;
    use crate::fake::{self, Running, page};

    fn dom0() -> Running {
        let system = fake::system(256);
        Running::new(system, &fake::add_domain(system, 0, 16))
    }

    fn ask<T: FromBytes + IntoBytes + Immutable>(running: &mut Running, cmd: u32, argument: &mut T) -> i64 {
        let mut op = PlatformOp { cmd, interface_version: XENPF_INTERFACE_VERSION, ..Default::default() };
        op.u.set(argument);
        running.poke(page(0), &op);
        let result = running.call(PLATFORM_OP, &[page(0)]).0;
        *argument = running.peek::<PlatformOp>(page(0)).u.get();
        result
    }

    #[test]
    fn physical_cpus_are_told_by_number() {
        let mut dom0 = dom0();
        let mut info = PcpuInfo::default();
        assert_eq!(ask(&mut dom0, XENPF_GET_CPUINFO, &mut info), 0);
        assert_eq!((info.max_present, info.flags), (0, XEN_PCPU_FLAGS_ONLINE));
        assert_eq!((info.apic_id, info.acpi_id), (8, 3));
        let mut info = PcpuInfo { xen_cpuid: 77, ..Default::default() };
        assert_eq!(ask(&mut dom0, XENPF_GET_CPUINFO, &mut info), 0);
        assert_eq!((info.xen_cpuid, info.max_present, info.flags), (77, 0, XEN_PCPU_FLAGS_INVALID));
    }

    #[test]
    fn a_new_time_is_every_domains() {
        let mut dom0 = dom0();
        let guest = fake::add_domain(dom0.system, 5, 16);
        let mut time = Settime64 { secs: 0x1_0000_0007, nsecs: 9, mbz: 0, system_time: 5 };
        assert_eq!(ask(&mut dom0, XENPF_SETTIME64, &mut time), 0);
        assert_eq!(*dom0.system.machine.wallclock.lock().unwrap(), (0x1_0000_0007, 9));
        for domain in [&dom0.domain, &guest] {
            let mut words = [0; 16];
            domain.shared_info.read(3072, &mut words).unwrap();
            let words = <[u32; 4]>::read_from_bytes(&words).unwrap();
            assert_eq!((words[0] & 1, words[1], words[2], words[3]), (0, 7, 9, 1));
        }
        time.mbz = 1;
        assert_eq!(ask(&mut dom0, XENPF_SETTIME64, &mut time), Errno::EINVAL.as_return());
        assert_eq!(ask(&mut dom0, XENPF_SETTIME32, &mut Settime32 { secs: 4, nsecs: 1, system_time: 5 }), 0);
        assert_eq!(*dom0.system.machine.wallclock.lock().unwrap(), (4, 1));
    }

    #[test]
    fn what_there_is_not_is_said_so_and_another_version_is_not_spoken() {
        let mut dom0 = dom0();
        for cmd in [XENPF_FIRMWARE_INFO, XENPF_GET_DOM0_CONSOLE] {
            assert_eq!(ask(&mut dom0, cmd, &mut 0u64), Errno::ENODEV.as_return());
        }
        assert_eq!(ask(&mut dom0, 99, &mut 0u64), Errno::ENOSYS.as_return());
        dom0.poke(page(0), &PlatformOp { cmd: XENPF_GET_CPUINFO, interface_version: 1, ..Default::default() });
        assert_eq!(dom0.call(PLATFORM_OP, &[page(0)]).0, Errno::EACCES.as_return());
        let mut guest = Running::new(dom0.system, &fake::add_domain(dom0.system, 5, 16));
        assert_eq!(ask(&mut guest, XENPF_GET_CPUINFO, &mut 0u64), Errno::EPERM.as_return());
    }
}
