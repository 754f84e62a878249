//! A vCPU's registers and private devices: what belongs to the CPU that runs it, moved from one to the next with it.

use alloc::boxed::Box;

use hypervisor::domain::Domain;
use mm::addr::GuestPhys;
use mm::{Cached, P2m, P2mCache};
use sched::CpuSet;

use crate::engine::{Engine, Nested};
use crate::event::{Event, Pending, Raised, exception};
use crate::fpu::FpuArea;
use crate::guest_paging::TableMemory;
use crate::host;
use crate::machine::X86;
use crate::msr::{rdmsr, wrmsr};
use crate::policy::GuestPolicy;
use crate::policy::msr::{DeviceMsr, VcpuMsrs};
use crate::regs::GuestRegs;
use crate::segment::SegmentRegister;
use crate::state::CpuState;
use crate::vdev::vlapic::Vlapic;

pub struct Context {
    pub regs: GuestRegs,
    pub engine: Engine,
    pub pending: Pending,
    pub vlapic: Vlapic,
    pub msrs: VcpuMsrs,
    pub xcr0: u64,
    pub fpu: FpuArea,
    pub switched: SwitchedRegisters,
    /// The CPUs that have had it.
    pub seen: CpuSet,
    pub cache: P2mCache,
    /// A fault met a double fault: the vCPU is beyond help.
    pub triple_fault: bool,
    /// What the vCPU goes on from when it is next loaded, instead of what `regs` and `engine` have: the engine takes and gives a state only while
    /// it is loaded.
    pub waiting: Option<Box<CpuState>>,
}

/// Registers that stay the guest's while it is on the CPU, Corten using none of them, and that no engine switches.
#[derive(Clone, Copy, Debug, Default)]
pub struct SwitchedRegisters {
    tsc_aux: u64,
    /// DR0 to DR3 and DR6.
    debug: [u64; 5],
}

const TSC_AUX: u32 = 0xc000_0103;

impl SwitchedRegisters {
    pub fn of(state: &CpuState) -> SwitchedRegisters {
        let [a, b, c, d] = state.breakpoints;
        SwitchedRegisters { tsc_aux: state.tsc_aux, debug: [a, b, c, d, state.dr6] }
    }

    pub fn save(&mut self, has_tsc_aux: bool) {
        if has_tsc_aux {
            self.tsc_aux = rdmsr(TSC_AUX);
        }
        self.debug = host::read_debug_registers();
    }

    pub fn restore(&self, has_tsc_aux: bool) {
        if has_tsc_aux {
            // SAFETY: Corten executes no RDTSCP: the register means nothing to it. The value was read from it, or is zero.
            unsafe { wrmsr(TSC_AUX, self.tsc_aux) };
        }
        host::write_debug_registers(&self.debug);
    }
}

/// Registers of [`CpuState`] that are the engine's by the name of their MSRs.
const SYSCALL_MSRS: [DeviceMsr; 5] =
    [DeviceMsr::Star, DeviceMsr::Lstar, DeviceMsr::Cstar, DeviceMsr::SyscallMask, DeviceMsr::KernelGsBase];

impl Context {
    /// Has the vCPU go on from the state that waits for it, if there is one; false if it is not one for this policy. Its engine is loaded, the
    /// registers that no engine switches are not.
    pub fn take_waiting(&mut self, domain: &Domain<X86>, policy: &GuestPolicy) -> bool {
        let Some(state) = self.waiting.take() else { return true };
        // The policy may have changed since this was last looked at.
        if state.check(policy).is_err() {
            return false;
        }
        self.engine.reset(&state, policy.cr4_allowed);
        let values = [state.star, state.lstar, state.cstar, state.syscall_mask, state.kernel_gs_base];
        for (msr, value) in SYSCALL_MSRS.into_iter().zip(values) {
            self.engine.write_msr(msr, value);
        }
        self.regs = state.general;
        self.switched = SwitchedRegisters::of(&state);
        self.pending = Pending::default();
        if let Some(event) = state.event {
            self.pending.redeliver(event);
        }
        !state.keeps_pdptes() || self.load_pdptes(&domain.p2m)
    }

    /// PAE paging keeps its four top entries in registers (SDM Vol. 3, 4.4.1); false if they cannot be loaded.
    pub fn load_pdptes(&mut self, p2m: &P2m<Nested>) -> bool {
        let base = self.engine.cr3() & 0xffff_ffe0;
        let mut tables = GuestTables(self.cache.of(p2m));
        let mut values = [0; 4];
        for (index, value) in values.iter_mut().enumerate() {
            let Some(entry) = tables.read_u64(GuestPhys(base + index as u64 * 8)) else { return false };
            // Bits 2:1 and 8:5 are reserved in a present entry.
            if entry & 1 != 0 && entry & 0x1e6 != 0 {
                return false;
            }
            *value = entry;
        }
        self.engine.set_pdptes(values);
        true
    }

    /// The registers as they are: those that wait, or those that the engine has, which is loaded then; of the others what was last saved.
    pub fn state(&self) -> CpuState {
        if let Some(state) = &self.waiting {
            return **state;
        }
        let engine = &self.engine;
        let [star, lstar, cstar, syscall_mask, kernel_gs_base] =
            SYSCALL_MSRS.map(|msr| engine.read_msr(msr).unwrap_or_default());
        let msr = |msr| engine.read_msr(msr).unwrap_or_default();
        let [a, b, c, d, dr6] = self.switched.debug;
        let mut state = CpuState {
            general: GuestRegs { rsp: engine.rsp(), ..self.regs },
            rip: engine.rip(),
            rflags: engine.rflags(),
            cr0: engine.cr0(),
            cr2: engine.cr2(),
            cr3: engine.cr3(),
            cr4: engine.cr4(),
            efer: engine.efer(),
            breakpoints: [a, b, c, d],
            dr6: engine.dr6().unwrap_or(dr6),
            dr7: engine.dr7(),
            segments: SegmentRegister::ALL.map(|register| engine.segment(register)),
            gdtr: engine.gdtr(),
            idtr: engine.idtr(),
            sysenter_cs: msr(DeviceMsr::SysenterCs),
            sysenter_esp: msr(DeviceMsr::SysenterEsp),
            sysenter_eip: msr(DeviceMsr::SysenterEip),
            star,
            lstar,
            cstar,
            syscall_mask,
            kernel_gs_base,
            tsc_aux: self.switched.tsc_aux,
            pat: engine.pat(),
            // A software event's instruction is executed again.
            event: self.pending.peek().filter(|event| !matches!(event, Event::Software { .. })),
        };
        // SVM keeps the privilege level apart from SS.
        let privilege = u32::from(engine.privilege());
        let stack = &mut state.segment_mut(SegmentRegister::Ss).access.0;
        *stack = *stack & !(3 << 5) | privilege << 5;
        state.settle();
        state
    }

    /// Raises an exception in the guest at its next entry.
    pub fn raise(&mut self, vector: u8, error: Option<u32>) {
        if self.pending.raise(vector, error) == Raised::TripleFault {
            self.triple_fault = true;
        }
    }

    pub fn raise_general_protection(&mut self) {
        self.raise(exception::GENERAL_PROTECTION, Some(0));
    }

    pub fn raise_undefined(&mut self) {
        self.raise(exception::UNDEFINED, None);
    }
}

/// The guest's page tables as its walk reads them: guest-physical, through its p2m.
pub struct GuestTables<'a>(pub Cached<'a, Nested>);

impl TableMemory for GuestTables<'_> {
    #[inline]
    fn read_u64(&mut self, at: GuestPhys) -> Option<u64> {
        let page = self.0.lookup(at.gfn())?;
        self.0.window().read_u64(page.at(at.page_offset() & !7)).ok()
    }

    fn read_u32(&mut self, at: GuestPhys) -> Option<u32> {
        let word = self.read_u64(at)?;
        Some(if at.0 & 4 != 0 { (word >> 32) as u32 } else { word as u32 })
    }

    fn set_bits(&mut self, at: GuestPhys, bits: u32) {
        let page = self.0.lookup(at.gfn()).filter(|page| page.writable());
        if let Some(page) = page
            && let Ok(word) = self.0.window().atomic_u32(page.at(at.page_offset()))
        {
            word.fetch_or(bits, core::sync::atomic::Ordering::Relaxed);
        }
    }
}
