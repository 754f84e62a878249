use super::*;
use xen_abi::x86::XEN_HVM_CPUID_UPCALL_VECTOR;

fn leaf(registers: Leaf) -> CpuidResult {
    let [eax, ebx, ecx, edx] = registers;
    CpuidResult { eax, ebx, ecx, edx }
}

/// An Intel CPU with everything, that answers beyond its highest leaf as Intel does: with rubbish.
pub fn intel(number: u32, subleaf: u32) -> CpuidResult {
    leaf(match (number, subleaf) {
        (0, _) => [0x1f, u32::from_le_bytes(*b"Genu"), u32::from_le_bytes(*b"ntel"), u32::from_le_bytes(*b"ineI")],
        (1, _) => [0x50654, 0x0510_0800, u32::MAX, u32::MAX],
        (4, 0) => [0x1c00_4121, 0x01c0_003f, 63, 0],
        (4, 1) => [0x1c00_4143, 0x03c0_003f, 1023, 0],
        (4, 2) => [0x1c03_c163, 0x0280_003f, 0xffff, 4],
        (4, _) => [0; 4],
        (7, 0) => [2, u32::MAX, u32::MAX, u32::MAX],
        (0xd, 0) => [0x2e7, 2696, 2696, 0],
        (0xd, 1) => [0xf, 2696, 0x100, 0],
        (0xd, 2) => [256, 576, 0, 0],
        (0xd, 5) => [64, 1088, 0, 0],
        (0xd, 6) => [512, 1152, 0, 0],
        (0xd, 7) => [1024, 1664, 0, 0],
        (0xd, 9) => [8, 2688, 0, 0],
        (0xd, _) => [0; 4],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0008, _) => [0x3930, 0, 0, 0],
        _ => [u32::MAX; 4],
    })
}

pub fn amd(number: u32, subleaf: u32) -> CpuidResult {
    leaf(match (number, subleaf) {
        (0, _) => [0xd, u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"cAMD"), u32::from_le_bytes(*b"enti")],
        (0x8000_0000, _) => [0x8000_001f, 0, 0, 0],
        (0x8000_0008, _) => [0x3030, 0, 0x4007, 0],
        (0xd, 0) => [7, 832, 832, 0],
        (0xd, 2) => [256, 576, 0, 0],
        (0xd, _) => [0; 4],
        _ => [u32::MAX; 4],
    })
}

fn dom0(vcpus: u32) -> CpuidPolicy {
    CpuidPolicy::for_domain(intel, &CpuidOptions { topology: Topology::Vcpus(vcpus), ..CpuidOptions::default() })
}

fn vcpu(id: u32) -> Dynamic {
    Dynamic { vcpu_id: VcpuId(id), apic_id: id * 2, xcr0: 1, apic_enabled: true, long_mode: true, ..Dynamic::default() }
}

#[test]
fn the_hypervisor_says_it_is_xen_4_20() {
    let policy = dom0(1);
    assert_eq!(policy.answer(0x4000_0000, 0, &vcpu(0)), [0x4000_0005, 0x566e6558, 0x65584d4d, 0x4d4d566e]);
    assert_eq!(policy.answer(0x4000_0001, 0, &vcpu(0)), [4 << 16 | 20, 0, 0, 0]);
    assert_eq!(policy.answer(0x4000_0002, 0, &vcpu(0)), [1, 0x4000_0000, 0, 0]);
    assert_eq!(policy.answer(0x4000_0005, 0, &vcpu(0)), [0, 0x30, 0, 0]);
    assert_eq!(policy.answer(0x4000_0006, 0, &vcpu(0)), [0; 4]);
    assert_eq!(policy.answer(0x4000_0100, 0, &vcpu(0)), [0; 4]);
}

#[test]
fn a_vcpu_reads_its_number_and_its_domain() {
    let options = CpuidOptions {
        domain: DomainId(7),
        topology: Topology::Vcpus(4),
        hvm_features: XEN_HVM_CPUID_UPCALL_VECTOR,
        ..CpuidOptions::default()
    };
    let policy = CpuidPolicy::for_domain(intel, &options);
    assert_eq!(policy.answer(0x4000_0004, 0, &vcpu(3)), [0b101_1000, 3, 7, 0]);
}

#[test]
fn the_time_leaf_tells_the_frequency_the_offset_and_the_scale() {
    let tsc = TscInfo {
        reliable: true,
        mode: 2,
        khz: 2_000_000,
        host_khz: 3_000_000,
        offset: 0x1_2345_6789,
        multiplier: 0x8000_0000,
        shift: -1,
        ..TscInfo::default()
    };
    let policy = CpuidPolicy::for_domain(intel, &CpuidOptions { tsc, ..CpuidOptions::default() });
    assert_eq!(policy.answer(0x4000_0003, 0, &vcpu(0)), [0b110, 2, 2_000_000, 0]);
    assert_eq!(policy.answer(0x4000_0003, 1, &vcpu(0)), [0x2345_6789, 1, 0x8000_0000, u32::MAX]);
    assert_eq!(policy.answer(0x4000_0003, 2, &vcpu(0)), [3_000_000, 0, 0, 0]);
    assert_eq!(policy.answer(0x4000_0003, 3, &vcpu(0)), [0; 4]);
}

#[test]
fn virtualisation_monitor_and_the_pmu_are_hidden_and_the_hypervisor_is_not() {
    let [_, _, ecx, edx] = dom0(1).answer(1, 0, &vcpu(0));
    for (name, bit) in [("MONITOR", 3), ("VMX", 5), ("SMX", 6), ("EIST", 7), ("PDCM", 15), ("OSXSAVE", 27)] {
        assert_eq!(ecx >> bit & 1, 0, "{name}");
    }
    assert_eq!(edx >> 21 & 1, 0, "DS");
    for (name, bit) in [("X2APIC", 21), ("TSC-deadline", 24), ("XSAVE", 26), ("hypervisor", 31)] {
        assert_eq!(ecx >> bit & 1, 1, "{name}");
    }
    for number in [3, 5, 6, 8, 9, 0xa, 0xc, 0xe, 0xf, 0x10, 0x12, 0x14, 0x15, 0x1f, 0x20, 0x8000_000a, 0x8000_001e] {
        assert_eq!(dom0(1).answer(number, 0, &vcpu(0)), [0; 4], "leaf {number:#x}");
    }
    let [_, _, ecx, _] = CpuidPolicy::for_domain(amd, &CpuidOptions::default()).answer(0x8000_0001, 0, &vcpu(0));
    assert_eq!(ecx >> 2 & 1, 0, "SVM");
    assert_eq!(ecx >> 22 & 1, 0, "TOPOEXT");
}

#[test]
fn osxsave_and_ospke_follow_cr4() {
    let policy = dom0(1);
    let off = vcpu(0);
    let on = Dynamic { cr4: 1 << 18 | 1 << 22, ..off };
    assert_eq!(policy.answer(1, 0, &off)[2] >> 27 & 1, 0);
    assert_eq!(policy.answer(1, 0, &on)[2] >> 27 & 1, 1);
    assert_eq!(policy.answer(7, 0, &off)[2] >> 4 & 1, 0);
    assert_eq!(policy.answer(7, 0, &on)[2] >> 4 & 1, 1);
    assert_eq!(policy.answer(7, 1, &on)[2] >> 4 & 1, 0, "only in subleaf 0");
}

#[test]
fn a_disabled_apic_is_not_shown() {
    let policy = dom0(1);
    assert_eq!(policy.answer(1, 0, &vcpu(0))[3] >> 9 & 1, 1);
    assert_eq!(policy.answer(1, 0, &Dynamic { apic_enabled: false, ..vcpu(0) })[3] >> 9 & 1, 0);
}

#[test]
fn the_save_area_grows_with_xcr0() {
    let policy = dom0(1);
    assert_eq!(policy.answer(0xd, 0, &vcpu(0)), [0x2e7, 576, 2696, 0]);
    assert_eq!(policy.answer(0xd, 0, &Dynamic { xcr0: 7, ..vcpu(0) }), [0x2e7, 832, 2696, 0]);
    assert_eq!(policy.answer(0xd, 1, &Dynamic { xcr0: 7, ..vcpu(0) })[..2], [0xf, 832]);
}

#[test]
fn a_state_that_is_not_switched_takes_its_features_with_it() {
    let options = CpuidOptions { xcr0_limit: 0b11, ..CpuidOptions::default() };
    let policy = CpuidPolicy::for_domain(intel, &options);
    assert!(!policy.features().has(features::AVX));
    assert!(!policy.features().has(features::AVX512F));
    assert!(!policy.features().has(features::PKU));
    assert_eq!(policy.cr4_reserved() >> 22 & 1, 1, "CR4.PKE is reserved then");
    assert_eq!(policy.answer(0xd, 0, &vcpu(0)), [0b11, 576, 576, 0]);
}

#[test]
fn a_feature_that_the_engine_lacks_is_not_shown() {
    let options = CpuidOptions { without: &[features::RDTSCP, features::INVPCID], ..CpuidOptions::default() };
    let policy = CpuidPolicy::for_domain(intel, &options);
    assert_eq!(policy.answer(0x8000_0001, 0, &vcpu(0))[3] >> 27 & 1, 0);
    assert_eq!(policy.answer(7, 0, &vcpu(0))[1] >> 10 & 1, 0);
    assert_eq!(policy.answer(7, 0, &vcpu(0))[2] >> 22 & 1, 0, "RDPID goes with RDTSCP");
}

#[test]
fn each_vcpu_is_a_core_with_an_even_apic_id() {
    let policy = dom0(3);
    let [_, ebx, _, _] = policy.answer(1, 0, &vcpu(2));
    assert_eq!(ebx >> 24, 4);
    assert_eq!(ebx >> 16 & 0xff, 8, "addressable ids");
    assert_eq!(ebx >> 8 & 0xff, 8, "CLFLUSH size is the host's");
    assert_eq!(policy.answer(0xb, 0, &vcpu(2)), [1, 1, 0x100, 4]);
    assert_eq!(policy.answer(0xb, 1, &vcpu(2)), [3, 3, 0x201, 4]);
    assert_eq!(policy.answer(0xb, 2, &vcpu(2)), [0, 0, 2, 4]);
}

#[test]
fn the_first_caches_belong_to_a_core_and_the_last_to_all() {
    let policy = dom0(4);
    let sharers = |eax: u32| (eax >> 14 & 0xfff) + 1;
    let cores = |eax: u32| (eax >> 26) + 1;
    let l1 = policy.answer(4, 0, &vcpu(0));
    assert_eq!((sharers(l1[0]), cores(l1[0]), l1[1]), (2, 4, 0x01c0_003f));
    assert_eq!(sharers(policy.answer(4, 2, &vcpu(0))[0]), 8);
    assert_eq!(policy.answer(4, 3, &vcpu(0)), [0; 4]);
}

#[test]
fn address_widths_are_the_hosts_unless_narrowed_and_never_five_level() {
    assert_eq!(dom0(1).answer(0x8000_0008, 0, &vcpu(0))[0], 0x3030);
    let options = CpuidOptions { physical_bits: Some(40), ..CpuidOptions::default() };
    assert_eq!(CpuidPolicy::for_domain(intel, &options).answer(0x8000_0008, 0, &vcpu(0))[0], 0x3028);
}

#[test]
fn amd_repeats_the_basic_features_and_counts_cores() {
    let policy =
        CpuidPolicy::for_domain(amd, &CpuidOptions { topology: Topology::Vcpus(4), ..CpuidOptions::default() });
    let [_, _, _, edx] = policy.answer(0x8000_0001, 0, &vcpu(0));
    assert_eq!(edx & 0x0183_f3ff, 0x0183_f3ff);
    assert_eq!(policy.answer(0x8000_0008, 0, &vcpu(0))[2], 3 << 12 | 3);
    assert_eq!(policy.answer(0x8000_0000, 0, &vcpu(0))[0], 0x8000_001f);
    assert_eq!(policy.answer(0x8000_0021, 0, &vcpu(0)), [0; 4], "the host does not have it");
}

#[test]
fn intel_shows_syscall_only_to_64_bit_code() {
    let policy = dom0(1);
    assert_eq!(policy.answer(0x8000_0001, 0, &vcpu(0))[3] >> 11 & 1, 1);
    assert_eq!(policy.answer(0x8000_0001, 0, &Dynamic { long_mode: false, ..vcpu(0) })[3] >> 11 & 1, 0);
}

#[test]
fn beyond_the_highest_leaf_everything_is_zero() {
    let policy = dom0(1);
    assert_eq!(policy.answer(0, 0, &vcpu(0))[0], 0xd);
    assert_eq!(policy.answer(0x8000_0000, 0, &vcpu(0))[0], 0x8000_0008);
    for number in [0xe, 0x3fff_ffff, 0x4000_0006, 0x7fff_ffff, 0x8000_0009, 0x8000_0022, u32::MAX] {
        assert_eq!(policy.answer(number, 0, &vcpu(0)), [0; 4], "leaf {number:#x}");
    }
}

#[test]
fn the_toolstack_sees_what_the_guest_sees() {
    let policy = dom0(2);
    let leaves = policy.leaves().unwrap();
    assert!(!leaves.iter().any(|l| (0x4000_0000..0x8000_0000).contains(&l.leaf)), "not a policy's to choose");
    assert!(leaves.iter().any(|l| (l.leaf, l.subleaf, l.a, l.b) == (0xd, 2, 256, 576)));
    assert!(leaves.iter().any(|l| (l.leaf, l.a) == (0xa, 0)), "up to the highest all are told");
    assert!(leaves.is_sorted_by_key(|l| (l.leaf, l.subleaf)));
}

#[test]
fn a_real_hosts_policy_never_shows_more_than_the_host_has() {
    let real = |number, subleaf| core::arch::x86_64::__cpuid_count(number, subleaf);
    let policy = CpuidPolicy::for_domain(real, &CpuidOptions::default());
    let emulated = features::X2APIC.mask() | features::TSC_DEADLINE.mask() | features::HYPERVISOR.mask();
    assert_eq!(policy.answer(1, 0, &vcpu(0))[2] & !emulated & !real(1, 0).ecx, 0);
}
