//! The architectural state of a vCPU as a value, in no vendor's terms: what it starts with, what is saved of it and restored.
//!
//! An engine loads it and gives it back. Whether a state is one that a CPU can be in is decided here ([`check`]), so that what comes from
//! outside is refused before anything of it is loaded.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unreachable,
        clippy::todo
    )
)]

mod check;
mod fpu;
mod record;
mod stream;

pub use check::Invalid;
pub use fpu::{FpuImage, LEGACY};
pub use stream::{Limits, Restored, Saved, record_of, restore, save};

use crate::cpu::registers::PAT_AT_RESET;
use crate::event::Event;
use crate::regs::GuestRegs;
use crate::segment::{Segment, SegmentAccess, SegmentRegister};

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    pub base: u64,
    pub limit: u16,
}

/// DR6 and DR7 with nothing in them (SDM Vol. 3, 18.2.3 and 18.2.4).
pub const DR6_AT_RESET: u64 = 0xffff_0ff0;
pub const DR7_AT_RESET: u64 = 0x400;
/// RFLAGS bit 1 is always set.
pub const RFLAGS_FIXED: u64 = 1 << 1;

/// A vCPU's registers, but for those of its local APIC, its floating-point unit and its MTRRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// RSP is among them.
    pub general: GuestRegs,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// DR0 to DR3.
    pub breakpoints: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    /// In the order of [`SegmentRegister::ALL`].
    pub segments: [Segment; 8],
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub syscall_mask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub pat: u64,
    /// On its way into the guest.
    pub event: Option<Event>,
}

impl CpuState {
    /// After a reset, but for where the code is (SDM Vol. 3, table 10-1).
    fn starting(code: Segment, data: Segment, task: Segment) -> CpuState {
        let none = Segment { access: SegmentAccess::UNUSABLE, ..Segment::default() };
        let segments = SegmentRegister::ALL.map(|register| match register {
            SegmentRegister::Cs => code,
            SegmentRegister::Tr => task,
            SegmentRegister::Ldtr => none,
            _ => data,
        });
        let table = TableRegister { base: 0, limit: 0xffff };
        CpuState {
            general: GuestRegs::default(),
            rip: 0,
            rflags: RFLAGS_FIXED,
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            breakpoints: [0; 4],
            dr6: DR6_AT_RESET,
            dr7: DR7_AT_RESET,
            segments,
            gdtr: table,
            idtr: table,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            syscall_mask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            pat: PAT_AT_RESET,
            event: None,
        }
    }

    /// The PVH entry: 32-bit flat protected mode without paging, `ebx` at the start_info (Xen's `docs/misc/pvh`).
    pub fn pvh(entry: u32, start_info: u32) -> CpuState {
        let flat = |access| Segment { selector: 0, base: 0, limit: u32::MAX, access: SegmentAccess(access) };
        let task = Segment { selector: 0, base: 0, limit: 0x67, access: SegmentAccess(0x8b) };
        let mut state = CpuState::starting(flat(0xc09b), flat(0xc093), task);
        state.cr0 = 0x11;
        state.rip = u64::from(entry);
        state.general.rbx = u64::from(start_info);
        state
    }

    /// Real mode at `vector` × 4 KiB, as a SIPI starts a CPU (SDM Vol. 3, 9.1.4).
    pub fn sipi(vector: u8) -> CpuState {
        let real = |access| Segment { selector: 0, base: 0, limit: 0xffff, access: SegmentAccess(access) };
        let page = u16::from(vector);
        let code = Segment { selector: page << 8, base: u64::from(page) << 12, ..real(0x9b) };
        let mut state = CpuState::starting(code, real(0x93), real(0x8b));
        state.cr0 = 0x6000_0010;
        // EDX holds the CPU's signature.
        state.general.rdx = 0x600;
        state
    }

    pub fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments.get(register as usize).copied().unwrap_or_default()
    }

    pub(crate) fn segment_mut(&mut self, register: SegmentRegister) -> &mut Segment {
        let [es, cs, ss, ds, fs, gs, ldtr, tr] = &mut self.segments;
        match register {
            SegmentRegister::Es => es,
            SegmentRegister::Cs => cs,
            SegmentRegister::Ss => ss,
            SegmentRegister::Ds => ds,
            SegmentRegister::Fs => fs,
            SegmentRegister::Gs => gs,
            SegmentRegister::Ldtr => ldtr,
            SegmentRegister::Tr => tr,
        }
    }

    /// PAE paging outside of long mode, whose four top entries the CPU keeps in registers.
    pub fn keeps_pdptes(&self) -> bool {
        use crate::cpu::registers::{cr0, cr4, efer};
        self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && self.efer & efer::LMA == 0
    }
}
