//! What every processor has switched on while the host runs.

use raw_cpuid::{CpuId, ExtendedFeatures};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::model_specific::{Efer, EferFlags, Msr};

use crate::paging;

const IA32_PAT: u32 = 0x277;

/// What the processor protects the host with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protections {
    /// Pages can be made not executable. Required.
    pub no_execute: bool,
    /// The host never executes what user mode can reach.
    pub smep: bool,
    /// The host never touches what user mode can reach.
    pub smap: bool,
    /// User mode cannot read the descriptor-table registers.
    pub umip: bool,
    pub global_pages: bool,
    /// Machine checks are exceptions, and not the end without a word.
    pub machine_checks: bool,
    /// Pages of 1 GiB.
    pub huge_pages: bool,
}

impl Protections {
    /// What this processor has.
    pub fn detect() -> Self {
        let cpuid = CpuId::new();
        let structured = cpuid.get_extended_feature_info();
        let structured = |has: fn(&ExtendedFeatures) -> bool| structured.as_ref().is_some_and(has);
        let extended = cpuid.get_extended_processor_and_feature_identifiers();
        Self {
            no_execute: extended.as_ref().is_some_and(|has| has.has_execute_disable()),
            smep: structured(ExtendedFeatures::has_smep),
            smap: structured(ExtendedFeatures::has_smap),
            umip: structured(ExtendedFeatures::has_umip),
            global_pages: cpuid.get_feature_info().is_some_and(|has| has.has_pge()),
            machine_checks: cpuid.get_feature_info().is_some_and(|has| has.has_mce()),
            huge_pages: extended.is_some_and(|has| has.has_1gib_pages()),
        }
    }

    /// Switches them on, and sets [`paging::PAT`].
    ///
    /// # Safety
    /// Called on each processor once, before page tables are in use that rely on it. Nothing may be mapped with the bits whose
    /// meaning the PAT changes.
    pub unsafe fn enable(self) {
        let mut cr4 = Cr4::read();
        cr4.set(Cr4Flags::PAGE_GLOBAL, self.global_pages);
        cr4.set(Cr4Flags::MACHINE_CHECK_EXCEPTION, self.machine_checks);
        cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, self.smep);
        cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, self.smap);
        cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, self.umip);
        // Without it FXSAVE may leave the XMM registers out (SDM Vol. 3, 2.5).
        cr4.insert(Cr4Flags::OSFXSR);
        // SAFETY: only bits that the processor has are set; the host has no user-mode pages, so none of them takes anything away.
        unsafe {
            Efer::update(|efer| efer.set(EferFlags::NO_EXECUTE_ENABLE, self.no_execute));
            Cr0::update(|cr0| {
                cr0.insert(Cr0Flags::WRITE_PROTECT | Cr0Flags::NUMERIC_ERROR | Cr0Flags::MONITOR_COPROCESSOR);
                cr0.remove(Cr0Flags::CACHE_DISABLE | Cr0Flags::NOT_WRITE_THROUGH | Cr0Flags::EMULATE_COPROCESSOR);
                cr0.remove(Cr0Flags::TASK_SWITCHED | Cr0Flags::ALIGNMENT_MASK);
            });
            Cr4::write(cr4);
            Msr::new(IA32_PAT).write(paging::PAT);
        }
    }
}
