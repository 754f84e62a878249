//! SCHEDOP: giving up the CPU, and shutting down.

use sched::Nanos;
use xen_abi::errno::Errno;
use xen_abi::sched::*;

use crate::hypercall::{Arguments, Caller, Outcome};
use crate::machine::Machine;
use crate::vcpu::hold;

/// Ports that one SCHEDOP_poll may name.
const POLL_MAX: u32 = 128;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<Outcome, Errno> {
    let [command, argument, ..] = arguments;
    match command as u32 {
        SCHEDOP_YIELD => caller.system.machine.yield_now(caller.domain, caller.vcpu),
        SCHEDOP_BLOCK => block(caller),
        SCHEDOP_POLL => {
            let poll = caller.read(caller.handle::<Poll>(argument))?;
            return poll_ports(caller, &poll);
        }
        SCHEDOP_SHUTDOWN | SCHEDOP_SHUTDOWN_CODE => {
            let reason = caller.read(caller.handle::<Shutdown>(argument))?.reason;
            if reason > SHUTDOWN_MAX {
                return Err(Errno::EINVAL);
            }
            shutdown(caller, reason);
        }
        SCHEDOP_REMOTE_SHUTDOWN => {
            let remote = caller.read(caller.handle::<RemoteShutdown>(argument))?;
            caller.require_control()?;
            let target = caller.system.domain(remote.domain_id).ok_or(Errno::ESRCH)?;
            if target.begin_shutdown(remote.reason) {
                caller.system.machine.domain_stopped(&target, remote.reason);
            }
        }
        // The hardware domain's watchdog timers and CPU overrides.
        _ => return Err(Errno::ENOSYS),
    }
    Ok(Outcome::Return(0))
}

/// SCHEDOP_block: enables upcalls and waits for one.
fn block<M: Machine>(caller: &mut Caller<'_, M>) {
    caller.vcpu.set_hold(hold::BLOCKED);
    // Whoever sets the bit after this look finds the hold and takes it away.
    if let Some(info) = caller.vcpu.info(caller.domain) {
        if let Some(mask) = info.upcall_mask() {
            mask.store(0, core::sync::atomic::Ordering::SeqCst);
        }
        if info.upcall_pending().is_some_and(|pending| pending.load(core::sync::atomic::Ordering::SeqCst) != 0) {
            caller.vcpu.clear_hold(hold::BLOCKED);
        }
    }
}

fn poll_ports<M: Machine>(caller: &mut Caller<'_, M>, poll: &Poll) -> Result<Outcome, Errno> {
    if poll.nr_ports > POLL_MAX {
        return Err(Errno::EINVAL);
    }
    let mut first = 0;
    // The vCPU counts as polling before it looks at the ports: an event that arrives in between ends the poll.
    if poll.nr_ports == 1 {
        first = caller.read(poll.ports)?.0;
    }
    let deadline = (poll.timeout != 0).then_some(Nanos(poll.timeout));
    caller.domain.events.poll_begins(caller.vcpu.id);
    caller.vcpu.start_poll(first, deadline);
    match any_pending(caller, poll) {
        Ok(false) => {
            caller.system.machine.timer_changed(caller.domain, caller.vcpu);
            Ok(Outcome::Return(0))
        }
        result => {
            caller.domain.events.poll_ended(caller.vcpu.id);
            caller.vcpu.end_poll();
            caller.vcpu.clear_hold(hold::POLLING);
            result.map(|_| Outcome::Return(0))
        }
    }
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

fn shutdown<M: Machine>(caller: &mut Caller<'_, M>, reason: u32) {
    if caller.domain.begin_shutdown(reason) {
        caller.system.machine.domain_stopped(caller.domain, reason);
    }
}
