//! What SVM on this CPU offers: required parts, whose absence stops Corten with their names, and optional ones (APM Vol. 3, Fn8000_000A).
//!
//! BOOT: it is read once, on each CPU that starts.

use alloc::string::String;
use core::arch::x86_64::CpuidResult;

use bitflags::bitflags;

use crate::engine::Wishes;

/// MSRs of SVM (APM Vol. 2, 15.30).
pub mod msr {
    pub const EFER: u32 = 0xc000_0080;
    pub const VM_CR: u32 = 0xc001_0114;
    pub const VM_HSAVE_PA: u32 = 0xc001_0117;
}

/// VM_CR: EFER.SVME cannot be set.
const SVM_DISABLED: u64 = 1 << 4;

bitflags! {
    /// Fn8000_000A, EDX.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u32 {
        const NESTED_PAGING = 1 << 0;
        const NEXT_RIP = 1 << 3;
        const CLEAN_BITS = 1 << 5;
        const FLUSH_BY_ASID = 1 << 6;
        const DECODE_ASSISTS = 1 << 7;
    }
}

/// The capabilities of one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    pub features: Features,
    /// Address-space identifiers, with the host's.
    pub asids: u32,
    pub gigabyte_pages: bool,
    /// `vpid=no`: a new identifier for every entry.
    pub keep_translations: bool,
}

/// CPUID says that there is SVM.
pub fn has_svm(cpuid: impl Fn(u32) -> CpuidResult) -> bool {
    cpuid(0x8000_0000).eax >= 0x8000_000a && cpuid(0x8000_0001).ecx & 1 << 2 != 0
}

impl Caps {
    /// The error is one line for the user.
    pub fn read(
        cpuid: impl Fn(u32) -> CpuidResult,
        rdmsr: impl Fn(u32) -> Option<u64>,
        wishes: Wishes,
    ) -> Result<Caps, String> {
        if rdmsr(msr::VM_CR).is_some_and(|value| value & SVM_DISABLED != 0) {
            return Err("SVM is disabled by firmware; enable virtualisation (SVM mode) in the firmware's setup".into());
        }
        let leaf = cpuid(0x8000_000a);
        let features = Features::from_bits_truncate(leaf.edx);
        if !features.contains(Features::NESTED_PAGING) {
            return Err("this CPU's SVM lacks nested paging (NPT), which Corten needs".into());
        }
        if leaf.ebx < 2 {
            return Err(alloc::format!("this CPU's SVM has {} address-space identifiers; Corten needs 2", leaf.ebx));
        }
        let gigabyte_pages = cpuid(0x8000_0001).edx & 1 << 26 != 0;
        Ok(Caps { features, asids: leaf.ebx, gigabyte_pages, keep_translations: wishes.vpid })
    }

    pub fn has(&self, features: Features) -> bool {
        self.features.contains(features)
    }

    /// What there is of the optional parts, for the log.
    pub fn summary(&self) -> String {
        let mut line =
            alloc::format!("NPT{}, {} ASIDs", if self.gigabyte_pages { ", 1 GiB pages" } else { "" }, self.asids);
        for (feature, name) in [(Features::NEXT_RIP, ", next RIP"), (Features::CLEAN_BITS, ", clean bits")] {
            if self.has(feature) {
                line.push_str(name);
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WISHES: Wishes = Wishes { vpid: true };

    fn cpu(svm: bool, nested: bool) -> impl Fn(u32) -> CpuidResult {
        move |leaf| {
            let (mut eax, mut ebx, mut ecx, mut edx) = (0, 0, 0, 0);
            match leaf {
                0x8000_0000 => eax = 0x8000_001f,
                0x8000_0001 => (ecx, edx) = (u32::from(svm) << 2, 1 << 26),
                0x8000_000a => (ebx, edx) = (16, u32::from(nested) | 1 << 5),
                _ => {}
            }
            CpuidResult { eax, ebx, ecx, edx }
        }
    }

    #[test]
    fn a_cpu_with_nested_paging_is_taken() {
        let caps = Caps::read(cpu(true, true), |_| Some(0), WISHES).unwrap();
        assert!(caps.has(Features::CLEAN_BITS) && !caps.has(Features::NEXT_RIP));
        assert_eq!(caps.summary(), "NPT, 1 GiB pages, 16 ASIDs, clean bits");
    }

    #[test]
    fn svm_is_looked_for_only_where_its_leaf_is() {
        assert!(has_svm(cpu(true, true)));
        assert!(!has_svm(cpu(false, true)));
        assert!(!has_svm(|_| CpuidResult { eax: 0x8000_0008, ebx: 0, ecx: 4, edx: 0 }));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Caps::read(cpu(true, false), |_| Some(0), WISHES).unwrap_err();
        assert_eq!(error, "this CPU's SVM lacks nested paging (NPT), which Corten needs");
        let error = Caps::read(cpu(true, true), |_| Some(0x18), WISHES).unwrap_err();
        assert!(error.starts_with("SVM is disabled by firmware"), "{error}");
    }
}
