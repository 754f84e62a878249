//! How domains come, are held, and go.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use xen_abi::domctl::*;
use xen_abi::errno::Errno;
use xen_abi::types::{DomainId, VcpuId};
use xen_abi::x86::{
    XEN_CPUID_TSC_MODE_DEFAULT, XEN_CPUID_TSC_MODE_NEVER_EMULATE, XEN_X86_EMU_ALL, XEN_X86_EMU_LAPIC,
    XEN_X86_MSR_RELAXED,
};

use super::{Answer, another};
use crate::domain::{Domain, Privilege, hold_all, release_all};
use crate::hypercall::Caller;
use crate::machine::Machine;
use crate::system::System;
use crate::teardown;
use crate::vcpu::hold;
use crate::wallclock;

/// The most vCPUs that a domain can have (HVM_MAX_VCPUS).
const MOST_VCPUS: u32 = 128;
/// Pages for page tables that a domain may have before the toolstack says how many.
const FIRST_POOL: u64 = 256;

/// XEN_DOMCTL_createdomain. The domain is paused, and its vCPUs are made by XEN_DOMCTL_max_vcpus. EEXIST if the number is taken, ENOMEM if there
/// is none left or too little memory; otherwise as [`check`].
pub(super) fn create<M: Machine>(caller: &Caller<'_, M>, op: &mut Domctl) -> Result<Answer, Errno> {
    let config: CreateDomain = op.u.get();
    let system = caller.system;
    check(&config)?;
    let id = match op.domain {
        // Any will do.
        id if id == DomainId::DOM0 || !id.is_ordinary() => system.free_id().ok_or(Errno::ENOMEM)?,
        id if system.domain(id).is_some() => return Err(Errno::EEXIST),
        id => id,
    };
    let domain = system.machine.create(system.memory, id, Privilege::Guest, &config)?;
    let control = &domain.control;
    control.set_handle(config.handle);
    // None of them runs, so none has to come out.
    control.pause(|| {
        for vcpu in &domain.vcpus {
            vcpu.set_hold(hold::PAUSED);
        }
    })?;
    set_pool(&domain, FIRST_POOL);
    wallclock::update_wallclock(system, &domain);
    system.add(mm::try_arc(domain)?)?;
    op.domain = id;
    Ok(Answer::Tell)
}

/// Limits a domain's page tables to so many pages.
pub(super) fn set_pool<M: Machine>(domain: &Domain<M>, pages: u64) {
    domain.control.pool.store(pages.saturating_mul(mm::PAGE_SIZE as u64), Ordering::Relaxed);
    domain.p2m.set_table_limit(pages);
}

/// EINVAL for what makes no sense or is not to be had here (PV, shadow paging, an IOMMU, nested virtualisation, cpupools), EOPNOTSUPP for
/// devices that are not emulated.
fn check(config: &CreateDomain) -> Result<(), Errno> {
    const KNOWN: u32 = XEN_DOMCTL_CDF_HVM
        | XEN_DOMCTL_CDF_HAP
        | XEN_DOMCTL_CDF_S3_INTEGRITY
        | XEN_DOMCTL_CDF_OOS_OFF
        | XEN_DOMCTL_CDF_XS_DOMAIN;
    const NEEDED: u32 = XEN_DOMCTL_CDF_HVM | XEN_DOMCTL_CDF_HAP;
    let arch = &config.arch;
    let unknown = config.flags & !KNOWN != 0
        || config.flags & NEEDED != NEEDED
        || config.iommu_opts & !XEN_DOMCTL_IOMMU_NO_SHAREPT != 0
        || config.grant_opts & !XEN_DOMCTL_GRANT_VERSION_MASK != 0
        || !matches!(config.grant_opts & XEN_DOMCTL_GRANT_VERSION_MASK, 1 | 2)
        || config.altp2m_opts != 0
        || config.vmtrace_size != 0
        || arch.misc_flags & !XEN_X86_MSR_RELAXED != 0
        || arch.emulation_flags & !XEN_X86_EMU_ALL != 0;
    if unknown || !(1..=MOST_VCPUS).contains(&config.max_vcpus) {
        return Err(Errno::EINVAL);
    }
    if config.cpupool_id != 0 {
        return Err(Errno::ENOENT);
    }
    if arch.emulation_flags != XEN_X86_EMU_LAPIC {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(())
}

/// XEN_DOMCTL_max_vcpus: the scheduler takes the vCPUs in, once. EINVAL for another number than at creation, or if the domain is dying.
pub(super) fn max_vcpus<M: Machine>(
    caller: &Caller<'_, M>,
    domain: &Arc<Domain<M>>,
    wanted: MaxVcpus,
) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    if wanted.max as usize != domain.vcpus.len() {
        return Err(Errno::EINVAL);
    }
    let control = &domain.control;
    // Another CPU is at this, or at the domain's end, which waits for it.
    let Some(ending) = control.take_ending() else { return Ok(Answer::Again) };
    let admitted = match (control.is_dying(), control.is_admitted()) {
        (true, _) => Err(Errno::EINVAL),
        (false, true) => Ok(()),
        (false, false) => admit(caller.system, domain),
    };
    control.give_ending(ending);
    admitted.map(|()| Answer::Done)
}

fn admit<M: Machine>(system: &System<M>, domain: &Arc<Domain<M>>) -> Result<(), Errno> {
    for vcpu in &domain.vcpus {
        wallclock::update_vcpu_time(system, domain, vcpu);
    }
    system.machine.admit(domain)?;
    domain.control.admit();
    Ok(())
}

/// XEN_DOMCTL_destroydomain. EINVAL for the caller's own.
pub(super) fn destroy<M: Machine>(caller: &Caller<'_, M>, domain: &Arc<Domain<M>>) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    if domain.is_control() {
        return Err(Errno::EINVAL);
    }
    Ok(if teardown::destroy(caller.system, domain) { Answer::Done } else { Answer::Again })
}

/// XEN_DOMCTL_pausedomain. EINVAL for the caller's own, EUSERS if it is paused too often.
pub(super) fn pause<M: Machine>(caller: &Caller<'_, M>, domain: &Arc<Domain<M>>) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    domain.control.pause(|| hold_all(caller.system, domain, hold::PAUSED))?;
    Ok(Answer::Done)
}

/// XEN_DOMCTL_unpausedomain. EINVAL if it is not paused, or has no vCPUs yet.
pub(super) fn unpause<M: Machine>(caller: &Caller<'_, M>, domain: &Arc<Domain<M>>) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    if !domain.control.is_admitted() {
        return Err(Errno::EINVAL);
    }
    domain.control.finish();
    domain.control.unpause(|| release_all(caller.system, domain, hold::PAUSED))?;
    Ok(Answer::Done)
}

/// XEN_DOMCTL_resumedomain: a domain that has shut down goes on as if it had not.
pub(super) fn resume<M: Machine>(caller: &Caller<'_, M>, domain: &Arc<Domain<M>>) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    if domain.control.is_dying() {
        return Err(Errno::EINVAL);
    }
    if domain.end_shutdown() {
        release_all(caller.system, domain, hold::STOPPED);
    }
    Ok(Answer::Done)
}

/// XEN_DOMCTL_sendtrigger: an NMI. EINVAL for a vCPU that is not there, EOPNOTSUPP for buttons of machines that a PVH domain is not, and ENOSYS for
/// what nobody knows.
pub(super) fn trigger<M: Machine>(
    caller: &Caller<'_, M>,
    domain: &Domain<M>,
    request: SendTrigger,
) -> Result<Answer, Errno> {
    let vcpu = domain.vcpu(VcpuId(request.vcpu)).ok_or(Errno::EINVAL)?;
    match request.trigger {
        XEN_DOMCTL_SENDTRIGGER_NMI => {
            caller.system.machine.send_nmi(domain, vcpu);
            Ok(Answer::Done)
        }
        XEN_DOMCTL_SENDTRIGGER_POWER | XEN_DOMCTL_SENDTRIGGER_SLEEP => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::ENOSYS),
    }
}

pub(super) fn set_time_offset<M: Machine>(
    caller: &Caller<'_, M>,
    domain: &Domain<M>,
    request: SetTimeOffset,
) -> Result<Answer, Errno> {
    domain.control.time_offset.store(request.time_offset_seconds, Ordering::Relaxed);
    wallclock::update_wallclock(caller.system, domain);
    Ok(Answer::Done)
}

/// XEN_DOMCTL_settscinfo: the TSC is the machine's own. EOPNOTSUPP for one that is emulated.
pub(super) fn set_tsc_info<M: Machine>(
    caller: &Caller<'_, M>,
    domain: &Domain<M>,
    info: TscInfo,
) -> Result<Answer, Errno> {
    match info.tsc_mode {
        XEN_CPUID_TSC_MODE_DEFAULT | XEN_CPUID_TSC_MODE_NEVER_EMULATE => {
            caller.system.machine.set_tsc_mode(domain, info.tsc_mode)?;
            Ok(Answer::Done)
        }
        _ => Err(Errno::EOPNOTSUPP),
    }
}

pub(super) fn tsc_info<M: Machine>(
    caller: &Caller<'_, M>,
    domain: &Domain<M>,
    op: &mut Domctl,
) -> Result<Answer, Errno> {
    let machine = &caller.system.machine;
    op.u.set(&TscInfo {
        tsc_mode: machine.tsc_mode(domain),
        gtsc_khz: machine.tsc_khz(),
        elapsed_nsec: machine.now().0,
        ..TscInfo::default()
    });
    Ok(Answer::Tell)
}
