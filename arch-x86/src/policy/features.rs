//! The features that a guest may be shown: one row a CPUID register, one name a bit.
//!
//! The words are numbered as in Xen's `arch-x86/cpufeatureset.h`, so that a [`FeatureSet`] is what
//! `XEN_SYSCTL_get_cpu_featureset` returns. A bit without a name here is never shown.

/// One feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    word: usize,
    mask: u32,
}

/// A register of a CPUID leaf, as an index into `[eax, ebx, ecx, edx]`.
const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Where a word of features lives, and which of its bits may be shown.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// The CPUID leaf.
    pub leaf: u32,
    /// Its subleaf; zero where there is none.
    pub subleaf: u32,
    /// Index into `[eax, ebx, ecx, edx]`.
    pub register: usize,
    /// The bits that have a name below.
    pub shown: u32,
}

macro_rules! words {
    ($( $index:literal: $leaf:literal, $subleaf:literal, $register:ident { $($name:ident = $bit:literal),* $(,)? } )*) => {
        $($(
            #[doc = concat!("CPUID ", stringify!($leaf), ".", stringify!($subleaf), ".", stringify!($register), " bit ", stringify!($bit), ".")]
            pub const $name: Feature = Feature { word: $index, mask: 1 << $bit };
        )*)*
        /// Every word of features, in the order of Xen's feature set.
        pub const WORDS: [Word; 19] = [
            $( Word { leaf: $leaf, subleaf: $subleaf, register: $register, shown: 0 $(| (1 << $bit))* } ),*
        ];
    };
}

words! {
    0: 0x1, 0, EDX {
        FPU = 0, VME = 1, DE = 2, PSE = 3, TSC = 4, MSR = 5, PAE = 6, MCE = 7, CX8 = 8, APIC = 9, SEP = 11, MTRR = 12,
        PGE = 13, MCA = 14, CMOV = 15, PAT = 16, PSE36 = 17, CLFLUSH = 19, MMX = 23, FXSR = 24, SSE = 25, SSE2 = 26,
        SS = 27, HTT = 28,
    }
    // OSXSAVE is no host feature but the guest's CR4; it is named for the answer to set it.
    1: 0x1, 0, ECX {
        SSE3 = 0, PCLMULQDQ = 1, SSSE3 = 9, FMA = 12, CX16 = 13, PCID = 17, SSE4_1 = 19, SSE4_2 = 20, X2APIC = 21,
        MOVBE = 22, POPCNT = 23, TSC_DEADLINE = 24, AESNI = 25, XSAVE = 26, OSXSAVE = 27, AVX = 28, F16C = 29,
        RDRAND = 30, HYPERVISOR = 31,
    }
    2: 0x80000001, 0, EDX { SYSCALL = 11, NX = 20, MMXEXT = 22, PAGE1GB = 26, RDTSCP = 27, LM = 29, AMD3DNOWEXT = 30, AMD3DNOW = 31 }
    3: 0x80000001, 0, ECX {
        LAHF_LM = 0, CR8_LEGACY = 4, ABM = 5, SSE4A = 6, MISALIGNSSE = 7, PREFETCHW = 8, XOP = 11, FMA4 = 16, TBM = 21,
    }
    4: 0xd, 1, EAX { XSAVEOPT = 0, XSAVEC = 1, XGETBV1 = 2, XSAVES = 3 }
    5: 0x7, 0, EBX {
        FSGSBASE = 0, TSC_ADJUST = 1, BMI1 = 3, AVX2 = 5, FDP_EXCP_ONLY = 6, SMEP = 7, BMI2 = 8, ERMS = 9, INVPCID = 10,
        NO_FPU_SEL = 13, AVX512F = 16, AVX512DQ = 17, RDSEED = 18, ADX = 19, SMAP = 20, AVX512_IFMA = 21,
        CLFLUSHOPT = 23, CLWB = 24, AVX512CD = 28, SHA = 29, AVX512BW = 30, AVX512VL = 31,
    }
    // OSPKE, like OSXSAVE, follows CR4.
    6: 0x7, 0, ECX {
        PREFETCHWT1 = 0, AVX512_VBMI = 1, UMIP = 2, PKU = 3, OSPKE = 4, AVX512_VBMI2 = 6, GFNI = 8, VAES = 9,
        VPCLMULQDQ = 10, AVX512_VNNI = 11, AVX512_BITALG = 12, AVX512_VPOPCNTDQ = 14, RDPID = 22, CLDEMOTE = 25,
    }
    7: 0x80000007, 0, EDX { ITSC = 8 }
    8: 0x80000008, 0, EBX {
        CLZERO = 0, RSTR_FP_ERR_PTRS = 2, IBPB = 12, IBRS = 14, AMD_STIBP = 15, IBRS_ALWAYS = 16, STIBP_ALWAYS = 17,
        IBRS_FAST = 18, IBRS_SAME_MODE = 19, AMD_SSBD = 24, SSB_NO = 26, PSFD = 28, BTC_NO = 29, IBPB_RET = 30,
    }
    9: 0x7, 0, EDX {
        FSRM = 4, MD_CLEAR = 10, SERIALIZE = 14, AVX512_FP16 = 23, IBRSB = 26, STIBP = 27, L1D_FLUSH = 28,
        ARCH_CAPS = 29, SSBD = 31,
    }
    10: 0x7, 1, EAX {
        SHA512 = 0, SM3 = 1, SM4 = 2, AVX_VNNI = 4, AVX512_BF16 = 5, FZRM = 10, FSRS = 11, FSRCS = 12, AVX_IFMA = 23,
    }
    11: 0x80000021, 0, EAX {
        NO_NEST_BP = 0, FS_GS_NS = 1, LFENCE_DISPATCH = 2, VERW_CLEAR = 5, NSCB = 6, AMD_FSRS = 10, AMD_FSRC = 11,
        EPSF = 18, FSRSC = 19, AMD_PREFETCHI = 20, SBPB = 27, IBPB_BRTYPE = 28, SRSO_NO = 29, SRSO_US_NO = 30,
    }
    12: 0x7, 1, EBX { }
    13: 0x7, 2, EDX { INTEL_PSFD = 0, IPRED_CTRL = 1, RRSBA_CTRL = 2, BHI_CTRL = 4, MCDT_NO = 5 }
    14: 0x7, 1, ECX { }
    15: 0x7, 1, EDX { AVX_VNNI_INT8 = 4, AVX_NE_CONVERT = 5, AVX_VNNI_INT16 = 10, PREFETCHI = 14 }
    // MSR_ARCH_CAPABILITIES, low and high half: no CPUID leaf, so they stay empty here and `msr` answers them.
    16: 0xffffffff, 0, EAX { }
    17: 0xffffffff, 0, EAX { }
    18: 0x80000021, 0, ECX { TSA_SQ_NO = 1, TSA_L1_NO = 2 }
}

/// The leaf of a word that is in none.
const NO_LEAF: u32 = 0xffff_ffff;
/// The first of the two words of IA32_ARCH_CAPABILITIES.
const CAPABILITIES: usize = 16;

/// What goes with a feature when it goes: the second needs the first. Rows are in order, so that a chain falls in one pass.
const NEEDS: &[(Feature, &[Feature])] = &[
    (XSAVE, &[AVX, PKU, XSAVEOPT, XSAVEC, XGETBV1, XSAVES]),
    (XSAVEC, &[XSAVES]),
    (
        AVX,
        &[
            FMA,
            FMA4,
            F16C,
            AVX2,
            XOP,
            VAES,
            VPCLMULQDQ,
            AVX_VNNI,
            AVX_IFMA,
            AVX_VNNI_INT8,
            AVX_NE_CONVERT,
            AVX_VNNI_INT16,
            SHA512,
            SM3,
            SM4,
            AVX512F,
        ],
    ),
    (AVX2, &[AVX512F]),
    (
        AVX512F,
        &[
            AVX512DQ,
            AVX512_IFMA,
            AVX512CD,
            AVX512BW,
            AVX512VL,
            AVX512_VBMI,
            AVX512_VBMI2,
            AVX512_VNNI,
            AVX512_BITALG,
            AVX512_VPOPCNTDQ,
            AVX512_FP16,
            AVX512_BF16,
        ],
    ),
    // One execution control of VMX lets both instructions through.
    (RDTSCP, &[RDPID]),
    (PCID, &[INVPCID]),
    // Everything whose switch is a bit of MSR_SPEC_CTRL needs the MSR.
    (IBRSB, &[STIBP, SSBD, INTEL_PSFD, IPRED_CTRL, RRSBA_CTRL, BHI_CTRL]),
    (IBPB, &[IBRS, AMD_STIBP, AMD_SSBD, PSFD, IBRS_ALWAYS, STIBP_ALWAYS, IBRS_FAST, IBRS_SAME_MODE, IBPB_RET, SBPB]),
];

/// A set of features, a word each, in the order of Xen's feature set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet(pub [u32; WORDS.len()]);

impl FeatureSet {
    /// The features of this host that may be shown at all. `host` answers a leaf and subleaf with `[eax, ebx, ecx, edx]`.
    pub fn of_host(host: impl Fn(u32, u32) -> [u32; 4]) -> FeatureSet {
        let mut set = FeatureSet::default();
        for (value, word) in set.0.iter_mut().zip(WORDS.iter()) {
            if word.shown != 0 {
                *value = host(word.leaf, word.subleaf).get(word.register).copied().unwrap_or_default() & word.shown;
            }
        }
        set
    }

    /// Every feature of this host, with a name here or without.
    pub fn raw(host: impl Fn(u32, u32) -> [u32; 4]) -> FeatureSet {
        let mut set = FeatureSet::default();
        for (value, word) in set.0.iter_mut().zip(WORDS.iter()).filter(|(_, word)| word.leaf != NO_LEAF) {
            *value = host(word.leaf, word.subleaf).get(word.register).copied().unwrap_or_default();
        }
        set
    }

    /// With IA32_ARCH_CAPABILITIES in its two words, as the toolstack has it.
    pub fn with_capabilities(mut self, value: u64) -> FeatureSet {
        let [low, high] = [value as u32, (value >> 32) as u32];
        for (own, half) in self.0.iter_mut().skip(CAPABILITIES).zip([low, high]) {
            *own = half;
        }
        self
    }

    /// Whether the feature is there.
    pub fn has(&self, feature: Feature) -> bool {
        self.0.get(feature.word).is_some_and(|word| word & feature.mask != 0)
    }

    /// Adds a feature.
    pub fn set(&mut self, feature: Feature) {
        if let Some(word) = self.0.get_mut(feature.word) {
            *word |= feature.mask;
        }
    }

    /// Takes a feature away; [`FeatureSet::settle`] takes what needs it.
    pub fn clear(&mut self, feature: Feature) {
        if let Some(word) = self.0.get_mut(feature.word) {
            *word &= !feature.mask;
        }
    }

    /// Takes away what the other set has not.
    pub fn intersect(&mut self, other: &FeatureSet) {
        self.0.iter_mut().zip(other.0).for_each(|(own, other)| *own &= other);
    }

    /// Takes away what cannot be without something that is missing.
    pub fn settle(&mut self) {
        for &(needed, by) in NEEDS {
            if !self.has(needed) {
                by.iter().for_each(|&feature| self.clear(feature));
            }
        }
    }

    /// The words with the place where each belongs.
    pub fn words(&self) -> impl Iterator<Item = (&'static Word, u32)> {
        WORDS.iter().zip(self.0).filter(|(word, _)| word.shown != 0)
    }
}

impl Feature {
    /// The bit in its register.
    pub const fn mask(self) -> u32 {
        self.mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualisation_monitor_and_the_pmu_have_no_name_and_are_not_shown() {
        let everything = FeatureSet::of_host(|_, _| [u32::MAX; 4]);
        let [_, ecx, _, extended, ..] = everything.0;
        assert_eq!(ecx & (1 << 3), 0, "MONITOR");
        assert_eq!(ecx & (1 << 5), 0, "VMX");
        assert_eq!(ecx & (1 << 15), 0, "PDCM");
        assert_eq!(extended & (1 << 2), 0, "SVM");
    }

    #[test]
    fn without_xsave_there_is_no_avx_and_nothing_that_needs_it() {
        let mut set = FeatureSet::of_host(|_, _| [u32::MAX; 4]);
        set.clear(XSAVE);
        set.settle();
        for gone in [AVX, AVX2, AVX512F, AVX512VL, FMA, VAES, PKU, XSAVES] {
            assert!(!set.has(gone), "{gone:?}");
        }
        assert!(set.has(SSE4_2) && set.has(BMI2));
    }

    #[test]
    fn a_host_without_features_gives_none() {
        assert_eq!(FeatureSet::of_host(|_, _| [0; 4]), FeatureSet::default());
    }
}
