//! A vCPU under SVM: its VMCB, how it is set up, entered, and asked about.

use mm::Memory;

use super::asid::Asid;
use super::caps::{Caps, Features};
use super::cpu::SvmCpu;
use super::entry;
use super::events::{injected, interrupted};
use super::exit::{Told, read_code, told};
use super::vmcb::{TlbControl, VmcbFrame, intercept};
use crate::cpu::registers::{cr0, efer, rflags};
use crate::decode::Mode;
use crate::engine::{CpuEngine, HostState, Resources};
use crate::event::{Event, Pending};
use crate::exit::Exit;
use crate::policy::msr::DeviceMsr;
use crate::regs::GuestRegs;
use crate::segment::{Segment, SegmentRegister};
use crate::state::{CpuState, TableRegister};

/// CR0 bits that the guest only sees: caches stay on.
const CR0_SHADOWED: u64 = cr0::CD | cr0::NW;
/// DR6.BS: a single step was taken.
const SINGLE_STEP: u64 = 1 << 14;

/// What always exits, in effect the same as under VMX.
const ALWAYS: [super::vmcb::Intercept; 29] = [
    intercept::CR8_READ,
    intercept::CR4_WRITE,
    intercept::CR8_WRITE,
    intercept::CR0_SELECTIVE_WRITE,
    // Delivering one of these can raise it again, without end and without an interrupt in between.
    intercept::DEBUG,
    intercept::ALIGNMENT_CHECK,
    intercept::MACHINE_CHECK,
    intercept::INTERRUPT,
    intercept::NMI,
    intercept::RDPMC,
    intercept::CPUID,
    intercept::INVD,
    intercept::HLT,
    intercept::INVLPGA,
    intercept::IO,
    intercept::MSR,
    intercept::SHUTDOWN,
    intercept::VMRUN,
    intercept::VMMCALL,
    intercept::VMLOAD,
    intercept::VMSAVE,
    intercept::STGI,
    intercept::CLGI,
    intercept::SKINIT,
    intercept::WBINVD,
    intercept::MONITOR,
    intercept::MWAIT,
    intercept::XSETBV,
    intercept::RDPRU,
];

pub struct SvmVcpu {
    vmcb: VmcbFrame,
    caps: &'static Caps,
    resources: Resources,
    /// The CPU that has run it last.
    cpu: Option<&'static SvmCpu>,
    asid: Asid,
    /// The generation of the translations that may be cached under the identifier.
    translations: u64,
    /// The guest's CR0 bits that the CPU's does not have.
    cr0_shadow: u64,
    /// Where the guest goes on once the instruction that exited is done.
    next_rip: u64,
    /// What the last exit told, while its code is still to be read.
    told: Told,
    /// A virtual interrupt waits for the guest to be able to take it.
    window: bool,
    /// From an NMI to the IRET of its handler.
    nmi_blocked: bool,
    /// An instruction was completed on the guest's behalf with RFLAGS.TF set.
    single_step: bool,
}

impl SvmVcpu {
    /// `None` if there is no memory for its VMCB.
    ///
    /// # Safety
    /// What `resources` names outlives this value, and the bitmaps are laid out as SVM wants them.
    pub unsafe fn new(caps: &'static Caps, resources: Resources, memory: &'static Memory) -> Option<SvmVcpu> {
        Some(SvmVcpu {
            vmcb: VmcbFrame::new(memory)?,
            caps,
            resources,
            cpu: None,
            asid: Asid::NONE,
            translations: 0,
            cr0_shadow: 0,
            next_rip: 0,
            told: Told::Iret,
            window: false,
            nmi_blocked: false,
            single_step: false,
        })
    }

    /// Makes this vCPU current on this CPU; `None` if SVM is not on here.
    pub fn load(&mut self, host: &HostState) -> Option<()> {
        let CpuEngine::Svm(cpu) = host.engine else { return None };
        // SAFETY: the area is this CPU's own, and SVM is on, as there is a `SvmCpu`.
        unsafe { entry::save_host(cpu.host_area) };
        if !self.cpu.is_some_and(|last| core::ptr::eq(last, cpu)) {
            self.cpu = Some(cpu);
            self.asid = Asid::NONE;
            self.vmcb.forget();
        }
        Some(())
    }

    /// Takes this vCPU off this CPU: every exit leaves its state in the VMCB.
    pub fn unload(&mut self) {}

    /// Controls and guest state of a vCPU that goes on from `state`. Each write of CR4 exits: what the guest may set in it is checked there.
    pub fn reset(&mut self, state: &CpuState, _cr4_allowed: u64) {
        let Resources { ports, msrs, root, .. } = self.resources;
        let vmcb = &mut *self.vmcb;
        vmcb.set_up(ports.phys(), msrs.phys(), root.phys());
        for intercept in ALWAYS {
            vmcb.set_intercept(intercept, true);
        }
        vmcb.set_intercept(intercept::IRET, false);
        vmcb.set_waiting_interrupt(false);
        vmcb.set_injected_event(0);
        vmcb.set_shadow(false);
        vmcb.set_cr2(state.cr2);
        vmcb.set_cr4(state.cr4);
        vmcb.set_efer(state.efer | efer::SVME);
        vmcb.set_pat(state.pat);
        vmcb.set_dr6(state.dr6);
        vmcb.set_dr7(state.dr7);
        vmcb.set_rip(state.rip);
        vmcb.set_rsp(state.general.rsp);
        vmcb.set_rflags(state.rflags);
        vmcb.set_sysenter_cs(state.sysenter_cs);
        vmcb.set_sysenter_esp(state.sysenter_esp);
        vmcb.set_sysenter_eip(state.sysenter_eip);
        vmcb.set_descriptor_tables(state.gdtr, state.idtr);
        for register in SegmentRegister::ALL {
            vmcb.set_segment(register, state.segment(register));
        }
        self.window = false;
        self.nmi_blocked = false;
        self.single_step = false;
        self.set_cr3(state.cr3);
        self.set_cr0(state.cr0);
    }

    /// Enters the guest and says why it came back. A pending event is injected.
    #[inline]
    pub fn run(&mut self, regs: &mut GuestRegs, pending: &mut Pending, translations: u64) -> Exit {
        let Some(cpu) = self.cpu else { return Exit::EntryFailed(0) };
        let event = pending.take();
        if let Some(event) = event {
            self.inject(event);
        }
        if self.translations != translations || !cpu.asids.is_current(self.asid) || !self.caps.keep_translations {
            self.translations = translations;
            self.renew_asid(cpu);
        }
        self.vmcb.set_rax(regs.rax);
        let (at, vmcb) = (self.vmcb.phys(), self.vmcb.as_ptr());
        // SAFETY: the VMCB was set up by `reset`, and its setters leave the host nothing to lose: intercepts, maps and nested tables are not the
        // guest's to choose. `load` saved this CPU's own state.
        unsafe { entry::enter(regs, at, cpu.host_area, vmcb) };
        regs.rax = self.vmcb.rax();
        self.vmcb.note_run();
        if event.is_some() {
            self.vmcb.set_injected_event(0);
        }
        let interrupted_event = self.vmcb.exit_event();
        if interrupted_event != 0 {
            self.redeliver(interrupted_event, pending);
        }
        self.told = told(self.vmcb.exit_code(), self.vmcb.exit_info());
        match self.told {
            Told::Exit(exit) => exit,
            Told::Continues(exit, next) => {
                self.next_rip = next;
                exit
            }
            Told::Instruction(exit, _) if self.caps.has(Features::NEXT_RIP) => {
                self.next_rip = self.vmcb.next_rip();
                exit
            }
            Told::Instruction(..) | Told::Control { .. } => Exit::NeedsCode,
            Told::Iret => self.leave_nmi_handler(),
        }
    }

    /// What the last exit was, now that the code at RIP is there (an `Exit::NeedsCode` came before). `None` if that has changed since: the guest
    /// executes what is there now.
    pub fn finish_exit(&mut self, code: &[u8], regs: &GuestRegs) -> Option<Exit> {
        let (exit, length) = read_code(self.told, code, self.mode(), regs, self.vmcb.rsp())?;
        self.next_rip = self.vmcb.rip().wrapping_add(u64::from(length));
        Some(exit)
    }

    fn mode(&self) -> Mode {
        if self.in_64_bit_mode() {
            Mode::Bits64
        } else if self.vmcb.segment(SegmentRegister::Cs).access.big() {
            Mode::Bits32
        } else {
            Mode::Bits16
        }
    }

    /// Under a new identifier nothing is cached: neither nested translations that are gone, nor the guest's own.
    fn renew_asid(&mut self, cpu: &SvmCpu) {
        let (asid, flush) = cpu.asids.take();
        self.asid = asid;
        self.vmcb.set_asid(asid.number);
        if flush {
            self.vmcb.set_tlb_control(TlbControl::FlushAll);
        }
    }

    // ---- events ----

    fn inject(&mut self, event: Event) {
        if event == Event::Nmi {
            self.nmi_blocked = true;
            self.vmcb.set_intercept(intercept::IRET, true);
        }
        let protected = self.vmcb.cr0() & cr0::PE != 0;
        self.vmcb.set_injected_event(injected(event, protected));
    }

    /// An event whose delivery the exit interrupted comes again.
    #[cold]
    fn redeliver(&mut self, info: u64, pending: &mut Pending) {
        let Some(event) = interrupted(info) else { return };
        if event == Event::Nmi {
            self.nmi_blocked = false;
            self.vmcb.set_intercept(intercept::IRET, false);
        }
        pending.redeliver(event);
    }

    /// The IRET is still to be executed. In its shadow nothing is injected, so that the next NMI comes behind it.
    #[cold]
    fn leave_nmi_handler(&mut self) -> Exit {
        self.nmi_blocked = false;
        self.vmcb.set_intercept(intercept::IRET, false);
        self.vmcb.set_shadow(true);
        Exit::NmiWindow
    }

    /// The guest would take an external interrupt now.
    #[inline]
    pub fn interruptible(&self) -> bool {
        self.interrupts_enabled() && !self.vmcb.shadow()
    }

    #[inline]
    pub fn interrupts_enabled(&self) -> bool {
        self.vmcb.rflags() & rflags::IF != 0
    }

    /// The guest would take an NMI now.
    pub fn accepts_nmi(&self) -> bool {
        !self.nmi_blocked && !self.vmcb.shadow()
    }

    /// Asks for an exit as soon as the guest can take an interrupt, or takes that back.
    #[inline]
    pub fn set_interrupt_window(&mut self, open: bool) {
        if self.window != open {
            self.window = open;
            self.vmcb.set_waiting_interrupt(open);
        }
    }

    /// SVM has no such timer; its interrupts always get through.
    pub fn set_guard(&mut self, _ticks: Option<u64>) {}

    pub fn renew_guard(&mut self) {}

    /// The exit at the handler's IRET is asked for when an NMI is injected. A shadow ends unseen: the guest's next chance to take an interrupt stands
    /// for it.
    pub fn set_nmi_window(&mut self, open: bool) {
        if open && !self.nmi_blocked {
            self.set_interrupt_window(true);
        }
    }

    /// An instruction was completed for the guest that was to trap after it.
    #[inline]
    pub fn take_single_step(&mut self) -> bool {
        if !self.single_step {
            return false;
        }
        self.single_step = false;
        let status = self.vmcb.dr6() | SINGLE_STEP;
        self.vmcb.set_dr6(status);
        true
    }

    // ---- registers ----

    #[inline]
    pub fn rip(&self) -> u64 {
        self.vmcb.rip()
    }

    /// Moves on behind the instruction that exited.
    #[inline]
    pub fn advance(&mut self) {
        self.go_on_at(self.next_rip);
    }

    pub fn advance_by(&mut self, length: u64) {
        let rip = self.vmcb.rip();
        let next = rip.wrapping_add(length);
        // Outside of 64-bit code RIP has 32 bits and wraps there.
        let wraps = (rip ^ next) >> 32 != 0 && !self.in_64_bit_mode();
        self.go_on_at(if wraps { next & u64::from(u32::MAX) } else { next });
    }

    /// The one place where RIP advances, with the shadow of STI and MOV SS gone and a single step noted.
    #[inline]
    fn go_on_at(&mut self, rip: u64) {
        self.vmcb.set_rip(rip);
        self.vmcb.set_shadow(false);
        self.single_step = self.vmcb.rflags() & rflags::TF != 0;
    }

    pub fn rflags(&self) -> u64 {
        self.vmcb.rflags()
    }

    pub fn set_rflags(&mut self, value: u64) {
        self.vmcb.set_rflags(value | 2);
    }

    pub fn rsp(&self) -> u64 {
        self.vmcb.rsp()
    }

    pub fn set_rsp(&mut self, value: u64) {
        self.vmcb.set_rsp(value);
    }

    /// CR0 as the guest sees it.
    #[inline]
    pub fn cr0(&self) -> u64 {
        self.vmcb.cr0() & !CR0_SHADOWED | self.cr0_shadow
    }

    #[inline]
    pub fn cr3(&self) -> u64 {
        self.vmcb.cr3()
    }

    #[inline]
    pub fn cr4(&self) -> u64 {
        self.vmcb.cr4()
    }

    #[inline]
    pub fn efer(&self) -> u64 {
        self.vmcb.efer() & !efer::SVME
    }

    /// Gives the guest a CR0 that was checked before; the mode follows. While it sees bits that the CPU's has not, each access exits.
    pub fn set_cr0(&mut self, value: u64) {
        let efer = self.vmcb.efer();
        let long = value & cr0::PG != 0 && efer & efer::LME != 0;
        self.vmcb.set_efer(if long { efer | efer::LMA } else { efer & !efer::LMA });
        self.cr0_shadow = value & CR0_SHADOWED;
        self.vmcb.set_cr0(value & !CR0_SHADOWED | cr0::ET);
        self.vmcb.set_intercept(intercept::CR0_READ, self.cr0_shadow != 0);
        self.vmcb.set_intercept(intercept::CR0_WRITE, self.cr0_shadow != 0);
        self.drop_translations();
    }

    pub fn set_cr2(&mut self, value: u64) {
        self.vmcb.set_cr2(value);
    }

    pub fn set_cr3(&mut self, value: u64) {
        self.vmcb.set_cr3(value);
        self.drop_translations();
    }

    pub fn set_cr4(&mut self, value: u64) {
        self.vmcb.set_cr4(value);
        self.drop_translations();
    }

    /// Sets EFER; LMA stays what the mode says.
    pub fn set_efer(&mut self, value: u64) {
        let lma = self.vmcb.efer() & efer::LMA;
        self.vmcb.set_efer(value & !efer::LMA | lma | efer::SVME);
        self.drop_translations();
    }

    /// The CPU drops the guest's translations when the guest itself writes one of these registers; here it must be made to.
    fn drop_translations(&mut self) {
        self.asid = Asid::NONE;
    }

    /// Under nested paging the CPU reads them from memory at every walk (APM Vol. 2, 15.25.10).
    pub fn set_pdptes(&mut self, _values: [u64; 4]) {}

    pub fn cr2(&self) -> u64 {
        self.vmcb.cr2()
    }

    pub fn dr7(&self) -> u64 {
        self.vmcb.dr7()
    }

    pub fn dr6(&self) -> Option<u64> {
        Some(self.vmcb.dr6())
    }

    pub fn gdtr(&self) -> TableRegister {
        self.vmcb.gdtr()
    }

    pub fn idtr(&self) -> TableRegister {
        self.vmcb.idtr()
    }

    pub fn pat(&self) -> u64 {
        self.vmcb.pat()
    }

    pub fn set_pat(&mut self, value: u64) {
        self.vmcb.set_pat(value);
        self.drop_translations();
    }

    pub fn read_msr(&self, msr: DeviceMsr) -> Option<u64> {
        let vmcb = &*self.vmcb;
        Some(match msr {
            DeviceMsr::FsBase => vmcb.segment(SegmentRegister::Fs).base,
            DeviceMsr::GsBase => vmcb.segment(SegmentRegister::Gs).base,
            DeviceMsr::KernelGsBase => vmcb.kernel_gs_base(),
            DeviceMsr::Star => vmcb.star(),
            DeviceMsr::Lstar => vmcb.lstar(),
            DeviceMsr::Cstar => vmcb.cstar(),
            DeviceMsr::SyscallMask => vmcb.syscall_mask(),
            DeviceMsr::SysenterCs => vmcb.sysenter_cs(),
            DeviceMsr::SysenterEsp => vmcb.sysenter_esp(),
            DeviceMsr::SysenterEip => vmcb.sysenter_eip(),
            _ => return None,
        })
    }

    pub fn write_msr(&mut self, msr: DeviceMsr, value: u64) -> Option<()> {
        let vmcb = &mut *self.vmcb;
        match msr {
            DeviceMsr::FsBase => vmcb.set_base(SegmentRegister::Fs, value),
            DeviceMsr::GsBase => vmcb.set_base(SegmentRegister::Gs, value),
            DeviceMsr::KernelGsBase => vmcb.set_kernel_gs_base(value),
            DeviceMsr::Star => vmcb.set_star(value),
            DeviceMsr::Lstar => vmcb.set_lstar(value),
            DeviceMsr::Cstar => vmcb.set_cstar(value),
            DeviceMsr::SyscallMask => vmcb.set_syscall_mask(value),
            DeviceMsr::SysenterCs => vmcb.set_sysenter_cs(value),
            DeviceMsr::SysenterEsp => vmcb.set_sysenter_esp(value),
            DeviceMsr::SysenterEip => vmcb.set_sysenter_eip(value),
            _ => return None,
        }
        Some(())
    }

    pub fn segment(&self, register: SegmentRegister) -> Segment {
        self.vmcb.segment(register)
    }

    pub fn set_segment(&mut self, register: SegmentRegister, value: Segment) {
        self.vmcb.set_segment(register, value);
    }

    #[inline]
    pub fn privilege(&self) -> u8 {
        self.vmcb.privilege()
    }

    /// The guest executes 64-bit code.
    #[inline]
    pub fn in_64_bit_mode(&self) -> bool {
        self.vmcb.code_is_long() && self.vmcb.efer() & efer::LMA != 0
    }

    /// The engine's own state, for a domain that crashes or an entry that fails.
    pub fn dump(&self) {
        self.vmcb.dump();
    }
}
