//! A vCPU's registers and private devices: what belongs to the CPU that runs it, moved from one to the next with it.

use mm::addr::GuestPhys;
use mm::{Cached, P2mCache};
use sched::CpuSet;

use crate::engine::{Engine, Nested};
use crate::event::{Pending, Raised, exception};
use crate::fpu::FpuArea;
use crate::guest_paging::TableMemory;
use crate::host;
use crate::msr::{rdmsr, wrmsr};
use crate::policy::msr::VcpuMsrs;
use crate::regs::GuestRegs;
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

impl Context {
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
