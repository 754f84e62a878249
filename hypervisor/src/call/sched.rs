//! SCHEDOP: giving up the CPU, and shutting down.

use core::sync::atomic::Ordering;

use ::sched::{Affinity, CpuId, CpuSet};
use xen_abi::errno::Errno;
use xen_abi::sched::*;

use crate::domain::shut_down;
use crate::hypercall::{Arguments, Caller};
use crate::machine::Machine;
use crate::timer;
use crate::vcpu::{Vcpu, hold};

#[cfg(test)]
mod tests;

/// Ports that one SCHEDOP_poll may name.
const POLL_MAX: u32 = 128;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<u64, Errno> {
    let [command, argument, ..] = arguments;
    match command as u32 {
        SCHEDOP_YIELD => caller.system.machine.yield_now(caller.domain, caller.vcpu),
        SCHEDOP_BLOCK => block(caller),
        SCHEDOP_POLL => {
            let poll = caller.read_arg(caller.handle::<Poll>(argument))?;
            poll_ports(caller, &poll)?;
        }
        // Reasons have eight bits, and any of them will do: they are for the toolstack to read.
        SCHEDOP_SHUTDOWN => {
            let reason = caller.read(caller.handle::<Shutdown>(argument))?.reason;
            shut_down(caller.system, caller.domain, reason as u8);
        }
        SCHEDOP_SHUTDOWN_CODE => {
            let reason = caller.read(caller.handle::<Shutdown>(argument))?.reason;
            caller.domain.note_shutdown_code(reason as u8);
        }
        SCHEDOP_REMOTE_SHUTDOWN => {
            let remote = caller.read(caller.handle::<RemoteShutdown>(argument))?;
            caller.require_control()?;
            let target = caller.system.domain(remote.domain_id).ok_or(Errno::ESRCH)?;
            shut_down(caller.system, &target, remote.reason as u8);
        }
        SCHEDOP_WATCHDOG => {
            let request = caller.read(caller.handle::<Watchdog>(argument))?;
            return set_watchdog(caller, &request);
        }
        SCHEDOP_PIN_OVERRIDE => {
            let request = caller.read(caller.handle::<PinOverride>(argument))?;
            caller.require_control()?;
            pin_override(caller, &request)?;
        }
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

/// SCHEDOP_block: enables upcalls and waits for one.
fn block<M: Machine>(caller: &mut Caller<'_, M>) {
    let (domain, vcpu) = (caller.domain, caller.vcpu);
    // Whoever sends something after these looks finds the hold and takes it away.
    vcpu.set_hold(hold::BLOCKED);
    let info = vcpu.info(domain);
    if let Some(mask) = info.and_then(|info| info.upcall_mask()) {
        mask.store(0, Ordering::SeqCst);
    }
    let pending = info.and_then(|info| info.upcall_pending());
    if pending.is_some_and(|pending| pending.load(Ordering::SeqCst) != 0)
        || caller.system.machine.interrupt_waits(domain, vcpu, caller.context)
    {
        vcpu.clear_hold(hold::BLOCKED);
    }
}

/// SCHEDOP_poll: sleeps until one of the ports is pending, the time is up, or there is an interrupt to take. EINVAL for too many ports or
/// one that does not exist, EFAULT.
fn poll_ports<M: Machine>(caller: &mut Caller<'_, M>, poll: &Poll) -> Result<(), Errno> {
    if poll.nr_ports > POLL_MAX {
        return Err(Errno::EINVAL);
    }
    let (system, domain, vcpu) = (caller.system, caller.domain, caller.vcpu);
    // Only an event on this very port is then worth waking for.
    let only = if poll.nr_ports == 1 { caller.read(poll.ports)?.0 } else { 0 };
    let deadline = (poll.timeout != 0).then(|| timer::deadline(poll.timeout));
    // The vCPU counts as polling before it looks at the ports: an event that arrives in between ends the poll.
    domain.events.poll_begins(vcpu.id);
    vcpu.start_poll(only, deadline);
    let is_over = deadline.is_some_and(|deadline| deadline <= system.machine.now())
        || system.machine.interrupt_waits(domain, vcpu, caller.context);
    let pending = any_pending(caller, poll);
    if pending == Ok(false) && !is_over {
        system.machine.timer_changed(domain, vcpu);
        return Ok(());
    }
    domain.events.poll_ended(vcpu.id);
    vcpu.end_poll();
    pending.map(|_| ())
}

fn any_pending<M: Machine>(caller: &mut Caller<'_, M>, poll: &Poll) -> Result<bool, Errno> {
    for index in 0..poll.nr_ports {
        let port = caller.read_at(poll.ports, u64::from(index))?;
        if crate::event::is_pending(caller.domain, port)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The domain's watchdogs are kept by its first vCPU, whose deadlines they are.
fn set_watchdog<M: Machine>(caller: &mut Caller<'_, M>, request: &Watchdog) -> Result<u64, Errno> {
    let first = caller.domain.vcpus.first().ok_or(Errno::EINVAL)?;
    let answer = first.watchdogs.set(request.id, caller.system.machine.now(), request.timeout)?;
    timer::set(caller.system, caller.domain, first);
    Ok(answer)
}

/// SCHEDOP_pin_override: the vCPU runs on that CPU alone, until a negative number ends it. EINVAL for a CPU that is not there or not online.
fn pin_override<M: Machine>(caller: &Caller<'_, M>, request: &PinOverride) -> Result<(), Errno> {
    let machine = &caller.system.machine;
    let Ok(cpu) = u32::try_from(request.pcpu) else { return end_override(machine, caller.vcpu) };
    machine.physical_cpu(cpu).filter(|cpu| cpu.online).ok_or(Errno::EINVAL)?;
    let mut overridden = caller.vcpu.overridden.lock();
    let affinity = machine.affinity(caller.vcpu).ok_or(Errno::ESRCH)?;
    let only = CpuSet::of(CpuId(cpu));
    machine.set_affinity(caller.vcpu, Affinity { hard: only, ..affinity })?;
    overridden.get_or_insert(affinity.hard);
    Ok(())
}

/// Gives a vCPU back the hard affinity that it had before its SCHEDOP_pin_override, if there was one.
pub(crate) fn end_override<M: Machine>(machine: &M, vcpu: &Vcpu<M>) -> Result<(), Errno> {
    let mut overridden = vcpu.overridden.lock();
    let Some(hard) = *overridden else { return Ok(()) };
    let affinity = machine.affinity(vcpu).ok_or(Errno::ESRCH)?;
    machine.set_affinity(vcpu, Affinity { hard, ..affinity })?;
    *overridden = None;
    Ok(())
}
