//! CPUID: one policy a domain, computed when the domain is made; one answer an exit.
//!
//! What may be shown is in three tables: feature bits in [`super::features`], whole leaves in [`FROM_HOST`], extended
//! states in [`super::xstate`]. Everything else reads as zero, leaves beyond the highest included.

use alloc::vec::Vec;
use core::arch::x86_64::CpuidResult;

use mm::OutOfMemory;
use xen_abi::types::{DomainId, VcpuId};
use xen_abi::x86::{
    CpuidLeaf, XEN_CPUID_FIRST_LEAF, XEN_CPUID_HOST_TSC_RELIABLE, XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK,
    XEN_CPUID_MAX_NUM_LEAVES, XEN_CPUID_NO_SUBLEAF, XEN_CPUID_RDTSCP_INSTR_AVAIL, XEN_CPUID_SIGNATURE_EBX,
    XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX, XEN_CPUID_TSC_EMULATED, XEN_HVM_CPUID_DOMID_PRESENT,
    XEN_HVM_CPUID_VCPU_ID_PRESENT,
};

use super::Vendor;
use super::features::{self, Feature, FeatureSet};
use super::wire::{self, Leaves};
use super::xstate::{XCR0_AVX, XCR0_AVX512, XCR0_PKRU, XState};

/// `[eax, ebx, ecx, edx]`.
pub type Leaf = [u32; 4];

/// The highest basic leaf shown. What lies above tells frequencies, traces, enclaves and AMX: nothing a guest is given.
/// The frequency leaves 0x15 and 0x16 would also have Linux take the crystal for the local APIC's clock.
pub const MAX_BASIC: u32 = 0xd;
/// A guest has an emulated x2APIC on every host, and its topology is in leaf 0xB.
const MIN_BASIC: u32 = 0xb;
const BASIC: usize = MAX_BASIC as usize + 1;

pub const FIRST_EXTENDED: u32 = 0x8000_0000;
pub const MAX_EXTENDED_AMD: u32 = 0x8000_0021;
const MAX_EXTENDED_INTEL: u32 = 0x8000_0008;
const EXTENDED: usize = 0x22;

/// Cache descriptions that are kept of leaf 4.
pub const CACHES: usize = 6;
/// Subleaves of leaf 7 that are kept.
pub const STRUCTURED: usize = 3;
/// The highest of them.
pub const LAST_STRUCTURED: u32 = STRUCTURED as u32 - 1;
/// Levels of leaf 0xB.
pub const LEVELS: usize = 2;
const HYPERVISOR: usize = XEN_CPUID_MAX_NUM_LEAVES as usize + 1;
const TIME: usize = 3;

/// What is taken of the host's leaves as it is, apart from features: `(leaf, [eax, ebx, ecx, edx] masks)`.
const FROM_HOST: &[(u32, Leaf)] = &[
    // Signature; brand index and CLFLUSH size.
    (0x1, [u32::MAX, 0xffff, 0, 0]),
    // TLB and cache descriptors.
    (0x2, [u32::MAX; 4]),
    (0x8000_0001, [u32::MAX, u32::MAX, 0, 0]),
    // The name of the processor.
    (0x8000_0002, [u32::MAX; 4]),
    (0x8000_0003, [u32::MAX; 4]),
    (0x8000_0004, [u32::MAX; 4]),
    // Caches and TLBs, as AMD tells them.
    (0x8000_0005, [u32::MAX; 4]),
    (0x8000_0006, [u32::MAX; 4]),
    // Physical and linear address widths.
    (0x8000_0008, [0xffff, 0, 0, 0]),
    (0x8000_0019, [u32::MAX; 4]),
    // Performance hints.
    (0x8000_001a, [u32::MAX, 0, 0, 0]),
];

/// How a domain's TSC relates to time, as leaf 0x40000003 tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscInfo {
    /// RDTSC exits and is emulated.
    pub emulated: bool,
    /// The host's TSC runs at one rate, in all states, on all CPUs alike.
    pub reliable: bool,
    /// `XEN_CPUID_TSC_MODE_*`. Linux trusts the TSC as a clock only with "never emulate".
    pub mode: u32,
    /// The guest's frequency, in kHz.
    pub khz: u32,
    /// The host's frequency, in kHz.
    pub host_khz: u32,
    /// How often the domain has been migrated.
    pub incarnation: u32,
    /// Guest TSC minus host TSC.
    pub offset: u64,
    /// Nanoseconds a tick, as a fraction of 2^32 after `shift`.
    pub multiplier: u32,
    /// Applied to the ticks before the multiplication; negative shifts right.
    pub shift: i8,
}

/// What CPUID says of threads, cores and who shares a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// So many vCPUs, at least one.
    Vcpus(u32),
    /// As the host has it, for the toolstack to make a guest's of; leaf 0xB is left out.
    Host,
}

/// What a domain's policy depends on besides the host.
#[derive(Clone, Copy, Debug)]
pub struct CpuidOptions<'a> {
    /// The domain that it is for.
    pub domain: DomainId,
    /// How its vCPUs are laid out.
    pub topology: Topology,
    /// Major and minor version of Xen that is answered.
    pub version: (u16, u16),
    /// The domain's TSC.
    pub tsc: TscInfo,
    /// The states that the host switches between vCPUs, as bits of XCR0.
    pub xcr0_limit: u64,
    /// The guest's physical address width, if narrower than the host's.
    pub physical_bits: Option<u8>,
    /// Features of the host that this engine cannot give to a guest (a control that is missing).
    pub without: &'a [Feature],
    /// `XEN_HVM_CPUID_*` of leaf 0x40000004 that hold for this domain. Those that say what EBX and ECX have are added.
    pub hvm_features: u32,
}

impl Default for CpuidOptions<'_> {
    fn default() -> Self {
        CpuidOptions {
            domain: DomainId::DOM0,
            topology: Topology::Vcpus(1),
            version: (4, 20),
            tsc: TscInfo::default(),
            xcr0_limit: u64::MAX,
            physical_bits: None,
            without: &[],
            hvm_features: 0,
        }
    }
}

/// What an answer depends on at the moment it is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dynamic {
    /// The vCPU that asks.
    pub vcpu_id: VcpuId,
    /// Its (x2)APIC id; by Xen's convention twice its number.
    pub apic_id: u32,
    /// The CR4 that the guest believes it has.
    pub cr4: u64,
    /// Its XCR0.
    pub xcr0: u64,
    /// Its IA32_XSS.
    pub xss: u64,
    /// Whether its local APIC is enabled in IA32_APIC_BASE.
    pub apic_enabled: bool,
    /// Whether it runs 64-bit code: Intel shows SYSCALL only there.
    pub long_mode: bool,
}

/// What the toolstack's leaves depend on.
const AFTER_RESET: Dynamic =
    Dynamic { vcpu_id: VcpuId(0), apic_id: 0, cr4: 0, xcr0: 1, xss: 0, apic_enabled: true, long_mode: true };

/// Everything that CPUID says to one domain.
#[derive(Clone, Debug)]
pub struct CpuidPolicy {
    vendor: Vendor,
    features: FeatureSet,
    basic: [Leaf; BASIC],
    extended: [Leaf; EXTENDED],
    caches: [Leaf; CACHES],
    structured: [Leaf; STRUCTURED],
    hypervisor: [Leaf; HYPERVISOR],
    time: [Leaf; TIME],
    topology: [Leaf; LEVELS],
    xstate: XState,
}

impl CpuidPolicy {
    /// Computes a domain's policy. `host` is the CPUID instruction: `(leaf, subleaf)` to the four registers.
    pub fn for_domain(host: impl Fn(u32, u32) -> CpuidResult, options: &CpuidOptions) -> CpuidPolicy {
        let host = within(host);
        let (host_basic, host_extended) = (host(0, 0)[0], host(FIRST_EXTENDED, 0)[0]);
        let vendor = Vendor::of(host(0, 0));
        let xstate = XState::of_host(&host, options.xcr0_limit);
        let features = shown_features(&host, &xstate, options);
        let mut policy = CpuidPolicy::compose(vendor, features, xstate, &host);
        policy.hypervisor = hypervisor_leaves(options, host(0x8000_0008, 0)[0]);
        policy.time = time_leaves(&options.tsc);
        let highest = host_basic.clamp(MIN_BASIC, MAX_BASIC);
        policy.update(0, 0, |own| own[0] = highest);
        let max_extended = if vendor == Vendor::Amd { MAX_EXTENDED_AMD } else { MAX_EXTENDED_INTEL };
        policy.update(FIRST_EXTENDED, 0, |own| own[0] = host_extended.min(max_extended));
        policy.update(0x7, 0, |own| own[0] = host(0x7, 0)[0].min(LAST_STRUCTURED));
        policy.limit_addresses(options.physical_bits);
        match options.topology {
            Topology::Vcpus(vcpus) => policy.place_topology(host, vcpus.max(1)),
            Topology::Host => policy.take_topology(host),
        }
        policy
    }

    /// These features and states, and around them what else may be shown of the leaves that `seen` answers. Topology is left out.
    fn compose(vendor: Vendor, features: FeatureSet, xstate: XState, seen: impl Fn(u32, u32) -> Leaf) -> CpuidPolicy {
        let mut policy = CpuidPolicy {
            vendor,
            features,
            basic: [[0; 4]; BASIC],
            extended: [[0; 4]; EXTENDED],
            caches: [[0; 4]; CACHES],
            structured: [[0; 4]; STRUCTURED],
            hypervisor: [[0; 4]; HYPERVISOR],
            time: [[0; 4]; TIME],
            topology: [[0; 4]; LEVELS],
            xstate,
        };
        for &(leaf, masks) in FROM_HOST {
            let seen = seen(leaf, 0);
            policy.update(leaf, 0, |own| combine(own, seen, masks));
        }
        // The highest leaves, and the vendor.
        for leaf in [0, FIRST_EXTENDED] {
            let seen = seen(leaf, 0);
            policy.update(leaf, 0, |own| *own = seen);
        }
        policy.place_features();
        policy
    }

    /// This policy with what the toolstack wants in its place, as XEN_DOMCTL_set_cpu_policy has it: features, names, caches and topology.
    /// What goes beyond `most` is cut off. The leaves of the hypervisor stay as they are.
    ///
    /// A highest leaf or another vendor cannot be had by leaving something out: those are refused, by the leaf that says so.
    pub fn with(&self, wanted: &Leaves, most: &CpuidPolicy) -> Result<CpuidPolicy, (u32, u32)> {
        let seen = |leaf, subleaf| wanted.answer(leaf, subleaf);
        for leaf in [0, FIRST_EXTENDED] {
            if seen(leaf, 0)[0] > most.answer(leaf, 0, &Dynamic::default())[0] {
                return Err((leaf, XEN_CPUID_NO_SUBLEAF));
            }
        }
        if seen(0x7, 0)[0] > most.answer(0x7, 0, &Dynamic::default())[0] {
            return Err((0x7, 0));
        }
        if seen(0, 0)[1..] != most.answer(0, 0, &Dynamic::default())[1..] {
            return Err((0, XEN_CPUID_NO_SUBLEAF));
        }
        let mut features = FeatureSet::of_host(seen);
        features.intersect(&most.features);
        features.set(features::HYPERVISOR);
        features.settle();
        let xstate = most.xstate.limited_to(states_of(&features));
        let mut policy = CpuidPolicy::compose(self.vendor, features, xstate, seen);
        (policy.hypervisor, policy.time, policy.topology) = (self.hypervisor, self.time, self.topology);
        policy.update(0x7, 0, |own| own[0] = seen(0x7, 0)[0]);
        let [most_widths, ..] = most.answer(0x8000_0008, 0, &Dynamic::default());
        policy.narrow_addresses(most_widths);
        policy.take_topology(seen);
        if seen(0xb, 0)[1] & 0xffff != 0 {
            policy.topology = [0, 1].map(|level| {
                let [eax, ebx, ecx, _] = seen(0xb, level);
                [eax & 0x1f, ebx & 0xffff, ecx & 0xff00, 0]
            });
        }
        Ok(policy)
    }

    /// `XEN_CPUID_TSC_MODE_*`, as the domain sees it.
    pub fn tsc_mode(&self) -> u32 {
        let [[_, mode, ..], ..] = self.time;
        mode
    }

    pub fn set_tsc_mode(&mut self, to: u32) {
        let [[_, mode, ..], ..] = &mut self.time;
        *mode = to;
    }

    /// What the guest's CPUID instruction returns.
    #[inline]
    pub fn answer(&self, leaf: u32, subleaf: u32, now: &Dynamic) -> Leaf {
        match leaf {
            // Beyond the highest there is nothing, whatever is kept here.
            1..=MAX_BASIC if leaf > self.highest_basic() => [0; 4],
            0x1 => self.version_and_features(now),
            0x4 => pick(&self.caches, subleaf),
            0x7 => self.structured_features(subleaf, now),
            0xb => self.topology(subleaf, now.apic_id),
            0xd => self.extended_state(subleaf, now),
            0..=MAX_BASIC => pick(&self.basic, leaf),
            0x4000_0003 => pick(&self.time, subleaf),
            0x4000_0004 => self.hvm_leaf(now),
            XEN_CPUID_FIRST_LEAF..=0x4000_00ff => pick(&self.hypervisor, leaf & 0xff),
            0x8000_0001..=MAX_EXTENDED_AMD if leaf > self.highest_extended() => [0; 4],
            0x8000_0001 => self.extended_features(now),
            FIRST_EXTENDED..=MAX_EXTENDED_AMD => pick(&self.extended, leaf & 0xff),
            _ => [0; 4],
        }
    }

    /// The features that the domain is shown, in the order of Xen's feature set.
    pub fn features(&self) -> &FeatureSet {
        &self.features
    }

    /// The vendor that the domain sees, which is the host's.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// The states of XCR0 that the domain may enable.
    pub fn xstate(&self) -> &XState {
        &self.xstate
    }

    /// The domain's physical address width.
    pub fn physical_bits(&self) -> u8 {
        pick(&self.extended, 8)[0] as u8
    }

    #[inline]
    fn highest_basic(&self) -> u32 {
        pick(&self.basic, 0)[0]
    }

    #[inline]
    fn highest_extended(&self) -> u32 {
        pick(&self.extended, 0)[0]
    }

    /// The bits of CR4 that the domain may not set, for want of the feature (SDM Vol. 3, 2.5).
    pub fn cr4_reserved(&self) -> u64 {
        /// VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT: on every 64-bit CPU.
        const ALWAYS: u64 = 0x7ff;
        const ON_FEATURE: &[(Feature, u32)] = &[
            (features::UMIP, 11),
            (features::FSGSBASE, 16),
            (features::PCID, 17),
            (features::XSAVE, 18),
            (features::SMEP, 20),
            (features::SMAP, 21),
            (features::PKU, 22),
        ];
        !ON_FEATURE
            .iter()
            .filter(|(feature, _)| self.features.has(*feature))
            .fold(ALWAYS, |bits, (_, bit)| bits | 1 << (bit & 63))
    }

    /// Every leaf, as the toolstack reads them (XEN_DOMCTL_get_cpu_policy). What follows a vCPU's state is as after a reset.
    pub fn leaves(&self) -> Result<Vec<CpuidLeaf>, OutOfMemory> {
        wire::serialise(|leaf, subleaf| self.answer(leaf, subleaf, &AFTER_RESET))
    }

    /// The same without an array.
    pub fn for_each_leaf(&self, tell: impl FnMut(CpuidLeaf)) {
        wire::for_each(|leaf, subleaf| self.answer(leaf, subleaf, &AFTER_RESET), tell);
    }

    #[inline]
    fn version_and_features(&self, now: &Dynamic) -> Leaf {
        const CR4_OSXSAVE: u64 = 1 << 18;
        let [eax, ebx, mut ecx, mut edx] = pick(&self.basic, 1);
        if now.cr4 & CR4_OSXSAVE != 0 {
            ecx |= features::OSXSAVE.mask();
        }
        if !now.apic_enabled {
            edx &= !features::APIC.mask();
        }
        [eax, ebx | now.apic_id << 24, ecx, edx]
    }

    #[inline]
    fn structured_features(&self, subleaf: u32, now: &Dynamic) -> Leaf {
        const CR4_PKE: u64 = 1 << 22;
        let [eax, ebx, mut ecx, edx] = pick(&self.structured, subleaf);
        if subleaf == 0 && now.cr4 & CR4_PKE != 0 {
            ecx |= features::OSPKE.mask();
        }
        [eax, ebx, ecx, edx]
    }

    /// Leaf 0xB (SDM Vol. 2A, CPUID).
    fn topology(&self, subleaf: u32, apic_id: u32) -> Leaf {
        let [eax, ebx, ecx, _] = pick(&self.topology, subleaf);
        [eax, ebx, ecx | subleaf & 0xff, apic_id]
    }

    fn extended_state(&self, subleaf: u32, now: &Dynamic) -> Leaf {
        if !self.features.has(features::XSAVE) {
            return [0; 4];
        }
        let [_, _, _, _, features, ..] = self.features.0;
        self.xstate.answer(subleaf, features, now.xcr0, now.xss)
    }

    fn hvm_leaf(&self, now: &Dynamic) -> Leaf {
        let [eax, _, ecx, edx] = pick(&self.hypervisor, 4);
        [eax, now.vcpu_id.0, ecx, edx]
    }

    fn extended_features(&self, now: &Dynamic) -> Leaf {
        let [eax, ebx, ecx, mut edx] = pick(&self.extended, 1);
        if self.vendor == Vendor::Intel && !now.long_mode {
            edx &= !features::SYSCALL.mask();
        }
        if self.vendor == Vendor::Amd && !now.apic_enabled {
            edx &= !features::APIC.mask();
        }
        [eax, ebx, ecx, edx]
    }

    /// Applies `change` to a stored leaf; to one that is not kept, nothing happens.
    fn update(&mut self, leaf: u32, subleaf: u32, change: impl FnOnce(&mut Leaf)) {
        let (table, index): (&mut [Leaf], u32) = match leaf {
            0x4 => (&mut self.caches, subleaf),
            0x7 => (&mut self.structured, subleaf),
            0xb => (&mut self.topology, subleaf),
            // Leaf 0xD is answered by `xstate` alone.
            0xd => return,
            FIRST_EXTENDED..=MAX_EXTENDED_AMD => (&mut self.extended, leaf & 0xff),
            _ => (&mut self.basic, leaf),
        };
        if let Some(own) = table.get_mut(index as usize) {
            change(own);
        }
    }

    fn place_features(&mut self) {
        /// Bits of leaf 1 EDX that AMD repeats in leaf 0x80000001 EDX (APM Vol. 3, E.4.2).
        const REPEATED: u32 = 0x0183_f3ff;
        let features = self.features;
        for (word, value) in features.words() {
            self.update(word.leaf, word.subleaf, |own| {
                if let Some(register) = own.get_mut(word.register) {
                    *register |= value;
                }
            });
        }
        if self.vendor == Vendor::Amd {
            let [leaf_1_edx, ..] = self.features.0;
            self.update(0x8000_0001, 0, |own| own[3] |= leaf_1_edx & REPEATED);
        }
    }

    /// Each vCPU a core of its own with one thread, every other APIC id left out. The leaves that older software counts by say the same.
    fn place_topology(&mut self, host: impl Fn(u32, u32) -> Leaf, vcpus: u32) {
        const THREAD: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        let id_bits = vcpus.saturating_mul(2).checked_next_power_of_two().map_or(31, u32::trailing_zeros);
        let ids = 1u32.checked_shl(id_bits).unwrap_or(u32::MAX);
        self.topology = [[1, 1, THREAD, 0], [id_bits, vcpus, CORE, 0]];
        self.update(0x1, 0, |own| own[1] |= ids.min(255) << 16);
        if self.vendor == Vendor::Amd {
            // NC and ApicIdSize.
            self.update(0x8000_0008, 0, |own| own[2] = (vcpus.min(256).saturating_sub(1)) | id_bits.min(15) << 12);
            return;
        }
        for (index, own) in (0u32..).zip(self.caches.iter_mut()) {
            let [eax, ebx, ecx, edx] = host(0x4, index);
            let (kind, level) = (eax & 0x1f, eax >> 5 & 0x7);
            if kind == 0 {
                break;
            }
            // The first two levels belong to a core and its two APIC ids; the last is everybody's.
            let sharing = if level < 3 { 2 } else { ids.min(4096) };
            let cores = (ids / 2).clamp(1, 64);
            *own = [eax & 0x3fff | sharing.saturating_sub(1) << 14 | cores.saturating_sub(1) << 26, ebx, ecx, edx];
        }
    }

    /// Caches and topology as `seen` has them, apart from leaf 0xB.
    fn take_topology(&mut self, seen: impl Fn(u32, u32) -> Leaf) {
        const LOGICAL_PROCESSORS: u32 = 0xff << 16;
        let [_, ebx, ..] = seen(0x1, 0);
        self.update(0x1, 0, |own| own[1] |= ebx & LOGICAL_PROCESSORS);
        let [_, _, sizes, _] = seen(0x8000_0008, 0);
        if self.vendor == Vendor::Amd {
            const NC_AND_APIC_ID_SIZE: u32 = 0xf0ff;
            self.update(0x8000_0008, 0, |own| own[2] = sizes & NC_AND_APIC_ID_SIZE);
        } else {
            for (index, own) in (0..).zip(self.caches.iter_mut()) {
                let cache = seen(0x4, index);
                if cache[0] & 0x1f == 0 {
                    break;
                }
                *own = cache;
            }
        }
    }

    fn limit_addresses(&mut self, physical_bits: Option<u8>) {
        let [eax, ..] = pick(&self.extended, 8);
        let physical = physical_bits.map_or(eax & 0xff, |limit| u32::from(limit).min(eax & 0xff));
        self.update(0x8000_0008, 0, |own| own[0] = physical | (eax >> 8 & 0xff).min(LINEAR_BITS) << 8);
    }

    /// Takes the address widths back to what can be had, `most` being EAX of leaf 0x80000008.
    fn narrow_addresses(&mut self, most: u32) {
        /// What paging needs at the least (SDM Vol. 3, 4.1.4: without the leaf a CPU with PAE has 36).
        const LEAST: u32 = 36;
        let physical = most & 0xff;
        let linear = if self.features.has(features::LM) { most >> 8 & 0xff } else { 32 };
        self.update(0x8000_0008, 0, |own| {
            let wanted = own[0] & 0xff;
            own[0] = wanted.max(LEAST).min(physical) | linear << 8;
        });
    }
}

/// The CPUID instruction within its highest leaves: beyond the highest basic one Intel answers with that one's data.
pub fn within(host: impl Fn(u32, u32) -> CpuidResult) -> impl Fn(u32, u32) -> Leaf {
    let (basic, extended) = (host(0, 0).eax, host(FIRST_EXTENDED, 0).eax);
    move |leaf, subleaf| match leaf {
        0..FIRST_EXTENDED if leaf > basic => [0; 4],
        FIRST_EXTENDED.. if leaf > extended => [0; 4],
        _ => {
            let CpuidResult { eax, ebx, ecx, edx } = host(leaf, subleaf);
            [eax, ebx, ecx, edx]
        }
    }
}

/// Five-level paging is not shown.
const LINEAR_BITS: u32 = 48;

/// The features that go with a state of XCR0 that the guest may not enable.
const STATES: &[(u64, Feature)] =
    &[(XCR0_AVX, features::AVX), (XCR0_AVX512, features::AVX512F), (XCR0_PKRU, features::PKU)];

/// The states that go with these features.
fn states_of(features: &FeatureSet) -> u64 {
    let missing = STATES.iter().filter(|(_, feature)| !features.has(*feature));
    missing.fold(u64::MAX, |states, (state, _)| states & !state)
}

/// The features of the host that this domain is shown, and those that it has from the hypervisor.
fn shown_features(host: impl Fn(u32, u32) -> Leaf, xstate: &XState, options: &CpuidOptions) -> FeatureSet {
    /// Emulated, whatever the host has.
    const EMULATED: &[Feature] =
        &[features::APIC, features::X2APIC, features::TSC_DEADLINE, features::HTT, features::HYPERVISOR];
    let mut set = FeatureSet::of_host(host);
    for &feature in EMULATED {
        set.set(feature);
    }
    for &(state, feature) in STATES {
        if xstate.xcr0 & state == 0 {
            set.clear(feature);
        }
    }
    // These two are the guest's own doing, whatever the host did to its CR4.
    for &feature in options.without.iter().chain(&[features::OSXSAVE, features::OSPKE]) {
        set.clear(feature);
    }
    set.settle();
    set
}

fn hypervisor_leaves(options: &CpuidOptions, host_widths: u32) -> [Leaf; HYPERVISOR] {
    /// Where the hypercall page's MSR is.
    const FIRST_MSR: u32 = super::msr::XEN_HYPERCALL_PAGE;
    let (major, minor) = options.version;
    let highest = XEN_CPUID_FIRST_LEAF | XEN_CPUID_MAX_NUM_LEAVES;
    let present = XEN_HVM_CPUID_VCPU_ID_PRESENT | XEN_HVM_CPUID_DOMID_PRESENT;
    [
        [highest, XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX],
        [u32::from(major) << 16 | u32::from(minor), 0, 0, 0],
        [1, FIRST_MSR, 0, 0],
        [0; 4],
        [options.hvm_features | present, 0, u32::from(options.domain.0), 0],
        [0, host_widths & XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK, 0, 0],
    ]
}

fn time_leaves(tsc: &TscInfo) -> [Leaf; TIME] {
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    let flags = flag(tsc.emulated, XEN_CPUID_TSC_EMULATED)
        | flag(tsc.reliable, XEN_CPUID_HOST_TSC_RELIABLE)
        | XEN_CPUID_RDTSCP_INSTR_AVAIL;
    [
        [flags, tsc.mode, tsc.khz, tsc.incarnation],
        [tsc.offset as u32, (tsc.offset >> 32) as u32, tsc.multiplier, i32::from(tsc.shift) as u32],
        [tsc.host_khz, 0, 0, 0],
    ]
}

fn combine(own: &mut Leaf, seen: Leaf, masks: Leaf) {
    for ((own, seen), mask) in own.iter_mut().zip(seen).zip(masks) {
        *own |= seen & mask;
    }
}

#[inline]
fn pick(table: &[Leaf], index: u32) -> Leaf {
    table.get(index as usize).copied().unwrap_or_default()
}

#[cfg(test)]
#[path = "cpuid_tests.rs"]
pub(crate) mod tests;
