//! The state of a domain's vCPUs and virtual devices (XEN_DOMCTL_gethvmcontext and its like).

use alloc::sync::Arc;
use alloc::vec::Vec;

use xen_abi::domctl::{Domctl, HvmContext, HvmContextPartial, VcpuContext};
use xen_abi::errno::Errno;
use xen_abi::hvm_save::{CPU_CODE, Cpu, Descriptor, XEN_X86_FPU_INITIALISED};
use xen_abi::types::VcpuId;
use xen_abi::x86::{CpuUserRegs, VGCF_I387_VALID, VGCF_IN_KERNEL, VGCF_ONLINE, VcpuGuestContext};
use zerocopy::{FromBytes, FromZeros};

use super::{Answer, another};
use crate::domain::{Domain, hold_all, release_all};
use crate::hypercall::Caller;
use crate::machine::Machine;
use crate::vcpu::hold;

/// The largest state that is taken: as much as 128 vCPUs with all that they can have.
const MOST: u32 = 4 << 20;

/// Does something while a domain stands still.
fn held<M: Machine, R>(
    caller: &mut Caller<'_, M>,
    domain: &Domain<M>,
    act: impl FnOnce(&mut Caller<'_, M>) -> Result<R, Errno>,
) -> Result<R, Errno> {
    if domain.control.is_dying() {
        return Err(Errno::EINVAL);
    }
    domain.control.pause(|| hold_all(caller.system, domain, hold::PAUSED))?;
    let result = act(caller);
    domain.control.unpause(|| release_all(caller.system, domain, hold::PAUSED))?;
    result
}

fn save<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Domain<M>,
    record: Option<(u16, u16)>,
) -> Result<Vec<u8>, Errno> {
    held(caller, domain, |caller| caller.system.machine.save(caller.context, domain, record))
}

/// XEN_DOMCTL_gethvmcontext; without a buffer, how large it is. ENOSPC if there is too little room.
pub(super) fn get<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Arc<Domain<M>>,
    op: &mut Domctl,
) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    let mut request: HvmContext = op.u.get();
    let state = save(caller, domain, None)?;
    if !request.buffer.is_null() {
        if (request.size as usize) < state.len() {
            return Err(Errno::ENOSPC);
        }
        caller.write_bytes(request.buffer.address(), &state)?;
    }
    request.size = state.len() as u32;
    op.u.set(&request);
    Ok(Answer::Tell)
}

/// XEN_DOMCTL_gethvmcontext_partial: one record, without its descriptor; without a buffer, how large it is. ENOENT if there is none, ENOSPC.
pub(super) fn get_one<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Arc<Domain<M>>,
    op: &mut Domctl,
) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    let mut request: HvmContextPartial = op.u.get();
    let kind = u16::try_from(request.r#type).map_err(|_| Errno::EINVAL)?;
    let instance = u16::try_from(request.instance).map_err(|_| Errno::ENOENT)?;
    let state = save(caller, domain, Some((kind, instance)))?;
    let record = state.get(size_of::<Descriptor>()..).ok_or(Errno::ENOENT)?;
    if !request.buffer.is_null() {
        if request.bufsz < record.len() as u64 {
            return Err(Errno::ENOSPC);
        }
        caller.write_bytes(request.buffer.address(), record)?;
    }
    request.bufsz = record.len() as u64;
    op.u.set(&request);
    Ok(Answer::Tell)
}

/// XEN_DOMCTL_sethvmcontext. EINVAL for what is no state that the domain can be in, ENOMEM for far too much.
pub(super) fn set<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Arc<Domain<M>>,
    request: HvmContext,
) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    if request.size > MOST {
        return Err(Errno::ENOMEM);
    }
    let mut state = Vec::new();
    state.try_reserve_exact(request.size as usize).map_err(|_| Errno::ENOMEM)?;
    state.resize(request.size as usize, 0);
    caller.read_bytes(request.buffer.address(), &mut state)?;
    held(caller, domain, |caller| caller.system.machine.restore(caller.context, domain, &state))?;
    Ok(Answer::Done)
}

/// XEN_DOMCTL_getvcpucontext: the same registers in the form of paravirtual guests. EINVAL for a vCPU that there is not, ENODATA for one that has
/// never been started.
pub(super) fn vcpu_context<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Arc<Domain<M>>,
    request: VcpuContext,
) -> Result<Answer, Errno> {
    let domain = another(caller, domain)?;
    let vcpu = domain.vcpu(VcpuId(request.vcpu)).ok_or(Errno::EINVAL)?;
    let instance = u16::try_from(request.vcpu).map_err(|_| Errno::EINVAL)?;
    let record = save(caller, domain, Some((CPU_CODE, instance)))
        .map_err(|errno| if errno == Errno::ENOENT { Errno::ENODATA } else { errno })?;
    let record = record.get(size_of::<Descriptor>()..).ok_or(Errno::ENODATA)?;
    let cpu = Cpu::read_from_bytes(record).map_err(|_| Errno::ENODATA)?;
    let is_online = vcpu.holds() & hold::OFFLINE == 0;
    caller.write(request.ctxt, &guest_context(&cpu, is_online))?;
    Ok(Answer::Done)
}

fn guest_context(cpu: &Cpu, is_online: bool) -> VcpuGuestContext {
    // The privilege level is in the stack segment's attributes.
    let in_kernel = cpu.ss_arbytes.wrapping_shr(5) & 3 == 0;
    let mut flags = 0;
    for (flag, is) in [
        (VGCF_I387_VALID, cpu.flags & XEN_X86_FPU_INITIALISED != 0),
        (VGCF_IN_KERNEL, in_kernel),
        (VGCF_ONLINE, is_online),
    ] {
        if is {
            flags |= flag;
        }
    }
    let (gs_base_kernel, gs_base_user) =
        if in_kernel { (cpu.gs_base, cpu.shadow_gs) } else { (cpu.shadow_gs, cpu.gs_base) };
    VcpuGuestContext {
        fpu_ctxt: cpu.fpu_regs,
        flags,
        user_regs: CpuUserRegs {
            r15: cpu.r15,
            r14: cpu.r14,
            r13: cpu.r13,
            r12: cpu.r12,
            rbp: cpu.rbp,
            rbx: cpu.rbx,
            r11: cpu.r11,
            r10: cpu.r10,
            r9: cpu.r9,
            r8: cpu.r8,
            rax: cpu.rax,
            rcx: cpu.rcx,
            rdx: cpu.rdx,
            rsi: cpu.rsi,
            rdi: cpu.rdi,
            rip: cpu.rip,
            rflags: cpu.rflags,
            rsp: cpu.rsp,
            cs: cpu.cs_sel as u16,
            ss: cpu.ss_sel as u16,
            es: cpu.es_sel as u16,
            ds: cpu.ds_sel as u16,
            fs: cpu.fs_sel as u16,
            gs: cpu.gs_sel as u16,
            ..CpuUserRegs::default()
        },
        ctrlreg: [cpu.cr0, 0, cpu.cr2, cpu.cr3, cpu.cr4, 0, 0, 0],
        debugreg: [cpu.dr0, cpu.dr1, cpu.dr2, cpu.dr3, 0, 0, cpu.dr6, cpu.dr7],
        fs_base: cpu.fs_base,
        gs_base_kernel,
        gs_base_user,
        ..VcpuGuestContext::new_zeroed()
    }
}
