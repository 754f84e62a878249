//! The virtual machine control block (APM Vol. 2, appendix B). A CPU may keep parts of it from one entry to the next: its clean bits say which,
//! and the setters here are what keeps them. So nothing else writes to it.

use core::mem::{offset_of, size_of};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use mm::addr::HostPhys;
use mm::{Clean, Frames, Memory};

use crate::segment::{Segment, SegmentAccess, SegmentRegister};
use crate::state::TableRegister;

/// Clean bits (15.15.3): which parts of the VMCB are as the CPU saw them last.
pub mod clean {
    pub const INTERCEPTS: u32 = 1 << 0;
    pub const PERMISSION_MAPS: u32 = 1 << 1;
    pub const ASID: u32 = 1 << 2;
    pub const VIRTUAL_INTERRUPT: u32 = 1 << 3;
    pub const NESTED_PAGING: u32 = 1 << 4;
    pub const CONTROL_REGISTERS: u32 = 1 << 5;
    pub const DEBUG_REGISTERS: u32 = 1 << 6;
    pub const DESCRIPTOR_TABLES: u32 = 1 << 7;
    pub const SEGMENTS: u32 = 1 << 8;
    pub const CR2: u32 = 1 << 9;
    /// All that Corten uses; what is not named here is zero for good.
    pub const ALL: u32 = 0x3ff;
    pub const NONE: u32 = 0;
    /// The CPU takes this from memory at every entry.
    pub const NEVER_KEPT: u32 = 0;
}

/// The five words of intercepts at the beginning of the VMCB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Word {
    ControlRegisters = 0,
    Exceptions = 2,
    First = 3,
    Second = 4,
}

/// An intercept: its word, and its bit in there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intercept(pub Word, pub u32);

pub mod intercept {
    use super::{Intercept, Word};

    pub const CR0_READ: Intercept = Intercept(Word::ControlRegisters, 0);
    pub const CR8_READ: Intercept = Intercept(Word::ControlRegisters, 8);
    pub const CR0_WRITE: Intercept = Intercept(Word::ControlRegisters, 16);
    pub const CR4_WRITE: Intercept = Intercept(Word::ControlRegisters, 20);
    pub const CR8_WRITE: Intercept = Intercept(Word::ControlRegisters, 24);
    pub const DEBUG: Intercept = Intercept(Word::Exceptions, 1);
    pub const ALIGNMENT_CHECK: Intercept = Intercept(Word::Exceptions, 17);
    pub const MACHINE_CHECK: Intercept = Intercept(Word::Exceptions, 18);
    pub const INTERRUPT: Intercept = Intercept(Word::First, 0);
    pub const NMI: Intercept = Intercept(Word::First, 1);
    pub const VIRTUAL_INTERRUPT: Intercept = Intercept(Word::First, 4);
    /// Writes of CR0 that change more than TS and MP.
    pub const CR0_SELECTIVE_WRITE: Intercept = Intercept(Word::First, 5);
    pub const RDPMC: Intercept = Intercept(Word::First, 15);
    pub const CPUID: Intercept = Intercept(Word::First, 18);
    pub const IRET: Intercept = Intercept(Word::First, 20);
    pub const INVD: Intercept = Intercept(Word::First, 22);
    pub const HLT: Intercept = Intercept(Word::First, 24);
    pub const INVLPGA: Intercept = Intercept(Word::First, 26);
    pub const IO: Intercept = Intercept(Word::First, 27);
    pub const MSR: Intercept = Intercept(Word::First, 28);
    pub const SHUTDOWN: Intercept = Intercept(Word::First, 31);
    pub const VMRUN: Intercept = Intercept(Word::Second, 0);
    pub const VMMCALL: Intercept = Intercept(Word::Second, 1);
    pub const VMLOAD: Intercept = Intercept(Word::Second, 2);
    pub const VMSAVE: Intercept = Intercept(Word::Second, 3);
    pub const STGI: Intercept = Intercept(Word::Second, 4);
    pub const CLGI: Intercept = Intercept(Word::Second, 5);
    pub const SKINIT: Intercept = Intercept(Word::Second, 6);
    pub const WBINVD: Intercept = Intercept(Word::Second, 9);
    pub const MONITOR: Intercept = Intercept(Word::Second, 10);
    pub const MWAIT: Intercept = Intercept(Word::Second, 11);
    pub const XSETBV: Intercept = Intercept(Word::Second, 13);
    pub const RDPRU: Intercept = Intercept(Word::Second, 14);
}

/// Virtual interrupts (offset 0x60).
mod virtual_interrupt {
    pub const REQUESTED: u64 = 1 << 8;
    pub const PRIORITY: u64 = 15 << 16;
    pub const IGNORE_TPR: u64 = 1 << 20;
    /// RFLAGS.IF and CR8 are the guest's own, and the host's IF is what lets the host's interrupts through.
    pub const MASKING: u64 = 1 << 24;
}

/// Interrupt shadow (offset 0x68).
const SHADOW: u64 = 1;
/// Offset 0x90.
const NESTED_PAGING_ON: u64 = 1;

#[repr(C)]
struct Control {
    intercepts: [u32; 6],
    _reserved_18: [u8; 0x3c - 0x18],
    pause_filter: u32,
    iopm: u64,
    msrpm: u64,
    tsc_offset: u64,
    asid: u32,
    tlb_control: u32,
    virtual_interrupt: u64,
    shadow: u64,
    exit_code: u64,
    exit_info: [u64; 2],
    exit_event: u64,
    nested_paging: u64,
    _reserved_98: [u8; 0xa8 - 0x98],
    injected_event: u64,
    nested_cr3: u64,
    _lbr: u64,
    clean: u32,
    _reserved_c4: u32,
    next_rip: u64,
    _reserved_d0: [u8; 0x400 - 0xd0],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SavedSegment {
    selector: u16,
    /// Type, S, DPL, P, and behind them AVL, L, D/B, G.
    attributes: u16,
    limit: u32,
    base: u64,
}

#[repr(C)]
struct Save {
    es: SavedSegment,
    cs: SavedSegment,
    ss: SavedSegment,
    ds: SavedSegment,
    fs: SavedSegment,
    gs: SavedSegment,
    gdtr: SavedSegment,
    ldtr: SavedSegment,
    idtr: SavedSegment,
    tr: SavedSegment,
    _reserved_a0: [u8; 0xcb - 0xa0],
    cpl: u8,
    _reserved_cc: u32,
    efer: u64,
    _reserved_d8: [u8; 0x148 - 0xd8],
    cr4: u64,
    cr3: u64,
    cr0: u64,
    dr7: u64,
    dr6: u64,
    rflags: u64,
    rip: u64,
    _reserved_180: [u8; 0x1d8 - 0x180],
    rsp: u64,
    _reserved_1e0: [u8; 0x1f8 - 0x1e0],
    rax: u64,
    star: u64,
    lstar: u64,
    cstar: u64,
    syscall_mask: u64,
    kernel_gs_base: u64,
    sysenter_cs: u64,
    sysenter_esp: u64,
    sysenter_eip: u64,
    cr2: u64,
    _reserved_248: [u8; 0x268 - 0x248],
    pat: u64,
    _reserved_270: [u8; 0xc00 - 0x270],
}

/// A VMCB as it lies in its frame.
#[repr(C, align(4096))]
pub struct Vmcb {
    control: Control,
    save: Save,
}

const _: () = {
    assert!(size_of::<Vmcb>() == 4096 && size_of::<Control>() == 0x400 && size_of::<SavedSegment>() == 16);
    assert!(offset_of!(Control, pause_filter) == 0x3c && offset_of!(Control, iopm) == 0x40);
    assert!(offset_of!(Control, asid) == 0x58 && offset_of!(Control, virtual_interrupt) == 0x60);
    assert!(offset_of!(Control, exit_code) == 0x70 && offset_of!(Control, exit_event) == 0x88);
    assert!(offset_of!(Control, nested_paging) == 0x90 && offset_of!(Control, injected_event) == 0xa8);
    assert!(offset_of!(Control, nested_cr3) == 0xb0 && offset_of!(Control, clean) == 0xc0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Save, tr) == 0x90 && offset_of!(Save, cpl) == 0xcb && offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, cr4) == 0x148 && offset_of!(Save, rip) == 0x178 && offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8 && offset_of!(Save, sysenter_cs) == 0x228 && offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, pat) == 0x268);
};

/// What the exit and the next entry are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TlbControl {
    Keep = 0,
    /// Everything of every ASID.
    FlushAll = 1,
}

macro_rules! registers {
    ($($(#[$attribute:meta])* $name:ident $set:ident $kind:ty, $part:ident.$field:ident, $clean:expr;)*) => {
        $(
            $(#[$attribute])*
            #[inline]
            pub fn $name(&self) -> $kind {
                self.$part.$field
            }

            #[inline]
            pub fn $set(&mut self, value: $kind) {
                self.$part.$field = value;
                self.control.clean &= !$clean;
            }
        )*

        /// Every setter above, for the tests: what it is called, and what it does.
        #[cfg(test)]
        const SETTERS: &'static [(&'static str, fn(&mut Vmcb))] = &[$((stringify!($set), |vmcb| vmcb.$set(!0))),*];
    };
}

impl Vmcb {
    registers! {
        rip set_rip u64, save.rip, clean::NEVER_KEPT;
        rsp set_rsp u64, save.rsp, clean::NEVER_KEPT;
        rax set_rax u64, save.rax, clean::NEVER_KEPT;
        rflags set_rflags u64, save.rflags, clean::NEVER_KEPT;
        cr0 set_cr0 u64, save.cr0, clean::CONTROL_REGISTERS;
        cr3 set_cr3 u64, save.cr3, clean::CONTROL_REGISTERS;
        cr4 set_cr4 u64, save.cr4, clean::CONTROL_REGISTERS;
        efer set_efer u64, save.efer, clean::CONTROL_REGISTERS;
        cr2 set_cr2 u64, save.cr2, clean::CR2;
        dr6 set_dr6 u64, save.dr6, clean::DEBUG_REGISTERS;
        dr7 set_dr7 u64, save.dr7, clean::DEBUG_REGISTERS;
        pat set_pat u64, save.pat, clean::NESTED_PAGING;
        // These are VMLOAD's and VMSAVE's.
        star set_star u64, save.star, clean::NEVER_KEPT;
        lstar set_lstar u64, save.lstar, clean::NEVER_KEPT;
        cstar set_cstar u64, save.cstar, clean::NEVER_KEPT;
        syscall_mask set_syscall_mask u64, save.syscall_mask, clean::NEVER_KEPT;
        kernel_gs_base set_kernel_gs_base u64, save.kernel_gs_base, clean::NEVER_KEPT;
        sysenter_cs set_sysenter_cs u64, save.sysenter_cs, clean::NEVER_KEPT;
        sysenter_esp set_sysenter_esp u64, save.sysenter_esp, clean::NEVER_KEPT;
        sysenter_eip set_sysenter_eip u64, save.sysenter_eip, clean::NEVER_KEPT;
        /// The event to inject at the next entry (15.20).
        injected_event set_injected_event u64, control.injected_event, clean::NEVER_KEPT;
        asid set_asid u32, control.asid, clean::ASID;
    }

    /// Permission maps, nested page tables, and virtual interrupts that leave the host's alone: what stays for the vCPU's life.
    pub fn set_up(&mut self, iopm: HostPhys, msrpm: HostPhys, nested_root: HostPhys) {
        self.control.iopm = iopm.0;
        self.control.msrpm = msrpm.0;
        self.control.nested_paging = NESTED_PAGING_ON;
        self.control.nested_cr3 = nested_root.0;
        self.control.virtual_interrupt = virtual_interrupt::MASKING;
        self.forget();
    }

    /// Nothing of it is in the CPU that is to run it next.
    pub fn forget(&mut self) {
        self.control.clean = clean::NONE;
    }

    /// The CPU has just run it: whatever is not set from now on is clean.
    #[inline]
    pub fn note_run(&mut self) {
        self.control.clean = clean::ALL;
        self.control.tlb_control = TlbControl::Keep as u32;
    }

    pub fn set_tlb_control(&mut self, control: TlbControl) {
        self.control.tlb_control = control as u32;
    }

    #[inline]
    pub fn intercepts(&self, intercept: Intercept) -> bool {
        self.control.intercepts[intercept.0 as usize] & 1 << intercept.1 != 0
    }

    #[inline]
    pub fn set_intercept(&mut self, intercept: Intercept, on: bool) {
        if self.intercepts(intercept) != on {
            self.control.intercepts[intercept.0 as usize] ^= 1 << intercept.1;
            self.control.clean &= !clean::INTERCEPTS;
        }
    }

    /// Has a virtual interrupt wait for the moment when the guest could take it. It never gets there: its intercept comes first.
    #[inline]
    pub fn set_waiting_interrupt(&mut self, waits: bool) {
        use virtual_interrupt::{IGNORE_TPR, MASKING, PRIORITY, REQUESTED};
        let wanted = if waits { MASKING | REQUESTED | PRIORITY | IGNORE_TPR } else { MASKING };
        self.control.virtual_interrupt = wanted;
        self.control.clean &= !clean::VIRTUAL_INTERRUPT;
        self.set_intercept(intercept::VIRTUAL_INTERRUPT, waits);
    }

    /// The instruction after STI or a load of SS.
    #[inline]
    pub fn shadow(&self) -> bool {
        self.control.shadow & SHADOW != 0
    }

    #[inline]
    pub fn set_shadow(&mut self, on: bool) {
        self.control.shadow = if on { self.control.shadow | SHADOW } else { self.control.shadow & !SHADOW };
    }

    #[inline]
    pub fn exit_code(&self) -> u64 {
        self.control.exit_code
    }

    #[inline]
    pub fn exit_info(&self) -> [u64; 2] {
        self.control.exit_info
    }

    /// The event whose delivery the exit interrupted (15.20).
    #[inline]
    pub fn exit_event(&self) -> u64 {
        self.control.exit_event
    }

    /// Where the CPU saves it (15.7.1).
    #[inline]
    pub fn next_rip(&self) -> u64 {
        self.control.next_rip
    }

    #[inline]
    pub fn privilege(&self) -> u8 {
        self.save.cpl
    }

    fn saved(&self, register: SegmentRegister) -> &SavedSegment {
        let save = &self.save;
        match register {
            SegmentRegister::Es => &save.es,
            SegmentRegister::Cs => &save.cs,
            SegmentRegister::Ss => &save.ss,
            SegmentRegister::Ds => &save.ds,
            SegmentRegister::Fs => &save.fs,
            SegmentRegister::Gs => &save.gs,
            SegmentRegister::Ldtr => &save.ldtr,
            SegmentRegister::Tr => &save.tr,
        }
    }

    fn saved_mut(&mut self, register: SegmentRegister) -> &mut SavedSegment {
        let save = &mut self.save;
        match register {
            SegmentRegister::Es => &mut save.es,
            SegmentRegister::Cs => &mut save.cs,
            SegmentRegister::Ss => &mut save.ss,
            SegmentRegister::Ds => &mut save.ds,
            SegmentRegister::Fs => &mut save.fs,
            SegmentRegister::Gs => &mut save.gs,
            SegmentRegister::Ldtr => &mut save.ldtr,
            SegmentRegister::Tr => &mut save.tr,
        }
    }

    #[inline]
    pub fn segment(&self, register: SegmentRegister) -> Segment {
        let saved = self.saved(register);
        Segment { selector: saved.selector, base: saved.base, limit: saved.limit, access: from_saved(saved.attributes) }
    }

    /// The privilege level follows SS (15.5.1).
    pub fn set_segment(&mut self, register: SegmentRegister, value: Segment) {
        *self.saved_mut(register) = SavedSegment {
            selector: value.selector,
            attributes: to_saved(value.access),
            limit: value.limit,
            base: value.base,
        };
        if register == SegmentRegister::Ss {
            self.save.cpl = value.access.privilege();
        }
        self.control.clean &= !clean::SEGMENTS;
    }

    #[inline]
    pub fn code_is_long(&self) -> bool {
        from_saved(self.save.cs.attributes).long()
    }

    /// The base of FS or GS, which VMLOAD and VMSAVE switch.
    pub fn set_base(&mut self, register: SegmentRegister, base: u64) {
        self.saved_mut(register).base = base;
        self.control.clean &= !clean::SEGMENTS;
    }

    pub fn gdtr(&self) -> TableRegister {
        TableRegister { base: self.save.gdtr.base, limit: self.save.gdtr.limit as u16 }
    }

    pub fn idtr(&self) -> TableRegister {
        TableRegister { base: self.save.idtr.base, limit: self.save.idtr.limit as u16 }
    }

    pub fn set_descriptor_tables(&mut self, gdtr: TableRegister, idtr: TableRegister) {
        let saved =
            |TableRegister { base, limit }| SavedSegment { selector: 0, attributes: 0, limit: limit.into(), base };
        self.save.gdtr = saved(gdtr);
        self.save.idtr = saved(idtr);
        self.control.clean &= !clean::DESCRIPTOR_TABLES;
    }

    /// The exit and the event that it interrupted, for a domain that crashes.
    pub fn dump(&self) {
        let c = &self.control;
        log::error!(target: "svm", "exit {:#x} info {:#x} {:#x} event {:#x} next rip {:#x}", c.exit_code, c.exit_info[0], c.exit_info[1], c.exit_event, c.next_rip);
        log::error!(target: "svm", "intercepts {:x?} virtual interrupt {:#x} shadow {} asid {} injected {:#x}", c.intercepts, c.virtual_interrupt, c.shadow, c.asid, c.injected_event);
        log::error!(target: "svm", "cr2 {:#x} efer {:#x} gdt {:#x}+{:#x} idt {:#x}+{:#x}", self.save.cr2, self.save.efer, self.save.gdtr.base, self.save.gdtr.limit, self.save.idtr.base, self.save.idtr.limit);
        log::error!(target: "svm", "nested root {:#x} maps {:#x} {:#x} clean {:#x} dr6 {:#x} dr7 {:#x} cpl {}", c.nested_cr3, c.iopm, c.msrpm, c.clean, self.save.dr6, self.save.dr7, self.save.cpl);
    }
}

/// SVM has no "unusable": a segment that is not present cannot be used.
fn to_saved(access: SegmentAccess) -> u16 {
    if access.is_unusable() {
        return 0;
    }
    (access.0 & 0xff | access.0 >> 4 & 0xf00) as u16
}

#[inline]
fn from_saved(attributes: u16) -> SegmentAccess {
    const PRESENT: u32 = 1 << 7;
    let bits = u32::from(attributes);
    let access = bits & 0xff | (bits & 0xf00) << 4;
    if bits & PRESENT == 0 { SegmentAccess(access | SegmentAccess::UNUSABLE.0) } else { SegmentAccess(access) }
}

/// A VMCB in a frame of its own.
pub struct VmcbFrame {
    frame: Frames<Clean>,
    vmcb: NonNull<Vmcb>,
}

// SAFETY: the frame is this value's alone, and the pointer leads to it from any CPU.
unsafe impl Send for VmcbFrame {}

impl VmcbFrame {
    /// One of zeroes; `None` if there is no memory.
    pub fn new(memory: &'static Memory) -> Option<VmcbFrame> {
        let frame = memory.allocate(0, None).ok()?.scrub();
        let vmcb = memory.window().pointer(frame.mfn().phys(), mm::PAGE_SIZE as u64).ok()?;
        Some(VmcbFrame { frame, vmcb: NonNull::new(vmcb.cast())? })
    }

    #[inline]
    pub fn phys(&self) -> HostPhys {
        self.frame.mfn().phys()
    }

    #[inline]
    pub fn as_ptr(&mut self) -> *mut Vmcb {
        self.vmcb.as_ptr()
    }
}

impl Deref for VmcbFrame {
    type Target = Vmcb;

    #[inline]
    fn deref(&self) -> &Vmcb {
        // SAFETY: the frame is this value's, as large and aligned as a VMCB, and any bits are a valid one. The CPU writes to it only inside
        // of `entry::enter`, which takes the value by a mutable pointer.
        unsafe { self.vmcb.as_ref() }
    }
}

impl DerefMut for VmcbFrame {
    #[inline]
    fn deref_mut(&mut self) -> &mut Vmcb {
        // SAFETY: as above.
        unsafe { self.vmcb.as_mut() }
    }
}

#[cfg(test)]
#[path = "vmcb_tests.rs"]
mod tests;
