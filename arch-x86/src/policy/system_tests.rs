use hypervisor::cpu_policy::{MAX_LEAVES, MAX_MSRS, NOTHING, Refused};
use proptest::prelude::*;
use xen_abi::x86::{CpuidLeaf, XEN_CPUID_NO_SUBLEAF};

use super::super::cpuid::Dynamic;
use super::super::cpuid::tests::{amd, intel};
use super::super::features::Feature;
use super::*;

type Host = fn(u32, u32) -> CpuidResult;

fn msr(number: u32) -> Option<u64> {
    Some(if number == wire::ARCH_CAPABILITIES { u64::MAX } else { 0 })
}

fn machine(host: Host) -> Box<SystemPolicies> {
    SystemPolicies::new(
        host,
        msr,
        &CpuidOptions { without: &[features::IBRSB, features::IBPB], ..CpuidOptions::default() },
    )
    .unwrap()
}

/// A domain of four vCPUs as it is made, before the toolstack says anything.
fn domain(host: Host) -> GuestPolicy {
    let options = CpuidOptions {
        topology: Topology::Vcpus(4),
        without: &[features::IBRSB, features::IBPB, features::ITSC],
        ..CpuidOptions::default()
    };
    let cpuid = CpuidPolicy::for_domain(host, &options);
    let options = MsrOptions { hardware_domain: false, pat_switched: true, physical_bits: cpuid.physical_bits() };
    let msr = MsrPolicy::for_domain(msr, &cpuid, &options);
    GuestPolicy::new(cpuid, msr)
}

fn leaf(leaf: u32, subleaf: u32, [a, b, c, d]: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf { leaf, subleaf, a, b, c, d }
}

const NO: u32 = XEN_CPUID_NO_SUBLEAF;

fn find(policy: &CpuPolicy, number: u32, subleaf: u32) -> Option<CpuidLeaf> {
    policy.leaves.iter().copied().find(|l| (l.leaf, l.subleaf) == (number, subleaf))
}

fn set(host: Host, leaves: &[CpuidLeaf], msrs: &[MsrEntry]) -> Result<GuestPolicy, Refused> {
    domain(host).with(leaves, msrs, &machine(host).hvm_max)
}

const HVM: [u32; 2] = [XEN_SYSCTL_CPU_POLICY_HVM_MAX, XEN_SYSCTL_CPU_POLICY_HVM_DEFAULT];

#[test]
fn every_policy_fits_the_arrays_that_the_toolstack_makes_room_for() {
    for host in [intel as Host, amd] {
        for index in [XEN_SYSCTL_CPU_POLICY_RAW, XEN_SYSCTL_CPU_POLICY_HOST, HVM[0], HVM[1]] {
            let policy = machine(host).policy(index).unwrap();
            assert!(policy.leaves.len() <= MAX_LEAVES as usize && policy.msrs.len() == MAX_MSRS as usize);
            assert!(policy.leaves.is_sorted_by_key(|l| (l.leaf, l.subleaf)));
        }
    }
}

#[test]
fn paravirtual_guests_have_no_policy_and_no_features() {
    for index in [XEN_SYSCTL_CPU_POLICY_PV_MAX, XEN_SYSCTL_CPU_POLICY_PV_DEFAULT] {
        assert_eq!(machine(intel).policy(index), Err(Errno::EOPNOTSUPP));
    }
    for index in [XEN_SYSCTL_CPU_FEATURESET_PV, XEN_SYSCTL_CPU_FEATURESET_PV_MAX] {
        assert_eq!(machine(intel).features(index), Err(Errno::EOPNOTSUPP));
    }
    assert_eq!(machine(intel).policy(6), Err(Errno::EINVAL));
    assert_eq!(machine(intel).features(6), Err(Errno::EINVAL));
}

#[test]
fn the_default_is_the_most_without_a_promise_about_the_tsc() {
    let machine = machine(intel);
    let [most, default] = [XEN_SYSCTL_CPU_FEATURESET_HVM_MAX, XEN_SYSCTL_CPU_FEATURESET_HVM]
        .map(|index| machine.features(index).unwrap());
    assert!(most.has(features::ITSC) && !default.has(features::ITSC));
    let mut without = most;
    without.clear(features::ITSC);
    assert_eq!(default, without);
    let [.., low, high, _] = most.0;
    assert_ne!(low, 0, "flaws that this CPU has not");
    assert_eq!(high, 1 << 30);
    let [first, ..] = machine.features(XEN_SYSCTL_CPU_FEATURESET_RAW).unwrap().0;
    assert_eq!(first, u32::MAX, "the host's are not cut");
}

#[test]
fn leaf_0xb_is_left_to_the_domain_and_the_rest_of_the_topology_is_the_hosts() {
    let policy = machine(intel).policy(XEN_SYSCTL_CPU_POLICY_HVM_DEFAULT).unwrap();
    let levels: std::vec::Vec<_> = policy.leaves.iter().filter(|l| l.leaf == 0xb).collect();
    assert_eq!(levels, [&leaf(0xb, 0, [0; 4])]);
    assert_eq!(find(&policy, 4, 0).unwrap().a, 0x1c00_4121);
    assert_eq!(find(&policy, 1, NO).unwrap().b, 0x0010_0800);
    let sent = set(intel, &policy.leaves, &policy.msrs).unwrap();
    let now = Dynamic { apic_id: 6, ..Dynamic::default() };
    assert_eq!(sent.cpuid.answer(0xb, 1, &now), [3, 4, 0x201, 6]);
    assert_eq!(sent.cpuid.answer(4, 0, &now)[0], 0x1c00_4121);
}

#[test]
fn a_domain_gets_back_what_it_had_and_is_as_it_was() {
    for host in [intel as Host, amd] {
        let before = domain(host);
        let wire = before.to_wire().unwrap();
        let after = set(host, &wire.leaves, &wire.msrs).unwrap();
        assert_eq!(after.to_wire().unwrap(), wire);
        assert_eq!(after.cr4_allowed, before.cr4_allowed);
        for number in [0x4000_0000, 0x4000_0003, 0x4000_0004] {
            let now = Dynamic::default();
            assert_eq!(after.cpuid.answer(number, 0, &now), before.cpuid.answer(number, 0, &now));
        }
        assert_eq!(set(host, &[], &[]).unwrap().to_wire().unwrap(), wire, "nothing sent, nothing changed");
    }
}

#[test]
fn features_that_the_machine_cannot_give_are_cut_off() {
    let greedy =
        [leaf(1, NO, [u32::MAX; 4]), leaf(7, 0, [2, u32::MAX, u32::MAX, u32::MAX]), leaf(0xd, 1, [u32::MAX; 4])];
    let policy = set(intel, &greedy, &[]).unwrap();
    let most = machine(intel).hvm_max;
    let mut cut = *policy.cpuid.features();
    cut.intersect(most.cpuid.features());
    assert_eq!(cut, *policy.cpuid.features());
    let [_, _, ecx, _] = policy.cpuid.answer(1, 0, &Dynamic::default());
    assert_eq!(ecx & 1 << 5, 0, "VMX");
    assert_eq!(policy.cpuid.answer(7, 0, &Dynamic::default())[3] & 1 << 26, 0, "IBRS");
}

#[test]
fn a_feature_left_out_takes_its_state_its_cr4_bit_and_its_msr_with_it() {
    let wanted = |feature: Feature| {
        let mut leaves = domain(intel).to_wire().unwrap().leaves;
        let mut kept = *domain(intel).cpuid.features();
        kept.clear(feature);
        for (word, value) in kept.words() {
            let is_its = |l: &&mut CpuidLeaf| l.leaf == word.leaf && (l.subleaf == word.subleaf || l.subleaf == NO);
            if let Some(l) = leaves.iter_mut().find(is_its) {
                *[&mut l.a, &mut l.b, &mut l.c, &mut l.d][word.register] &= value | !word.shown;
            }
        }
        set(intel, &leaves, &[]).unwrap()
    };
    let policy = wanted(features::SMEP);
    assert_eq!(policy.cr4_allowed >> 20 & 1, 0);
    let policy = wanted(features::AVX512F);
    assert!(!policy.cpuid.features().has(features::AVX512VL));
    assert!(!policy.cpuid.xstate().may_enable(0x2e7) && policy.cpuid.xstate().may_enable(0x207));
    assert_eq!(policy.cpuid.answer(0xd, 5, &Dynamic::default()), [0; 4]);
    let policy = wanted(features::RDTSCP);
    assert!(!policy.msr.passthrough().any(|row| row.msr == 0xc000_0103));
    assert!(domain(intel).msr.passthrough().any(|row| row.msr == 0xc000_0103));
    let policy = wanted(features::ARCH_CAPS);
    assert_eq!(policy.to_wire().unwrap().msrs[1].val, 0);
    assert_ne!(domain(intel).to_wire().unwrap().msrs[1].val, 0);
}

#[test]
fn a_lower_highest_leaf_hides_what_lies_above() {
    let [_, b, c, d] = domain(intel).cpuid.answer(0, 0, &Dynamic::default());
    let policy = set(intel, &[leaf(0, NO, [4, b, c, d])], &[]).unwrap();
    assert!(!policy.cpuid.features().has(features::SMEP));
    for number in [7, 0xb, 0xd] {
        assert_eq!(policy.cpuid.answer(number, 0, &Dynamic::default()), [0; 4]);
    }
    assert_eq!(policy.to_wire().unwrap().leaves.iter().rfind(|l| l.leaf < 0x8000_0000).unwrap().leaf, 4);
}

#[test]
fn what_cannot_be_cut_off_is_refused_by_the_leaf_that_says_so() {
    let [_, b, c, d] = domain(intel).cpuid.answer(0, 0, &Dynamic::default());
    for (sent, at) in [
        (leaf(0, NO, [0xe, b, c, d]), (0, NO)),
        (leaf(0, NO, [0xd, b, c ^ 1, d]), (0, NO)),
        (leaf(7, 0, [3, 0, 0, 0]), (7, 0)),
        (leaf(0x8000_0000, NO, [0x8000_0009, 0, 0, 0]), (0x8000_0000, NO)),
    ] {
        let refused = set(intel, &[sent], &[]).unwrap_err();
        assert_eq!(refused, Refused { error: Errno::EINVAL, leaf: at.0, subleaf: at.1, msr: NOTHING });
    }
}

/// As libxenguest 4.20 itself takes and refuses them.
#[test]
fn leaves_and_msrs_that_no_policy_has_are_out_of_range() {
    for (number, subleaf, fits) in [
        (0, 0, false),
        (0xe, NO, false),
        (4, 5, true),
        (4, 6, false),
        (7, 3, false),
        (0xb, 1, true),
        (0xb, 2, false),
        (0xd, 62, true),
        (0xd, 63, false),
        (0x4000_0000, NO, true),
        (0x4000_0100, NO, true),
        (0x4000_0000, 0, false),
        (0x4000_0001, NO, false),
        (0x8000_0021, NO, true),
        (0x8000_0022, NO, false),
        (4, NO, false),
        (0x2000_0000, NO, false),
    ] {
        let answer = set(amd, &[leaf(number, subleaf, [0; 4])], &[]).map(drop);
        let refused = Refused { error: Errno::ERANGE, leaf: number, subleaf, msr: NOTHING };
        assert_eq!(answer, if fits { Ok(()) } else { Err(refused) }, "{number:#x} {subleaf:#x}");
    }
    for (idx, flags, val, error) in [
        (wire::PLATFORM_INFO, 0, 0, None),
        (wire::PLATFORM_INFO, 0, 1 << 31, Some(Errno::EINVAL)),
        (wire::PLATFORM_INFO, 0, u64::MAX, Some(Errno::EOVERFLOW)),
        (wire::ARCH_CAPABILITIES, 0, u64::MAX, None),
        (wire::ARCH_CAPABILITIES, 1, 0, Some(Errno::EINVAL)),
        (0xdead_c0de, 0, 0, Some(Errno::ERANGE)),
    ] {
        let answer = set(intel, &[], &[MsrEntry { idx, flags, val }]).map(drop);
        assert_eq!(answer, error.map_or(Ok(()), |error| Err(Refused::msr(error, idx))), "{idx:#x} {val:#x}");
    }
}

#[test]
fn addresses_get_no_wider_and_not_too_narrow() {
    let widths = |eax| {
        set(intel, &[leaf(0x8000_0008, NO, [eax, 0, 0, 0])], &[]).unwrap().cpuid.answer(
            0x8000_0008,
            0,
            &Dynamic::default(),
        )[0]
    };
    assert_eq!(widths(0x3934), 0x3030);
    assert_eq!(widths(0x3028), 0x3028);
    assert_eq!(widths(0), 0x3024);
}

proptest! {
    #[test]
    fn whatever_is_sent_a_domain_has_no_feature_that_the_machine_cannot_give(
        leaves in proptest::collection::vec(
            (
                prop_oneof![0..0xfu32, 0x8000_0000..0x8000_0024u32],
                prop_oneof![Just(NO), 0..4u32],
                any::<[u32; 4]>(),
            ),
            0..40,
        ),
        capabilities in any::<u64>(),
    ) {
        let sent: std::vec::Vec<_> = leaves.into_iter().map(|(number, subleaf, registers)| leaf(number, subleaf, registers)).collect();
        // Whoever makes mistakes is told of the first; the rest is tried without it.
        let accepted: std::vec::Vec<_> = sent.into_iter().filter(|l| set(intel, &[*l], &[]).is_ok()).collect();
        let entry = MsrEntry { idx: wire::ARCH_CAPABILITIES, flags: 0, val: capabilities };
        let most = machine(intel).hvm_max;
        if let Ok(policy) = set(intel, &accepted, &[entry]) {
            let mut cut = *policy.cpuid.features();
            cut.intersect(most.cpuid.features());
            prop_assert_eq!(cut, *policy.cpuid.features());
            prop_assert_eq!(policy.cr4_allowed & !most.cr4_allowed, 0);
            prop_assert_eq!(policy.msr.capabilities() & !most.msr.capabilities(), 0);
            prop_assert_eq!(policy.cpuid.xstate().xcr0 & !most.cpuid.xstate().xcr0, 0);
            prop_assert!(policy.cpuid.physical_bits() <= most.cpuid.physical_bits());
            for row in policy.msr.passthrough() {
                prop_assert!(most.msr.passthrough().any(|other| other == row));
            }
        }
    }
}

#[test]
fn without_memory_there_is_no_policy_to_be_had_but_an_error() {
    let (machine, domain) = (machine(intel), domain(intel));
    for index in [XEN_SYSCTL_CPU_POLICY_HOST, HVM[0], HVM[1]] {
        assert_eq!(mm::fake::each_failure(|| machine.policy(index)), [Errno::ENOMEM; 2]);
    }
    assert_eq!(mm::fake::each_failure(|| domain.to_wire()), [OutOfMemory; 2]);
    let wire = domain.to_wire().unwrap();
    let with = || domain.with(&wire.leaves, &wire.msrs, &machine.hvm_max);
    assert_eq!(mm::fake::each_failure(with), []);
    let options = CpuidOptions::default();
    let failures = mm::fake::each_failure(|| SystemPolicies::new(intel as Host, msr, &options));
    assert_eq!(failures, [OutOfMemory; 6]);
}
