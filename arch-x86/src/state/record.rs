//! A vCPU's registers as the record `CPU` of an HVM context.

use xen_abi::hvm_save::{Cpu, XEN_X86_FPU_INITIALISED};
use zerocopy::FromZeros;

use super::check::Invalid;
use super::{CpuState, LEGACY, TableRegister};
use crate::event::Event;
use crate::regs::GuestRegs;
use crate::segment::{Segment, SegmentAccess, SegmentRegister};

const EVENT_VALID: u32 = 1 << 31;
const EVENT_HAS_ERROR: u32 = 1 << 11;
/// Vector, kind, has an error code, valid.
const EVENT_DEFINED: u32 = 0x8000_0fff;

/// Attributes as descriptors have them, the limit's bits left out: type, S, DPL, P, AVL, L, D/B, G.
fn packed(access: SegmentAccess) -> u32 {
    let present = if access.is_unusable() { 0 } else { access.0 & 0x80 };
    access.0 & 0x7f | present | access.0 >> 4 & 0xf00
}

/// The form of the VMCS, with AVL to G in bits 15:12, is what early versions of Xen wrote.
fn unpacked(bits: u32) -> SegmentAccess {
    const PRESENT: u32 = 1 << 7;
    const UNUSABLE: u32 = SegmentAccess::UNUSABLE.0;
    let access = if bits & 0xf000 != 0 { bits & 0xf0ff } else { bits & 0xff | (bits & 0xf00) << 4 };
    let beyond = bits & !0xffff;
    if access & PRESENT == 0 || beyond & UNUSABLE != 0 {
        return SegmentAccess(access & !PRESENT | beyond | UNUSABLE);
    }
    SegmentAccess(access | beyond)
}

macro_rules! segments {
    ($($register:ident $selector:ident $limit:ident $base:ident $access:ident;)*) => {
        fn put_segments(record: &mut Cpu, state: &CpuState) {
            $(
                let segment = state.segment(SegmentRegister::$register);
                record.$selector = segment.selector.into();
                record.$limit = segment.limit;
                record.$base = segment.base;
                record.$access = packed(segment.access);
            )*
        }

        fn take_segments(record: &Cpu, state: &mut CpuState) -> Result<(), Invalid> {
            $(
                *state.segment_mut(SegmentRegister::$register) = Segment {
                    selector: u16::try_from(record.$selector).map_err(|_| Invalid)?,
                    base: record.$base,
                    limit: record.$limit,
                    access: unpacked(record.$access),
                };
            )*
            Ok(())
        }
    };
}

segments! {
    Es es_sel es_limit es_base es_arbytes;
    Cs cs_sel cs_limit cs_base cs_arbytes;
    Ss ss_sel ss_limit ss_base ss_arbytes;
    Ds ds_sel ds_limit ds_base ds_arbytes;
    Fs fs_sel fs_limit fs_base fs_arbytes;
    Gs gs_sel gs_limit gs_base gs_arbytes;
    Ldtr ldtr_sel ldtr_limit ldtr_base ldtr_arbytes;
    Tr tr_sel tr_limit tr_base tr_arbytes;
}

fn put_event(event: Option<Event>) -> (u32, u32) {
    match event {
        // A software interrupt's instruction is executed again.
        None | Some(Event::Software { .. }) => (0, 0),
        Some(Event::Interrupt(vector)) => (EVENT_VALID | u32::from(vector), 0),
        Some(Event::Nmi) => (EVENT_VALID | 2 << 8 | 2, 0),
        Some(Event::Exception { vector, error: None }) => (EVENT_VALID | 3 << 8 | u32::from(vector), 0),
        Some(Event::Exception { vector, error: Some(error) }) => {
            (EVENT_VALID | EVENT_HAS_ERROR | 3 << 8 | u32::from(vector), error)
        }
    }
}

fn take_event(event: u32, error: u32) -> Result<Option<Event>, Invalid> {
    let vector = event as u8;
    if event & EVENT_VALID == 0 {
        return Ok(None);
    }
    if event & !EVENT_DEFINED != 0 {
        return Err(Invalid);
    }
    let error = (event & EVENT_HAS_ERROR != 0).then_some(error);
    match (event >> 8 & 7, error) {
        (0, None) => Ok(Some(Event::Interrupt(vector))),
        (2, None) if vector == 2 => Ok(Some(Event::Nmi)),
        (3, error) => Ok(Some(Event::Exception { vector, error })),
        _ => Err(Invalid),
    }
}

/// The record; `fpu` is the legacy area of the floating-point state, if it is not the initial one. `tsc` is the guest's, now.
pub fn to_record(state: &CpuState, fpu: Option<&[u8; LEGACY]>, tsc: u64) -> Cpu {
    let mut record = Cpu::new_zeroed();
    if let Some(fpu) = fpu {
        record.fpu_regs = *fpu;
        record.flags = XEN_X86_FPU_INITIALISED;
    }
    let GuestRegs { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 } = state.general;
    (record.rax, record.rcx, record.rdx, record.rbx) = (rax, rcx, rdx, rbx);
    (record.rsp, record.rbp, record.rsi, record.rdi) = (rsp, rbp, rsi, rdi);
    (record.r8, record.r9, record.r10, record.r11) = (r8, r9, r10, r11);
    (record.r12, record.r13, record.r14, record.r15) = (r12, r13, r14, r15);
    (record.rip, record.rflags) = (state.rip, state.rflags);
    (record.cr0, record.cr2, record.cr3, record.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4);
    [record.dr0, record.dr1, record.dr2, record.dr3] = state.breakpoints;
    (record.dr6, record.dr7) = (state.dr6, state.dr7);
    put_segments(&mut record, state);
    (record.gdtr_base, record.gdtr_limit) = (state.gdtr.base, state.gdtr.limit.into());
    (record.idtr_base, record.idtr_limit) = (state.idtr.base, state.idtr.limit.into());
    (record.sysenter_cs, record.sysenter_esp, record.sysenter_eip) =
        (state.sysenter_cs, state.sysenter_esp, state.sysenter_eip);
    record.shadow_gs = state.kernel_gs_base;
    (record.msr_lstar, record.msr_star, record.msr_cstar) = (state.lstar, state.star, state.cstar);
    (record.msr_syscall_mask, record.msr_efer, record.msr_tsc_aux) = (state.syscall_mask, state.efer, state.tsc_aux);
    record.tsc = tsc;
    (record.pending_event, record.error_code) = put_event(state.event);
    record
}

/// The state in a record, [settled](CpuState::settle) and not yet [checked](CpuState::check), and the legacy area of the floating-point state if
/// there is one. The PAT is in another record. The TSC is left alone: it is the machine's.
pub fn from_record(record: &Cpu, pat: u64) -> Result<(CpuState, Option<&[u8; LEGACY]>), Invalid> {
    let table = |base, limit| u16::try_from(limit).map(|limit| TableRegister { base, limit }).map_err(|_| Invalid);
    if record.flags & !XEN_X86_FPU_INITIALISED != 0 || record.pad0 != 0 {
        return Err(Invalid);
    }
    // What reads as one or zero whatever was written is not worth a refusal, but a high half is.
    if record.dr6 >> 32 != 0 || record.dr7 >> 32 != 0 {
        return Err(Invalid);
    }
    let mut state = CpuState {
        general: GuestRegs {
            rax: record.rax,
            rcx: record.rcx,
            rdx: record.rdx,
            rbx: record.rbx,
            rsp: record.rsp,
            rbp: record.rbp,
            rsi: record.rsi,
            rdi: record.rdi,
            r8: record.r8,
            r9: record.r9,
            r10: record.r10,
            r11: record.r11,
            r12: record.r12,
            r13: record.r13,
            r14: record.r14,
            r15: record.r15,
        },
        rip: record.rip,
        rflags: record.rflags,
        cr0: record.cr0,
        cr2: record.cr2,
        cr3: record.cr3,
        cr4: record.cr4,
        efer: record.msr_efer,
        breakpoints: [record.dr0, record.dr1, record.dr2, record.dr3],
        dr6: record.dr6,
        dr7: record.dr7,
        segments: [Segment::default(); 8],
        gdtr: table(record.gdtr_base, record.gdtr_limit)?,
        idtr: table(record.idtr_base, record.idtr_limit)?,
        sysenter_cs: record.sysenter_cs,
        sysenter_esp: record.sysenter_esp,
        sysenter_eip: record.sysenter_eip,
        star: record.msr_star,
        lstar: record.msr_lstar,
        cstar: record.msr_cstar,
        syscall_mask: record.msr_syscall_mask,
        kernel_gs_base: record.shadow_gs,
        tsc_aux: record.msr_tsc_aux,
        pat,
        event: take_event(record.pending_event, record.error_code)?,
    };
    take_segments(record, &mut state)?;
    state.settle();
    let fpu = (record.flags & XEN_X86_FPU_INITIALISED != 0).then_some(&record.fpu_regs);
    Ok((state, fpu))
}
