//! Which processor this is, and what the faults of some need where the firmware has not done it.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};

use raw_cpuid::CpuId;

use crate::fault::rdmsr_safe;
use crate::msr::wrmsr;
use crate::policy::Vendor;

const ARCH_CAPABILITIES: u32 = 0x10a;
const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
const INT_PENDING_MESSAGE: u32 = 0xc001_0055;
const LS_CFG: u32 = 0xc001_1020;

/// A processor's maker, family and model, the extended parts included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    pub vendor: Vendor,
    pub family: u8,
    pub model: u8,
}

impl Model {
    /// This CPU's.
    pub fn here() -> Model {
        let CpuidResult { eax, ebx, ecx, edx } = __cpuid_count(0, 0);
        let vendor = Vendor::of([eax, ebx, ecx, edx]);
        let found = CpuId::new().get_feature_info();
        let (family, model) = found.map_or((0, 0), |has| (has.family_id(), has.model_id()));
        Model { vendor, family, model }
    }
}

/// Bits of an MSR that have to be clear, and others that have to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Remedy {
    msr: u32,
    clear: u64,
    set: u64,
}

fn remedy(of: Model) -> Option<Remedy> {
    match (of.vendor, of.family, of.model) {
        // Erratum 400: in C1E, which follows a HLT of all cores, the local APIC's timer stands still. Revision Guide for family 10h, and BKDG for MSRC001_0055.
        // Firmware that switches it on only when Dom0 takes ACPI over (SMI_CMD) is not met by this.
        (Vendor::Amd, 0x10, _) => Some(Remedy { msr: INT_PENDING_MESSAGE, clear: 0b11 << 27, set: 0 }),
        // Erratum 793: an instruction with LOCK beside a write to write-combining memory can hang the core. Revision Guide for family 16h, models 00h-0Fh.
        (Vendor::Amd, 0x16, 0x00..=0x0f) => Some(Remedy { msr: LS_CFG, clear: 0, set: 1 << 15 }),
        _ => None,
    }
}

/// Whoever runs on a CPU like this can stop the machine, by a change of the size of a page that code runs in which is not followed by a flush: a machine check
/// that nothing survives (CVE-2018-12207, "Machine Check Error Avoidance on Page Size Change"). Below another hypervisor the tables are its own.
pub fn breaks_on_large_code() -> bool {
    let is_fine = || rdmsr_safe(ARCH_CAPABILITIES).is_some_and(|value| value & IF_PSCHANGE_MC_NO != 0);
    let tells = __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & 1 << 29 != 0;
    may_break_on_large_code(Model::here()) && !is_below_another() && !(tells && is_fine())
}

/// All of Intel's but those of the Atom and Xeon Phi lines (Intel's list of affected processors). Later ones say that they are not.
fn may_break_on_large_code(of: Model) -> bool {
    const FINE: [u8; 20] = [
        0x1c, 0x26, 0x27, 0x35, 0x36, 0x37, 0x4a, 0x4c, 0x4d, 0x57, 0x5a, 0x5c, 0x5d, 0x5f, 0x75, 0x7a, 0x85, 0x86,
        0x96, 0x9c,
    ];
    of.vendor == Vendor::Intel && of.family == 6 && !FINE.contains(&of.model)
}

/// CMPXCHG16B, which changes ZF alone, makes RFLAGS of what was compared before it: bits that no processor has, NT and IF among them, and from an exit to the
/// entry that follows they stay. Linux's next IRET faults (QEMU's TCG before 8.0, which takes flags from an operation that is not the last one).
pub fn spoils_flags() -> bool {
    if !CpuId::new().get_feature_info().is_some_and(|has| has.has_cmpxchg16b()) {
        return false;
    }
    #[repr(align(16))]
    struct Operand([u64; 2]);
    const RESERVED: u64 = 1 << 15;
    let mut operand = Operand([0; 2]);
    let flags: u64;
    // TCG's mistake is seen if everything behind POPFQ is translated in one piece: aligned, it does not cross into another page.
    // SAFETY: the operand is aligned, and nobody else's; the flags are loaded as they are.
    unsafe {
        asm!(".p2align 6", "pushfq", "popfq", "cmp rax, {compared}", "cmpxchg16b [{operand}]", "pushfq", "pop {flags}",
            compared = in(reg) RESERVED, operand = in(reg) &raw mut operand.0, flags = lateout(reg) flags,
            inout("rax") 0u64 => _, inout("rdx") 0u64 => _, in("rcx") 0u64);
    }
    flags & RESERVED != 0
}

/// Another hypervisor has this CPU.
pub fn is_below_another() -> bool {
    CpuId::new().get_feature_info().is_some_and(|has| has.has_hypervisor())
}

/// Does what this CPU's faults need. Below another hypervisor that is its to do.
pub fn work_around() {
    if is_below_another() {
        return;
    }
    let Some(Remedy { msr, clear, set }) = remedy(Model::here()) else { return };
    let Some(now) = rdmsr_safe(msr) else { return };
    let wanted = now & !clear | set;
    if wanted != now {
        // SAFETY: the MSR is there, and the bits are those that its maker says to change.
        unsafe { wrmsr(msr, wanted) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_models_that_have_the_fault_are_treated() {
        let on = |vendor, family, model| remedy(Model { vendor, family, model }).map(|remedy| remedy.msr);
        assert_eq!(on(Vendor::Amd, 0x10, 4), Some(INT_PENDING_MESSAGE));
        assert_eq!((on(Vendor::Amd, 0x16, 0), on(Vendor::Amd, 0x16, 0x30)), (Some(LS_CFG), None));
        assert_eq!((on(Vendor::Amd, 0x17, 1), on(Vendor::Intel, 0x10, 4)), (None, None));
        let breaks = |vendor, family, model| may_break_on_large_code(Model { vendor, family, model });
        assert!(breaks(Vendor::Intel, 6, 0x55) && !breaks(Vendor::Intel, 6, 0x5c) && !breaks(Vendor::Amd, 6, 0x55));
    }
}
