//! Where a domain's vCPUs run, and how much.

use sched::{Affinity, CpuId, CpuSet, Kind, Weight};
use xen_abi::domctl::*;
use xen_abi::errno::Errno;
use xen_abi::types::VcpuId;

use super::{Answer, read_cpus, write_cpus, write_nodes};
use crate::call::sched::end_override;
use crate::domain::Domain;
use crate::hypercall::Caller;
use crate::machine::Machine;
use crate::vcpu::Vcpu;

/// The number of a scheduler (`XEN_SCHEDULER_*`).
pub fn number(kind: Kind) -> u32 {
    match kind {
        Kind::Credit2 => XEN_SCHEDULER_CREDIT2,
        Kind::Null => XEN_SCHEDULER_NULL,
    }
}

/// How many CPUs the machine has.
pub fn cpus<M: Machine>(machine: &M) -> u32 {
    machine.physical_cpu(0).map_or(1, |cpu| cpu.highest.saturating_add(1))
}

const KNOWN: u32 = XEN_VCPUAFFINITY_HARD | XEN_VCPUAFFINITY_SOFT | XEN_VCPUAFFINITY_FORCE;
const EITHER: u32 = XEN_VCPUAFFINITY_HARD | XEN_VCPUAFFINITY_SOFT;

fn asked_for<'a, M: Machine>(domain: &'a Domain<M>, request: &VcpuAffinity) -> Result<&'a Vcpu<M>, Errno> {
    if request.flags & !KNOWN != 0 || request.flags & EITHER == 0 {
        return Err(Errno::EINVAL);
    }
    let vcpu = domain.vcpu(VcpuId(request.vcpu)).ok_or(Errno::EINVAL)?;
    if domain.control.is_admitted() { Ok(vcpu) } else { Err(Errno::ESRCH) }
}

/// XEN_DOMCTL_setvcpuaffinity; the caller's sets become what came of it. EINVAL for a set without a CPU that there is, EBUSY for the hard set of a
/// vCPU that has a SCHEDOP_pin_override, unless XEN_VCPUAFFINITY_FORCE ends that.
pub(super) fn set_affinity<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Domain<M>,
    request: VcpuAffinity,
) -> Result<Answer, Errno> {
    let vcpu = asked_for(domain, &request)?;
    let machine = &caller.system.machine;
    if request.flags & XEN_VCPUAFFINITY_FORCE != 0 {
        end_override(machine, vcpu)?;
    }
    if request.flags & XEN_VCPUAFFINITY_HARD != 0 && vcpu.overridden.lock().is_some() {
        return Err(Errno::EBUSY);
    }
    let count = cpus(machine);
    let there = CpuSet::first_of_all(count as usize);
    let mut affinity = machine.affinity(vcpu).ok_or(Errno::ESRCH)?;
    // A set that names all of the machine's CPUs means any.
    let wide = |set: CpuSet| if there.is_subset(&set) { CpuSet::ALL } else { set };
    if request.flags & XEN_VCPUAFFINITY_HARD != 0 {
        affinity.hard = wide(read_cpus(caller, &request.cpumap_hard)?);
    }
    if request.flags & XEN_VCPUAFFINITY_SOFT != 0 {
        affinity.soft = wide(read_cpus(caller, &request.cpumap_soft)?);
    }
    if (affinity.hard & there).is_empty() || (affinity.soft & there).is_empty() {
        return Err(Errno::EINVAL);
    }
    machine.set_affinity(vcpu, affinity)?;
    if request.flags & XEN_VCPUAFFINITY_HARD != 0 {
        write_cpus(caller, &request.cpumap_hard, affinity.hard, count)?;
    }
    if request.flags & XEN_VCPUAFFINITY_SOFT != 0 {
        write_cpus(caller, &request.cpumap_soft, affinity.hard & affinity.soft, count)?;
    }
    Ok(Answer::Done)
}

pub(super) fn affinity<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Domain<M>,
    request: VcpuAffinity,
) -> Result<Answer, Errno> {
    let vcpu = asked_for(domain, &request)?;
    let Affinity { hard, soft } = caller.system.machine.affinity(vcpu).ok_or(Errno::ESRCH)?;
    let count = cpus(&caller.system.machine);
    if request.flags & XEN_VCPUAFFINITY_HARD != 0 {
        write_cpus(caller, &request.cpumap_hard, hard, count)?;
    }
    if request.flags & XEN_VCPUAFFINITY_SOFT != 0 {
        write_cpus(caller, &request.cpumap_soft, soft, count)?;
    }
    Ok(Answer::Done)
}

/// The machine is one node: no other set makes sense, and that one changes nothing. EINVAL for a set without it.
pub(super) fn set_node_affinity<M: Machine>(
    caller: &mut Caller<'_, M>,
    request: NodeAffinity,
) -> Result<Answer, Errno> {
    let nodes = read_cpus(caller, &request.nodemap)?;
    if nodes.contains(CpuId(0)) { Ok(Answer::Done) } else { Err(Errno::EINVAL) }
}

pub(super) fn node_affinity<M: Machine>(caller: &mut Caller<'_, M>, request: NodeAffinity) -> Result<Answer, Errno> {
    write_nodes(caller, &request.nodemap).map(|()| Answer::Done)
}

/// XEN_DOMCTL_scheduler_op: weight and cap. EINVAL for another scheduler than the one in use; EOPNOTSUPP for single vCPUs, and for a scheduler
/// without parameters.
pub(super) fn parameters<M: Machine>(
    caller: &Caller<'_, M>,
    domain: &Domain<M>,
    op: &mut Domctl,
) -> Result<Answer, Errno> {
    let mut request: SchedulerOp = op.u.get();
    let machine = &caller.system.machine;
    if request.sched_id != number(machine.scheduler()) {
        return Err(Errno::EINVAL);
    }
    if machine.scheduler() != Kind::Credit2 {
        return Err(Errno::EOPNOTSUPP);
    }
    let (weight, _) = domain.control.share();
    match request.cmd {
        XEN_DOMCTL_SCHEDOP_GETINFO => {
            let (weight, cap) = domain.control.share();
            request.set_credit2(SchedCredit2 { weight: weight.get(), cap });
            op.u.set(&request);
            Ok(Answer::Tell)
        }
        XEN_DOMCTL_SCHEDOP_PUTINFO => {
            let SchedCredit2 { weight: wanted, cap } = request.credit2();
            // No weight is the one that it has.
            let weight = Weight::new(wanted.into()).unwrap_or(weight);
            domain.control.set_share(weight, cap);
            machine.share_changed(domain);
            Ok(Answer::Done)
        }
        XEN_DOMCTL_SCHEDOP_PUTVCPUINFO | XEN_DOMCTL_SCHEDOP_GETVCPUINFO => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EINVAL),
    }
}
