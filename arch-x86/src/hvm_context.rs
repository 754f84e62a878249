//! A domain's HVM context, taken out of its vCPUs and put into them.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::x86_64::__cpuid_count;

use hypervisor::domain::Domain;
use hypervisor::machine::Machine;
use hypervisor::vcpu::{Vcpu, hold};
use mm::{try_box, try_vec};
use xen_abi::errno::Errno;
use xen_abi::hvm_save::{HVM_FILE_MAGIC, HVM_FILE_VERSION, Header};

use crate::context::Context;
use crate::machine::{X86, clock};
use crate::state::{CpuState, Limits, Restored, Saved};
use crate::vdev::vlapic::Deadline;
use crate::{fpu, percpu, run, state, time};

/// A vCPU's registers in the hands of whoever looks at them; afterwards they are where a CPU that runs the vCPU finds them.
struct Taken<'a> {
    vcpu: &'a Vcpu<X86>,
    context: Option<Box<Context>>,
}

impl<'a> Taken<'a> {
    /// EBUSY if the vCPU may run.
    fn take(vcpu: &'a Vcpu<X86>) -> Result<Taken<'a>, Errno> {
        if vcpu.holds() & (hold::PAUSED | hold::OFFLINE) == 0 {
            return Err(Errno::EBUSY);
        }
        Ok(Taken { vcpu, context: Some(run::registers(vcpu)) })
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.vcpu.machine.context.lock() = self.context.take();
    }
}

/// The registers as they are. Where the engine has them it is loaded here for that, while the caller's is not.
fn registers(context: &mut Context, caller: &mut Context) -> Result<CpuState, Errno> {
    if context.waiting.is_some() {
        return Ok(context.state());
    }
    let host = percpu::this().host().ok_or(Errno::ENODEV)?;
    caller.engine.unload();
    let loaded = context.engine.load(host).is_ok();
    let state = if loaded { Ok(context.state()) } else { Err(Errno::EIO) };
    if loaded {
        context.engine.unload();
    }
    caller.engine.load(host).map_err(|_| Errno::EIO)?;
    state
}

fn all<'a>(domain: &'a Domain<X86>, caller: &mut Context) -> Result<Vec<(Taken<'a>, Box<CpuState>)>, Errno> {
    let mut all = try_vec(domain.vcpus.len())?;
    for vcpu in &domain.vcpus {
        let mut taken = Taken::take(vcpu)?;
        let context = taken.context.as_mut().ok_or(Errno::EIO)?;
        let state = registers(context, caller)?;
        all.push((taken, try_box(state)?));
    }
    Ok(all)
}

/// The whole context (XEN_DOMCTL_gethvmcontext). The domain is another than the caller's, whose registers are `caller`, and its vCPUs are paused:
/// EBUSY otherwise. ENOMEM.
pub fn save(machine: &X86, domain: &Domain<X86>, caller: &mut Context) -> Result<Vec<u8>, Errno> {
    let policy = domain.machine.policy.now();
    let now = machine.now();
    let mut vcpus = try_vec(domain.vcpus.len())?;
    for (taken, cpu) in all(domain, caller)? {
        let context = taken.context.as_ref().ok_or(Errno::EIO)?;
        vcpus.push(Saved {
            is_up: taken.vcpu.is_up(),
            cpu: *cpu,
            fpu: context.fpu.image()?,
            xcr0: context.xcr0,
            msrs: context.msrs,
            lapic: context.vlapic.save(now, &taken.vcpu.machine.inbox),
        });
    }
    let header = Header {
        magic: HVM_FILE_MAGIC,
        version: HVM_FILE_VERSION,
        changeset: 0,
        cpuid: __cpuid_count(1, 0).eax,
        gtsc_khz: machine.tsc_khz(),
    };
    state::save(&header, &vcpus, &policy, time::rdtsc())
}

/// Puts a context into the domain (XEN_DOMCTL_sethvmcontext); see [`state::restore`] for what is refused, and nothing is changed then. A vCPU
/// whose registers it has is up from then on. The domain is another than the caller's, and its vCPUs are paused: EBUSY otherwise.
pub fn restore(machine: &X86, domain: &Domain<X86>, caller: &mut Context, stream: &[u8]) -> Result<(), Errno> {
    let policy = domain.machine.policy.now();
    let limits = Limits { policy: &policy, vcpus: domain.vcpus.len(), mxcsr_mask: fpu::mxcsr_mask() };
    let restored = state::restore(stream, &limits)?;
    // From here on nothing fails but the machine.
    for ((mut taken, present), restored) in all(domain, caller)?.into_iter().zip(restored) {
        let context = taken.context.as_mut().ok_or(Errno::EIO)?;
        put(machine, taken.vcpu, context, present, &restored)?;
        let vcpu = taken.vcpu;
        drop(taken);
        if restored.lapic.is_some() {
            machine.timer_changed(domain, vcpu);
        }
        if restored.cpu.is_some() && vcpu.clear_hold(hold::OFFLINE) {
            machine.wake(domain, vcpu);
        }
    }
    Ok(())
}

fn put(
    machine: &X86,
    vcpu: &Vcpu<X86>,
    context: &mut Context,
    mut state: Box<CpuState>,
    restored: &Restored,
) -> Result<(), Errno> {
    let inbox = &vcpu.machine.inbox;
    if restored.cpu.is_some() || restored.pat.is_some() {
        let pat = restored.pat.unwrap_or(state.pat);
        *state = CpuState { pat, ..restored.cpu.unwrap_or(*state) };
        context.waiting = Some(state);
    }
    if restored.cpu.is_some() {
        inbox.start();
        context.triple_fault = false;
    }
    if let Some(fpu) = &restored.fpu {
        context.fpu.set_image(fpu);
    }
    if let Some(xcr0) = restored.xcr0 {
        context.xcr0 = xcr0;
    }
    if let Some(ranges) = restored.ranges {
        context.msrs.mtrr = ranges;
    }
    if let Some(fast_strings) = restored.fast_strings {
        context.msrs.fast_strings = fast_strings;
    }
    if let Some((record, page)) = &restored.lapic {
        context.vlapic.restore(record, page, machine.now(), inbox).map_err(|_| Errno::EINVAL)?;
        vcpu.machine.set_lapic_deadline(context.vlapic.deadline().map(|deadline| match deadline {
            Deadline::At(at) => at,
            Deadline::GuestTsc(tsc) => clock().nanos_after(tsc),
        }));
    }
    Ok(())
}
