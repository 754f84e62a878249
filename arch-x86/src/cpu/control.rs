//! What every processor has switched on while the host runs.

use core::arch::x86_64::__cpuid_count;

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
    /// Pages of 1 GiB.
    pub huge_pages: bool,
}

impl Protections {
    /// What this processor has.
    pub fn detect() -> Self {
        let highest = __cpuid_count(0, 0).eax;
        let basic = __cpuid_count(1, 0);
        let structured = if highest >= 7 { __cpuid_count(7, 0) } else { __cpuid_count(0x8000_0000, 0) };
        let (ebx, ecx) = if highest >= 7 { (structured.ebx, structured.ecx) } else { (0, 0) };
        let extended = __cpuid_count(0x8000_0001, 0);
        Self {
            no_execute: extended.edx & 1 << 20 != 0,
            smep: ebx & 1 << 7 != 0,
            smap: ebx & 1 << 20 != 0,
            umip: ecx & 1 << 2 != 0,
            global_pages: basic.edx & 1 << 13 != 0,
            huge_pages: extended.edx & 1 << 26 != 0,
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
        cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, self.smep);
        cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, self.smap);
        cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, self.umip);
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
