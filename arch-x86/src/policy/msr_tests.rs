use core::arch::x86_64::CpuidResult;

use super::super::cpuid::CpuidOptions;
use super::super::mtrr::MtrrRegister;
use super::*;

fn cpuid(vendor: Vendor, without: &[Feature]) -> CpuidPolicy {
    let name = if vendor == Vendor::Amd { b"AuthcAMDenti" } else { b"GenuntelineI" };
    let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
    let (ebx, ecx, edx) = (word(0), word(4), word(8));
    let host = move |leaf, _| match leaf {
        0 => CpuidResult { eax: 0xd, ebx, ecx, edx },
        _ => CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX },
    };
    CpuidPolicy::for_domain(host, &CpuidOptions { without, ..CpuidOptions::default() })
}

const DOM0: MsrOptions = MsrOptions { hardware_domain: true, pat_switched: true, physical_bits: 40 };

fn policy(vendor: Vendor) -> MsrPolicy {
    MsrPolicy::for_domain(|msr| Some(u64::MAX ^ u64::from(msr)), &cpuid(vendor, &[]), &DOM0)
}

fn read(msr: u32) -> MsrRead {
    policy(Vendor::Intel).read(msr, &VcpuMsrs::default())
}

fn write(msr: u32, value: u64) -> MsrWrite {
    policy(Vendor::Intel).write(msr, value, &mut VcpuMsrs::default())
}

#[test]
fn an_msr_without_a_row_faults() {
    for msr in [
        0,
        0x34,
        0xe2,
        0x345,
        0x38f,
        0x480,
        0xd90,
        0xda1,
        0x1000,
        0x4000_0001,
        0x4b56_4d00,
        0xc000_0104,
        0xc001_0117,
        u32::MAX,
    ] {
        assert_eq!(read(msr), MsrRead::Gp, "{msr:#x}");
        assert_eq!(write(msr, 0), MsrWrite::Gp, "{msr:#x}");
    }
}

#[test]
fn what_linux_reads_without_a_guard_is_answered() {
    let intel = [
        0x17, 0x1b, 0x3a, 0x8b, 0xce, 0xfe, 0x179, 0x17a, 0x1a0, 0x1d9, 0x200, 0x20f, 0x250, 0x258, 0x26f, 0x277,
        0x2ff, 0x400, 0x407,
    ];
    let amd = [
        0x1b,
        0x8b,
        0xfe,
        0x179,
        0x2ff,
        0xc001_0010,
        0xc001_0015,
        0xc001_001a,
        0xc001_001d,
        0xc001_001f,
        0xc001_0058,
        0xc001_0112,
        0xc001_0114,
        0xc001_1029,
    ];
    for (vendor, msrs) in [(Vendor::Intel, &intel[..]), (Vendor::Amd, &amd[..])] {
        for &msr in msrs {
            assert_ne!(policy(vendor).read(msr, &VcpuMsrs::default()), MsrRead::Gp, "{vendor:?} {msr:#x}");
        }
    }
}

#[test]
fn one_vendors_msrs_do_not_exist_on_the_other() {
    assert_eq!(read(0xc001_0015), MsrRead::Gp);
    assert_eq!(policy(Vendor::Amd).read(0x17, &VcpuMsrs::default()), MsrRead::Gp);
    assert_eq!(policy(Vendor::Amd).read(0x1a0, &VcpuMsrs::default()), MsrRead::Gp);
}

#[test]
fn virtualisation_is_locked_off() {
    assert_eq!(read(0x3a), MsrRead::Value(1));
    assert_eq!(write(0x3a, 5), MsrWrite::Gp);
    assert_eq!(policy(Vendor::Amd).read(0xc001_0114, &VcpuMsrs::default()), MsrRead::Value(0x18));
}

#[test]
fn the_x2apic_range_belongs_to_the_local_apic() {
    assert_eq!(read(0x802), MsrRead::Device(DeviceMsr::X2Apic(2)));
    assert_eq!(write(0x80b, 0), MsrWrite::Device(DeviceMsr::X2Apic(0xb)));
    assert_eq!(write(0x8ff, 0), MsrWrite::Device(DeviceMsr::X2Apic(0xff)));
    assert_eq!(read(0x900), MsrRead::Gp);
}

#[test]
fn a_non_canonical_base_faults() {
    for msr in [0xc000_0100, 0xc000_0101, 0xc000_0102, 0xc000_0082, 0x175, 0x176] {
        assert!(matches!(write(msr, 0xffff_8000_0000_0000), MsrWrite::Device(_)), "{msr:#x}");
        assert!(matches!(write(msr, 0x7fff_ffff_ffff), MsrWrite::Device(_)), "{msr:#x}");
        assert_eq!(write(msr, 0x8000_0000_0000), MsrWrite::Gp, "{msr:#x}");
        assert_eq!(write(msr, 0xffff_7fff_ffff_ffff), MsrWrite::Gp, "{msr:#x}");
    }
}

#[test]
fn reserved_bits_fault() {
    for (msr, value) in [
        (0xc000_0084, 1 << 32),
        (0xc000_0103, 1 << 32),
        (0x48, 1 << 9),
        (0x49, 2),
        (0x10b, 2),
        (0x277, 0x02),
        (0x1d9, 1 << 6),
        (0xda0, 1 << 11),
        (0x140, 1),
        (0x401, 1),
        (0x17a, 8),
    ] {
        assert_eq!(write(msr, value), MsrWrite::Gp, "{msr:#x} = {value:#x}");
        assert_ne!(write(msr, 0), MsrWrite::Gp, "{msr:#x} = 0");
    }
}

#[test]
fn commands_cannot_be_read() {
    assert_eq!(read(0x49), MsrRead::Gp);
    assert_eq!(read(0x10b), MsrRead::Gp);
    assert_eq!(read(0x79), MsrRead::Gp);
}

#[test]
fn the_hypercall_page_goes_where_the_guest_says() {
    assert_eq!(write(XEN_HYPERCALL_PAGE, 0x1234_5000), MsrWrite::HypercallPage(0x12345));
    assert_eq!(write(XEN_HYPERCALL_PAGE, 0x1234_5001), MsrWrite::Gp, "there is no second page");
    assert_eq!(write(XEN_HYPERCALL_PAGE, 1 << 40), MsrWrite::Gp, "beyond the guest's memory");
    assert_eq!(read(XEN_HYPERCALL_PAGE), MsrRead::Value(0));
}

#[test]
fn mtrrs_keep_what_was_written() {
    let (policy, mut vcpu) = (policy(Vendor::Intel), VcpuMsrs::default());
    assert_eq!(policy.write(0x203, 0xff_0000_0800, &mut vcpu), MsrWrite::Done);
    assert_eq!(policy.read(0x203, &vcpu), MsrRead::Value(0xff_0000_0800));
    assert_eq!(vcpu.mtrr.read(MtrrRegister::Variable(3)), 0xff_0000_0800);
    assert_eq!(policy.write(0x203, 1 << 40, &mut vcpu), MsrWrite::Gp);
    assert_eq!(policy.write(0x26f, 0x05, &mut vcpu), MsrWrite::Done);
    assert_eq!(vcpu.mtrr.read(MtrrRegister::Fixed(10)), 5);
    assert_eq!(policy.write(0xfe, 0, &mut vcpu), MsrWrite::Gp, "the capability is read-only");
}

#[test]
fn fast_strings_can_be_turned_off_and_nothing_else() {
    let (policy, mut vcpu) = (policy(Vendor::Intel), VcpuMsrs::default());
    assert_eq!(policy.read(0x1a0, &vcpu), MsrRead::Value(0x1801));
    assert_eq!(policy.write(0x1a0, u64::MAX - 1, &mut vcpu), MsrWrite::Done);
    assert_eq!(policy.read(0x1a0, &vcpu), MsrRead::Value(0x1800));
}

#[test]
fn what_cpuid_hides_is_not_there() {
    let without =
        [features::RDTSCP, features::IBRSB, features::IBPB, features::L1D_FLUSH, features::ARCH_CAPS, features::XSAVES];
    let policy = MsrPolicy::for_domain(|_| Some(0), &cpuid(Vendor::Intel, &without), &DOM0);
    for msr in [0xc000_0103, 0x48, 0x49, 0x10b, 0x10a, 0xda0] {
        assert_eq!(policy.read(msr, &VcpuMsrs::default()), MsrRead::Gp, "{msr:#x}");
        assert!(!policy.passthrough().any(|p| p.msr == msr), "{msr:#x}");
    }
}

#[test]
fn a_guest_that_owns_no_hardware_is_not_told_of_it() {
    let options = MsrOptions { hardware_domain: false, ..DOM0 };
    let policy = MsrPolicy::for_domain(|_| Some(0), &cpuid(Vendor::Amd, &[]), &options);
    for msr in [0xc001_001a, 0xc001_001d, 0xc001_001f, 0xc001_0058] {
        assert_eq!(policy.read(msr, &VcpuMsrs::default()), MsrRead::Gp, "{msr:#x}");
    }
    assert_eq!(policy.write(0xc001_0020, 0, &mut VcpuMsrs::default()), MsrWrite::Gp);
}

#[test]
fn arch_capabilities_promises_no_further_msr() {
    let MsrRead::Value(value) = read(0x10a) else { panic!("ARCH_CAPABILITIES is not answered") };
    for (name, bit) in [
        ("IBRS_ALL", 1),
        ("TSX_CTRL", 7),
        ("MCU_CTRL", 9),
        ("MISC_PKG_CTRL", 10),
        ("FB_CLEAR_CTRL", 18),
        ("XAPIC_STATUS", 21),
    ] {
        assert_eq!(value >> bit & 1, 0, "{name}");
    }
    assert_eq!(value & 1, 1, "RDCL_NO is the host's");
}

#[test]
fn the_bitmap_lets_through_what_is_switched_and_nothing_that_must_be_seen() {
    let through: std::vec::Vec<_> = policy(Vendor::Intel).passthrough().collect();
    let find = |msr| through.iter().find(|p| p.msr == msr).map(|p| (p.read, p.write));
    for msr in
        [0xc000_0081, 0xc000_0082, 0xc000_0084, 0xc000_0100, 0xc000_0101, 0xc000_0102, 0x174, 0x175, 0x176, 0x277]
    {
        assert_eq!(find(msr), Some((true, true)), "{msr:#x}");
    }
    assert_eq!(find(0x10), Some((true, false)), "the TSC is read with its offset and written through the vCPU");
    assert_eq!(find(0x49), Some((false, true)));
    for msr in [0xc000_0080, 0x1b, 0x6e0, 0x3b, 0x1d9, 0x2ff, 0x8b] {
        assert_eq!(find(msr), None, "{msr:#x}");
    }
}

#[test]
fn a_pat_that_is_not_switched_is_seen() {
    let policy =
        MsrPolicy::for_domain(|_| None, &cpuid(Vendor::Intel, &[]), &MsrOptions { pat_switched: false, ..DOM0 });
    assert!(!policy.passthrough().any(|p| p.msr == 0x277));
    assert_eq!(policy.write(0x277, 0x0007_0106_0007_0406, &mut VcpuMsrs::default()), MsrWrite::Device(DeviceMsr::Pat));
}

#[test]
fn every_row_is_found_by_its_number() {
    for row in msr_table::all() {
        assert!(msr_table::find(row.msr).is_some_and(|found| found.msr == row.msr), "{:#x}", row.msr);
    }
}

#[test]
fn the_state_travels_in_the_mtrr_record() {
    let (policy, mut vcpu) = (policy(Vendor::Intel), VcpuMsrs::default());
    assert_eq!(policy.write(0x2ff, 0xc00, &mut vcpu), MsrWrite::Done);
    let record = vcpu.to_record(0x0007_0406_0007_0406);
    let mut restored = VcpuMsrs::default();
    assert!(restored.load_record(&record, 40));
    assert_eq!(restored, vcpu);
    assert!(!restored.load_record(&hvm_save::Mtrr { msr_pat_cr: 2, ..record }, 40));
}
