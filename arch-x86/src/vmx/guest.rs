//! A vCPU under VMX: its VMCS, how it is set up, entered, and asked about.

use mm::Memory;
use mm::addr::Mfn;

use super::caps::{Caps, EntryControls, Pin, Primary, Secondary};
use super::decode_exit;
use super::entry::{self, Entered};
use super::field::*;
use super::vmcs::{self, Vmcs, VmxError, read, write};
use crate::cpu::registers::{cr0, cr4, efer, rflags};
use crate::engine::{HostState, Resources};
use crate::event::{Event, Pending, SoftwareKind, exception};
use crate::exit::Exit;
use crate::msr::{rdmsr, wrmsr};
use crate::policy::msr::DeviceMsr;
use crate::regs::GuestRegs;
use crate::segment::{Segment, SegmentAccess, SegmentRegister};
use crate::state::{CpuState, TableRegister};

/// CR0 bits that stay Corten's: NE is fixed by VMX, CD and NW are shadowed.
const CR0_OWNED: u64 = cr0::NE | cr0::CD | cr0::NW;

/// CR4 bits that stay Corten's: VMXE is fixed by VMX, and a machine check must reach the host whatever the guest thinks of it.
const CR4_OWNED: u64 = cr4::VMXE | cr4::MCE;

/// #MC is the host's. #DB and #AC are the guest's, but a guest can make the delivery of one raise the next without end, and without an exit
/// nothing else would ever get the CPU again: here each round is one.
const INTERCEPTED_EXCEPTIONS: u32 =
    1 << exception::MACHINE_CHECK | 1 << exception::DEBUG | 1 << exception::ALIGNMENT_CHECK;

/// Interruptibility (SDM Vol. 3, 25.4.2).
const BLOCKED_BY_STI: u32 = 1 << 0;
const BLOCKED_BY_MOV_SS: u32 = 1 << 1;
const BLOCKED_BY_STI_OR_MOV_SS: u32 = BLOCKED_BY_STI | BLOCKED_BY_MOV_SS;
const BLOCKED_BY_NMI: u32 = 1 << 3;

const EVENT_VALID: u32 = 1 << 31;
const EVENT_HAS_ERROR: u32 = 1 << 11;

/// STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE (SDM Vol. 4): the guest's while it is on the CPU, Corten using none of them.
const SYSCALL_MSRS: [u32; 5] = [0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0102];

pub struct VmxVcpu {
    vmcs: Vmcs,
    caps: &'static Caps,
    resources: Resources,
    /// The pin-based and the exit controls, with the preemption timer while there is a guard: an INIT leaves that as it is.
    pin: u32,
    exit: u32,
    /// What the preemption timer begins to count from.
    guard: Option<u32>,
    primary: u32,
    /// The generation of the translations that this CPU may have cached.
    translations: u64,
    /// The CPU that has run it last, by its area.
    cpu: u64,
    /// What the VMCS has no place for, while the vCPU is on no CPU.
    syscall: [u64; SYSCALL_MSRS.len()],
    cr2: u64,
}

/// EPT pointer: write-back tables, four levels (SDM Vol. 3, 25.6.11).
pub fn ept_pointer(root: Mfn) -> u64 {
    root.phys().0 | 3 << 3 | 6
}

impl VmxVcpu {
    /// `None` if there is no memory for its VMCS.
    ///
    /// # Safety
    /// What `resources` names outlives this value, and the bitmaps are laid out as VMX wants them. VMX is on.
    pub unsafe fn new(caps: &'static Caps, resources: Resources, memory: &'static Memory) -> Option<VmxVcpu> {
        let frame = memory.allocate(0, None).ok()?.scrub();
        memory.window().write_u64(frame.mfn().phys(), u64::from(caps.revision)).ok()?;
        // SAFETY: the frame is zeroed but for the revision.
        let vmcs = unsafe { Vmcs::new(frame) };
        Some(VmxVcpu {
            vmcs,
            caps,
            resources,
            pin: caps.pin,
            exit: caps.exit,
            guard: None,
            primary: caps.primary,
            translations: 0,
            cpu: 0,
            syscall: [0; SYSCALL_MSRS.len()],
            cr2: 0,
        })
    }

    /// Makes this vCPU current on this CPU.
    pub fn load(&mut self, host: &HostState) -> Result<(), VmxError> {
        self.vmcs.load()?;
        if self.cpu != host.gs_base {
            self.cpu = host.gs_base;
            // What this CPU has cached of it is of another time: the first entry invalidates that (no generation is zero).
            self.translations = 0;
        }
        write(HOST_CR0, host.cr0);
        write(HOST_CR3, host.cr3);
        write(HOST_CR4, host.cr4);
        write(HOST_EFER, host.efer);
        write(HOST_PAT, crate::paging::PAT);
        write(HOST_CS_SELECTOR, host.code);
        for field in [HOST_SS_SELECTOR, HOST_DS_SELECTOR, HOST_ES_SELECTOR, HOST_FS_SELECTOR, HOST_GS_SELECTOR] {
            write(field, host.data);
        }
        write(HOST_TR_SELECTOR, host.task);
        write(HOST_FS_BASE, 0u64);
        write(HOST_GS_BASE, host.gs_base);
        write(HOST_TR_BASE, host.task_base);
        write(HOST_GDTR_BASE, host.gdt_base);
        write(HOST_IDTR_BASE, host.idt_base);
        write(HOST_SYSENTER_CS, 0u32);
        write(HOST_SYSENTER_ESP, 0u64);
        write(HOST_SYSENTER_EIP, 0u64);
        entry::point_host_at_exit();
        for (msr, value) in SYSCALL_MSRS.into_iter().zip(self.syscall) {
            // SAFETY: Corten executes no SYSCALL or SWAPGS: these registers mean nothing to it. The value was read from it, or is zero.
            unsafe { wrmsr(msr, value) };
        }
        crate::host::write_cr2(self.cr2);
        Ok(())
    }

    /// Takes this vCPU off this CPU.
    pub fn unload(&mut self) {
        self.syscall = SYSCALL_MSRS.map(rdmsr);
        self.cr2 = crate::host::read_cr2();
        self.vmcs.release();
    }

    /// Controls and guest state of a vCPU that goes on from `state`. It is current.
    pub fn reset(&mut self, state: &CpuState, cr4_allowed: u64) {
        let r = &self.resources;
        self.primary = self.caps.primary;
        write(PIN_CONTROLS, self.pin);
        write(PRIMARY_CONTROLS, self.primary);
        write(SECONDARY_CONTROLS, self.caps.secondary);
        write(EXIT_CONTROLS, self.exit);
        write(EXCEPTION_BITMAP, INTERCEPTED_EXCEPTIONS);
        for field in [
            PAGE_FAULT_MASK,
            PAGE_FAULT_MATCH,
            CR3_TARGET_COUNT,
            EXIT_MSR_STORE_COUNT,
            EXIT_MSR_LOAD_COUNT,
            ENTRY_MSR_LOAD_COUNT,
            ENTRY_EVENT,
            TPR_THRESHOLD,
            GUEST_INTERRUPTIBILITY,
            GUEST_ACTIVITY,
        ] {
            write(field, 0u32);
        }
        if self.caps.has(Secondary::ENABLE_VPID) {
            write(VPID, r.number);
        }
        if self.caps.has(Secondary::ENABLE_XSAVES) {
            write(XSS_EXIT_BITMAP, u64::MAX);
        }
        write(IO_BITMAP_A, r.ports.phys().0);
        write(IO_BITMAP_B, r.ports.phys().0 + mm::PAGE_SIZE as u64);
        write(MSR_BITMAP, r.msrs.phys().0);
        write(TSC_OFFSET, 0u64);
        write(EPT_POINTER, ept_pointer(r.root));
        write(VMCS_LINK_POINTER, u64::MAX);
        write(GUEST_DEBUGCTL, 0u64);
        write(GUEST_PAT, state.pat);
        self.set_efer_raw(state.efer);

        write(CR0_GUEST_HOST_MASK, CR0_OWNED);
        write(CR4_GUEST_HOST_MASK, !cr4_allowed | CR4_OWNED);
        self.set_cr0_raw(state.cr0);
        write(CR4_READ_SHADOW, state.cr4);
        write(GUEST_CR4, self.caps.fix_cr4(state.cr4 | cr4::MCE));
        write(GUEST_CR3, state.cr3);
        self.set_cr2(state.cr2);
        write(GUEST_DR7, state.dr7);
        write(GUEST_RSP, state.general.rsp);
        write(GUEST_RIP, state.rip);
        write(GUEST_RFLAGS, state.rflags);
        write(GUEST_PENDING_DEBUG, 0u64);
        write(GUEST_SYSENTER_CS, state.sysenter_cs as u32);
        write(GUEST_SYSENTER_ESP, state.sysenter_esp);
        write(GUEST_SYSENTER_EIP, state.sysenter_eip);
        for register in SegmentRegister::ALL {
            self.set_segment(register, state.segment(register));
        }
        write(GUEST_GDTR_BASE, state.gdtr.base);
        write(GUEST_GDTR_LIMIT, u32::from(state.gdtr.limit));
        write(GUEST_IDTR_BASE, state.idtr.base);
        write(GUEST_IDTR_LIMIT, u32::from(state.idtr.limit));
        self.drop_translations();
    }

    /// Drops the guest's cached linear translations, where its own instructions would have: they are tagged, and stay over exits and entries
    /// (SDM Vol. 3, 29.4.3.4).
    fn drop_translations(&self) {
        if self.caps.has(Secondary::ENABLE_VPID) {
            vmcs::invvpid(self.resources.number);
        }
    }

    /// Enters the guest and says why it came back. A pending event is injected.
    #[inline]
    pub fn run(&mut self, regs: &mut GuestRegs, pending: &mut Pending, translations: u64) -> Exit {
        if !pending.is_empty()
            && let Some(event) = pending.take()
        {
            self.inject(event);
        }
        if self.translations != translations {
            self.translations = translations;
            // Those that are tagged with a VPID are combined with the EPT's, and go too (SDM Vol. 3, 29.4.3.1).
            vmcs::invept(Some(ept_pointer(self.resources.root)));
        }
        // SAFETY: this vCPU is current (`load` came before), with host state of this CPU; the host has no use for floating point.
        if unsafe { entry::enter(regs, self.vmcs.launched()) } == Entered::Refused {
            return Exit::EntryFailed(read(INSTRUCTION_ERROR));
        }
        self.vmcs.set_launched();
        let reason = read(EXIT_REASON);
        let vectoring = read(VECTORING_EVENT);
        if vectoring & EVENT_VALID != 0 {
            redeliver(vectoring, pending);
        }
        decode_exit(reason)
    }

    // ---- events ----

    fn inject(&mut self, event: Event) {
        let (info, error, length) = match event {
            Event::Interrupt(vector) => (u32::from(vector), None, 0),
            Event::Nmi => (2 | 2 << 8, None, 0),
            Event::Exception { vector, error } => (u32::from(vector) | 3 << 8, error, 0),
            Event::Software { vector, kind, length, error } => {
                let kind = match kind {
                    SoftwareKind::Interrupt => 4,
                    SoftwareKind::Privileged => 5,
                    SoftwareKind::Exception => 6,
                };
                (u32::from(vector) | kind << 8, error, length)
            }
        };
        let mut info = info | EVENT_VALID;
        if let Some(error) = error {
            // In real mode exceptions push no error code (SDM Vol. 3, 26.2.1.3).
            if read(GUEST_CR0) & cr0::PE != 0 {
                info |= EVENT_HAS_ERROR;
                write(ENTRY_EVENT_ERROR, error);
            }
        }
        if length != 0 {
            write(ENTRY_INSTRUCTION_LENGTH, u32::from(length));
        }
        write(ENTRY_EVENT, info);
    }

    /// The guest would take an external interrupt now.
    #[inline]
    pub fn interruptible(&self) -> bool {
        read(GUEST_RFLAGS) & rflags::IF != 0 && read(GUEST_INTERRUPTIBILITY) & BLOCKED_BY_STI_OR_MOV_SS == 0
    }

    #[inline]
    pub fn interrupts_enabled(&self) -> bool {
        read(GUEST_RFLAGS) & rflags::IF != 0
    }

    /// The guest would take an NMI now.
    pub fn accepts_nmi(&self) -> bool {
        read(GUEST_INTERRUPTIBILITY) & (BLOCKED_BY_STI_OR_MOV_SS | BLOCKED_BY_NMI) == 0
    }

    /// The CPU keeps a single step's trap itself (GUEST_PENDING_DEBUG).
    #[inline]
    pub fn take_single_step(&mut self) -> bool {
        false
    }

    /// Asks for an exit as soon as the guest can take an interrupt, or takes that back.
    #[inline]
    pub fn set_interrupt_window(&mut self, open: bool) {
        self.set_primary(Primary::INTERRUPT_WINDOW_EXITING, open);
    }

    /// Has the guest leave when it has run for so many ticks of the TSC in all, whatever its RFLAGS.IF.
    pub fn set_guard(&mut self, ticks: Option<u64>) {
        let Some(shift) = self.caps.preemption_timer_shift else { return };
        self.guard = ticks.map(|ticks| u32::try_from(ticks >> shift).unwrap_or(u32::MAX));
        (self.pin, self.exit) = match self.guard {
            Some(_) => (self.caps.pin | Pin::PREEMPTION_TIMER.bits(), self.caps.timed_exit),
            None => (self.caps.pin, self.caps.exit),
        };
        write(PIN_CONTROLS, self.pin);
        write(EXIT_CONTROLS, self.exit);
        self.renew_guard();
    }

    /// The guest has all of that time again.
    pub fn renew_guard(&mut self) {
        if let Some(guard) = self.guard {
            write(PREEMPTION_TIMER, guard);
        }
    }

    /// Asks for an exit as soon as the guest can take an NMI, or takes that back.
    pub fn set_nmi_window(&mut self, open: bool) {
        // Some CPUs hold NMIs back after STI, others do not (SDM Vol. 3, 26.2). On these the exit would come at once, again and again, while the NMI cannot be
        // injected yet. MOV SS, which holds them back on all for as long, stands in for it.
        let blocked = read(GUEST_INTERRUPTIBILITY);
        if open && blocked & BLOCKED_BY_STI != 0 {
            write(GUEST_INTERRUPTIBILITY, blocked & !BLOCKED_BY_STI | BLOCKED_BY_MOV_SS);
        }
        self.set_primary(Primary::NMI_WINDOW_EXITING, open);
    }

    #[inline]
    fn set_primary(&mut self, control: Primary, on: bool) {
        let wanted = if on { self.primary | control.bits() } else { self.primary & !control.bits() };
        if wanted != self.primary {
            self.primary = wanted;
            write(PRIMARY_CONTROLS, wanted);
        }
    }

    // ---- registers ----

    #[inline]
    pub fn rip(&self) -> u64 {
        read(GUEST_RIP)
    }

    /// Moves on behind the instruction that exited: the one place where RIP advances, with the shadows of STI and MOV SS gone and
    /// a single-step trap noted.
    #[inline]
    pub fn advance(&mut self) {
        self.advance_by(u64::from(read(EXIT_INSTRUCTION_LENGTH)));
    }

    pub fn advance_by(&mut self, length: u64) {
        let rip = read(GUEST_RIP);
        let mut next = rip.wrapping_add(length);
        // Outside of 64-bit code RIP has 32 bits and wraps there; the entry would fail with more (SDM Vol. 3, 27.3.1.4).
        if (rip ^ next) >> 32 != 0 && !self.in_64_bit_mode() {
            next &= u64::from(u32::MAX);
        }
        write(GUEST_RIP, next);
        let interruptibility = read(GUEST_INTERRUPTIBILITY);
        if interruptibility & BLOCKED_BY_STI_OR_MOV_SS != 0 {
            write(GUEST_INTERRUPTIBILITY, interruptibility & !BLOCKED_BY_STI_OR_MOV_SS);
        }
        if read(GUEST_RFLAGS) & rflags::TF != 0 {
            write(GUEST_PENDING_DEBUG, read(GUEST_PENDING_DEBUG) | 1 << 14 | 1 << 12);
        }
    }

    pub fn rflags(&self) -> u64 {
        read(GUEST_RFLAGS)
    }

    pub fn set_rflags(&mut self, value: u64) {
        write(GUEST_RFLAGS, value | 2);
    }

    pub fn rsp(&self) -> u64 {
        read(GUEST_RSP)
    }

    pub fn set_rsp(&mut self, value: u64) {
        write(GUEST_RSP, value);
    }

    /// CR0 as the guest sees it.
    #[inline]
    pub fn cr0(&self) -> u64 {
        (read(GUEST_CR0) & !CR0_OWNED) | (read(CR0_READ_SHADOW) & CR0_OWNED)
    }

    #[inline]
    pub fn cr3(&self) -> u64 {
        read(GUEST_CR3)
    }

    #[inline]
    pub fn cr4(&self) -> u64 {
        (read(GUEST_CR4) & !CR4_OWNED) | (read(CR4_READ_SHADOW) & CR4_OWNED)
    }

    #[inline]
    pub fn efer(&self) -> u64 {
        read(GUEST_EFER)
    }

    fn set_cr0_raw(&mut self, value: u64) {
        write(CR0_READ_SHADOW, value);
        write(GUEST_CR0, self.caps.fix_guest_cr0(value & !(cr0::CD | cr0::NW)));
    }

    /// Gives the guest a CR0 that was checked before; the mode follows (SDM Vol. 3, 26.3.1.1: EFER.LMA and "IA-32e mode guest" agree).
    pub fn set_cr0(&mut self, value: u64) {
        let paging = value & cr0::PG != 0;
        let efer = self.efer();
        let long = paging && efer & efer::LME != 0;
        if (value ^ self.cr0()) & cr0::PG != 0 {
            self.drop_translations();
        }
        self.set_efer_raw(if long { efer | efer::LMA } else { efer & !efer::LMA });
        self.set_cr0_raw(value);
    }

    pub fn set_cr3(&mut self, value: u64) {
        write(GUEST_CR3, value);
        self.drop_translations();
    }

    pub fn set_cr4(&mut self, value: u64) {
        if (value ^ self.cr4()) & !CR4_OWNED != 0 {
            self.drop_translations();
        }
        write(CR4_READ_SHADOW, value);
        write(GUEST_CR4, self.caps.fix_cr4(value | cr4::MCE));
    }

    fn set_efer_raw(&mut self, value: u64) {
        write(GUEST_EFER, value);
        let entry = self.caps.entry & !EntryControls::IA32E_MODE_GUEST.bits();
        let long = if value & efer::LMA != 0 { EntryControls::IA32E_MODE_GUEST.bits() } else { 0 };
        write(ENTRY_CONTROLS, entry | long);
    }

    /// Sets EFER; LMA stays what the mode says.
    pub fn set_efer(&mut self, value: u64) {
        let lma = self.efer() & efer::LMA;
        self.set_efer_raw((value & !efer::LMA) | lma);
    }

    /// The four page-directory pointers of PAE paging, which the CPU keeps.
    pub fn set_pdptes(&mut self, values: [u64; 4]) {
        for (field, value) in [GUEST_PDPTE_0, GUEST_PDPTE_1, GUEST_PDPTE_2, GUEST_PDPTE_3].into_iter().zip(values) {
            write(field, value);
        }
    }

    /// CR2 is the guest's as long as it is on this CPU: the host takes no page fault that it survives.
    pub fn set_cr2(&mut self, value: u64) {
        crate::host::write_cr2(value);
    }

    pub fn cr2(&self) -> u64 {
        crate::host::read_cr2()
    }

    pub fn dr7(&self) -> u64 {
        read(GUEST_DR7)
    }

    /// VMX leaves it to the host.
    pub fn dr6(&self) -> Option<u64> {
        None
    }

    pub fn gdtr(&self) -> TableRegister {
        TableRegister { base: read(GUEST_GDTR_BASE), limit: read(GUEST_GDTR_LIMIT) as u16 }
    }

    pub fn idtr(&self) -> TableRegister {
        TableRegister { base: read(GUEST_IDTR_BASE), limit: read(GUEST_IDTR_LIMIT) as u16 }
    }

    pub fn pat(&self) -> u64 {
        read(GUEST_PAT)
    }

    pub fn set_pat(&mut self, value: u64) {
        write(GUEST_PAT, value);
    }

    /// The field behind an MSR that the VMCS holds.
    fn msr_field(msr: DeviceMsr) -> Option<Field<u64>> {
        Some(match msr {
            DeviceMsr::FsBase => GUEST_FS_BASE,
            DeviceMsr::GsBase => GUEST_GS_BASE,
            DeviceMsr::SysenterEsp => GUEST_SYSENTER_ESP,
            DeviceMsr::SysenterEip => GUEST_SYSENTER_EIP,
            DeviceMsr::DebugControl => GUEST_DEBUGCTL,
            _ => return None,
        })
    }

    /// An MSR that is in the CPU while the vCPU is.
    fn syscall_msr(msr: DeviceMsr) -> Option<u32> {
        let [star, lstar, cstar, mask, kernel_gs_base] = SYSCALL_MSRS;
        Some(match msr {
            DeviceMsr::Star => star,
            DeviceMsr::Lstar => lstar,
            DeviceMsr::Cstar => cstar,
            DeviceMsr::SyscallMask => mask,
            DeviceMsr::KernelGsBase => kernel_gs_base,
            _ => return None,
        })
    }

    pub fn read_msr(&self, msr: DeviceMsr) -> Option<u64> {
        if let Some(number) = Self::syscall_msr(msr) {
            return Some(rdmsr(number));
        }
        match msr {
            DeviceMsr::SysenterCs => Some(u64::from(read(GUEST_SYSENTER_CS))),
            msr => Self::msr_field(msr).map(read),
        }
    }

    pub fn write_msr(&mut self, msr: DeviceMsr, value: u64) -> Option<()> {
        if let Some(number) = Self::syscall_msr(msr) {
            // SAFETY: Corten executes no SYSCALL or SWAPGS: these registers mean nothing to it. Who writes has checked what the register takes.
            unsafe { wrmsr(number, value) };
            return Some(());
        }
        match msr {
            DeviceMsr::SysenterCs => write(GUEST_SYSENTER_CS, value as u32),
            msr => write(Self::msr_field(msr)?, value),
        }
        Some(())
    }

    pub fn segment(&self, register: SegmentRegister) -> Segment {
        let fields = segment(register as u8);
        Segment {
            selector: read(fields.selector),
            base: read(fields.base),
            limit: read(fields.limit),
            access: SegmentAccess(read(fields.access)),
        }
    }

    pub fn set_segment(&mut self, register: SegmentRegister, value: Segment) {
        let fields = segment(register as u8);
        write(fields.selector, value.selector);
        write(fields.base, value.base);
        write(fields.limit, value.limit);
        write(fields.access, value.access.0);
    }

    /// The privilege level: SS's, even in real mode and with an unusable SS.
    #[inline]
    pub fn privilege(&self) -> u8 {
        SegmentAccess(read(GUEST_SS_ACCESS)).privilege()
    }

    /// The guest executes 64-bit code.
    #[inline]
    pub fn in_64_bit_mode(&self) -> bool {
        SegmentAccess(read(GUEST_CS_ACCESS)).long() && self.efer() & efer::LMA != 0
    }

    /// The engine's own state, for a domain that crashes or an entry that fails.
    pub fn dump(&self) {
        dump();
    }
}

/// An event whose delivery the exit interrupted comes again (SDM Vol. 3, 28.2.4).
#[cold]
fn redeliver(vectoring: u32, pending: &mut Pending) {
    let vector = vectoring as u8;
    let error = (vectoring & EVENT_HAS_ERROR != 0).then(|| read(VECTORING_EVENT_ERROR));
    let length = read(EXIT_INSTRUCTION_LENGTH) as u8;
    let software = |kind| Event::Software { vector, kind, length, error };
    let event = match vectoring >> 8 & 7 {
        0 => Event::Interrupt(vector),
        2 => {
            // The NMI is to be injected again: the blocking that its first delivery set would refuse it.
            write(GUEST_INTERRUPTIBILITY, read(GUEST_INTERRUPTIBILITY) & !BLOCKED_BY_NMI);
            Event::Nmi
        }
        4 => software(SoftwareKind::Interrupt),
        5 => software(SoftwareKind::Privileged),
        6 => software(SoftwareKind::Exception),
        _ => Event::Exception { vector, error },
    };
    pending.redeliver(event);
}

/// The VMCS's state in words. The vCPU is current.
fn dump() {
    for (name, encoding) in ALL {
        if let Some(value) = vmcs::read_raw(*encoding) {
            log::error!(target: "vmx", "{name:<28} {value:#018x}");
        }
    }
}
