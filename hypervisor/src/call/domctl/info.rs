//! What is told of domains and vCPUs.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use xen_abi::domctl::*;
use xen_abi::errno::Errno;
use xen_abi::types::VcpuId;

use super::Answer;
use crate::domain::Domain;
use crate::hypercall::Caller;
use crate::machine::Machine;
use crate::runstate::State;
use crate::system::System;
use crate::vcpu::{Vcpu, hold};

/// What XEN_DOMCTL_getdomaininfo tells.
pub fn describe<M: Machine>(system: &System<M>, domain: &Arc<Domain<M>>) -> GetDomainInfo {
    let (control, now) = (&domain.control, system.machine.now());
    // Until one of them is found that wants to run.
    let mut flags = XEN_DOMINF_BLOCKED;
    let mut set = |flag: u32, is: bool| {
        if is {
            flags |= flag;
        } else {
            flags &= !flag;
        }
    };
    let (mut online, mut ran) = (0u32, 0u64);
    for vcpu in &domain.vcpus {
        let holds = vcpu.holds();
        let (state, time) = running_time(vcpu, now);
        ran = ran.saturating_add(time);
        if holds & hold::OFFLINE == 0 {
            online = online.saturating_add(1);
            if holds & hold::BLOCKED == 0 {
                set(XEN_DOMINF_BLOCKED, false);
            }
            if state == State::Running {
                set(XEN_DOMINF_RUNNING, true);
            }
        }
    }
    for (flag, is) in [
        (XEN_DOMINF_DYING, control.is_dying()),
        (XEN_DOMINF_PAUSED, control.is_paused()),
        (XEN_DOMINF_HVM_GUEST, true),
        (XEN_DOMINF_HAP, true),
        (XEN_DOMINF_XS_DOMAIN, control.made.flags & XEN_DOMCTL_CDF_XS_DOMAIN != 0),
    ] {
        if is {
            set(flag, true);
        }
    }
    if let Some(reason) = domain.shutdown_reason() {
        set(XEN_DOMINF_SHUTDOWN, true);
        set((reason & XEN_DOMINF_SHUTDOWNMASK).wrapping_shl(XEN_DOMINF_SHUTDOWNSHIFT), true);
    }
    let known = control.is_admitted();
    GetDomainInfo {
        domain: domain.id,
        flags,
        tot_pages: domain.pages.load(Ordering::Relaxed),
        // Xen counts pages by 32 bits, and without a limit says so.
        max_pages: domain.max_pages.load(Ordering::Relaxed).min(u32::MAX.into()),
        outstanding_pages: control.claim.load(Ordering::Relaxed),
        shared_info_frame: domain.shared_info_gfn().map_or(u64::MAX, |gfn| gfn.0),
        cpu_time: ran,
        nr_online_vcpus: if known { online } else { 0 },
        max_vcpu_id: if known { (domain.vcpus.len() as u32).wrapping_sub(1) } else { XEN_INVALID_MAX_VCPU_ID },
        // No labels are kept, as in Xen without XSM.
        ssidref: 0,
        handle: control.handle(),
        cpupool: 0,
        gpaddr_bits: system.machine.hardware().address_bits,
        arch_config: control.made.arch,
        ..GetDomainInfo::default()
    }
}

/// What a vCPU does, and for how long it has run (nanoseconds).
fn running_time<M: Machine>(vcpu: &Vcpu<M>, now: sched::Nanos) -> (State, u64) {
    let runstate = vcpu.runstate.lock();
    let [running, ..] = runstate.times(now);
    (runstate.state(), running)
}

/// XEN_DOMCTL_getvcpuinfo. EINVAL for a number beyond what the domain can have, ESRCH before its vCPUs are made.
pub(super) fn vcpu<M: Machine>(caller: &Caller<'_, M>, domain: &Domain<M>, op: &mut Domctl) -> Result<Answer, Errno> {
    let asked: GetVcpuInfo = op.u.get();
    let vcpu = domain.vcpu(VcpuId(asked.vcpu)).ok_or(Errno::EINVAL)?;
    if !domain.control.is_admitted() {
        return Err(Errno::ESRCH);
    }
    let machine = &caller.system.machine;
    let (state, cpu_time) = running_time(vcpu, machine.now());
    let holds = vcpu.holds();
    op.u.set(&GetVcpuInfo {
        vcpu: asked.vcpu,
        online: (holds & hold::OFFLINE == 0).into(),
        blocked: (holds & hold::BLOCKED != 0).into(),
        running: (state == State::Running).into(),
        cpu_time,
        cpu: machine.cpu_of(vcpu).0,
        ..GetVcpuInfo::default()
    });
    Ok(Answer::Tell)
}
