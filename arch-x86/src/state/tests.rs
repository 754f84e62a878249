use proptest::prelude::*;
use xen_abi::x86::{CpuidLeaf, MsrEntry};

use super::super::{DR6_AT_RESET, DR7_AT_RESET, TableRegister};
use super::*;
use crate::cpu::registers::{PAT_AT_RESET, cr0, cr4, efer, rflags};
use crate::event::Event;
use crate::policy::cpuid::CpuidOptions;
use crate::policy::msr::{MsrOptions, MsrPolicy};
use crate::policy::{CpuidPolicy, cpuid::tests::intel};
use crate::segment::{Segment, SegmentAccess, SegmentRegister};
use crate::vdev::vlapic::LapicInbox;

fn policy() -> GuestPolicy {
    let cpuid = CpuidPolicy::for_domain(intel, &CpuidOptions::default());
    let options = MsrOptions { hardware_domain: false, pat_switched: true, physical_bits: cpuid.physical_bits() };
    let msr = MsrPolicy::for_domain(|_| None, &cpuid, &options);
    GuestPolicy::new(cpuid, msr)
}

const MASK: u32 = 0xffff;

fn load(stream: &[u8], vcpus: usize) -> Result<Vec<Restored>, Errno> {
    restore(stream, &Limits { policy: &policy(), vcpus, mxcsr_mask: MASK })
}

const HEADER: Header =
    Header { magic: HVM_FILE_MAGIC, version: HVM_FILE_VERSION, changeset: 0, cpuid: 0x50654, gtsc_khz: 1_000_000 };

fn stream(records: &[(u16, u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let all = [(HEADER_CODE, 0, HEADER.as_bytes())].into_iter().chain(records.iter().copied()).chain([(
        END_CODE,
        0,
        &[][..],
    )]);
    for (typecode, instance, record) in all {
        bytes.extend_from_slice(Descriptor { typecode, instance, length: record.len() as u32 }.as_bytes());
        bytes.extend_from_slice(record);
    }
    bytes
}

/// What libxenguest writes for the first vCPU of a PVH guest.
fn libxl() -> Cpu {
    let mut cpu = Cpu::new_zeroed();
    (cpu.cr0, cpu.rip, cpu.rbx) = (0x11, 0x100_0000, 0x123_4000);
    (cpu.cs_arbytes, cpu.ds_arbytes, cpu.es_arbytes, cpu.ss_arbytes, cpu.tr_arbytes) =
        (0xc9b, 0xc93, 0xc93, 0xc93, 0x8b);
    (cpu.cs_limit, cpu.ds_limit, cpu.es_limit, cpu.ss_limit, cpu.tr_limit) =
        (u32::MAX, u32::MAX, u32::MAX, u32::MAX, 0x67);
    (cpu.dr6, cpu.dr7) = (DR6_AT_RESET, DR7_AT_RESET);
    cpu
}

fn cpu_state(record: &Cpu) -> Result<CpuState, Errno> {
    let restored = load(&stream(&[(CPU_CODE, 0, record.as_bytes())]), 1)?;
    Ok(restored[0].cpu.unwrap())
}

/// 64-bit code in the midst of its work, with something in every register.
fn busy() -> CpuState {
    let mut state = CpuState::pvh(0, 0);
    let regs = &mut state.general;
    for (number, register) in (0..16).zip(1u64..) {
        regs.set(number, register << 40 | 0xabc);
    }
    (state.rip, state.rflags) = (0xffff_ffff_8100_0000, 0x246 | rflags::TF);
    state.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
    (state.cr2, state.cr3, state.cr4) = (0xffff_8000_1234_5678, 0x12_3000, cr4::PAE | 1 << 7 | 1 << 18);
    state.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    state.breakpoints = [1, 2, 3, 0xffff_ffff_8000_0004];
    (state.dr6, state.dr7) = (DR6_AT_RESET | 1, DR7_AT_RESET | 0x2001);
    *state.segment_mut(SegmentRegister::Cs) =
        Segment { selector: 0x10, base: 0, limit: u32::MAX, access: SegmentAccess(0xa09b) };
    *state.segment_mut(SegmentRegister::Ss) =
        Segment { selector: 0x18, base: 0, limit: u32::MAX, access: SegmentAccess(0xc093) };
    let none = Segment { access: SegmentAccess::UNUSABLE, ..Segment::default() };
    *state.segment_mut(SegmentRegister::Ds) = none;
    *state.segment_mut(SegmentRegister::Gs) = Segment { base: 0xffff_8880_0000_0000, ..none };
    *state.segment_mut(SegmentRegister::Tr) =
        Segment { selector: 0x40, base: 0xffff_fe00_0000_3000, limit: 0x206f, access: SegmentAccess(0x8b) };
    *state.segment_mut(SegmentRegister::Ldtr) =
        Segment { selector: 0x50, base: 0x1000, limit: 0xf, access: SegmentAccess(0x82) };
    state.gdtr = TableRegister { base: 0xffff_fe00_0000_1000, limit: 0x7f };
    state.idtr = TableRegister { base: 0xffff_fe00_0000_0000, limit: 0xfff };
    (state.sysenter_cs, state.sysenter_esp, state.sysenter_eip) = (0x10, 0xffff_fe00_0000_5000, 0xffff_ffff_8200_0000);
    (state.star, state.lstar, state.cstar) = (0x23_0010 << 32, 0xffff_ffff_8200_0040, 0xffff_ffff_8200_0080);
    (state.syscall_mask, state.kernel_gs_base, state.tsc_aux) = (0x4_7700, 0x7fff_0000_0000, 3);
    state.pat = 0x0407_0506_0007_0106;
    state.event = Some(Event::Exception { vector: 14, error: Some(2) });
    state
}

fn saved() -> Saved {
    let mut area = std::vec![0x5au8; 832];
    area[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    area[512..520].copy_from_slice(&7u64.to_le_bytes());
    area[520..576].fill(0);
    let (lapic, inbox): (Vlapic, LapicInbox) = Vlapic::new(0, true);
    let mut msrs = VcpuMsrs { fast_strings: false, ..VcpuMsrs::default() };
    assert!(msrs.mtrr.write(mtrr::MtrrRegister::Variable(1), 0x800, 40));
    Saved {
        is_up: true,
        cpu: busy(),
        fpu: FpuImage::saved(area.len(), |bytes| bytes.copy_from_slice(&area)).unwrap(),
        xcr0: 7,
        msrs,
        lapic: lapic.save(Nanos(0), &inbox),
    }
}

#[test]
fn a_vcpu_is_restored_as_it_was_saved() {
    let before = saved();
    let down = Saved { is_up: false, ..saved() };
    let bytes = save(&HEADER, &[before.clone(), down], &policy(), 77).unwrap();
    let after = load(&bytes, 2).unwrap();
    let [first, second] = &after[..] else { panic!() };
    assert_eq!((first.cpu, first.pat), (Some(CpuState { pat: PAT_AT_RESET, ..busy() }), Some(busy().pat)));
    assert_eq!((first.fpu.as_ref(), first.xcr0), (Some(&before.fpu), Some(7)));
    assert_eq!((first.ranges, first.fast_strings), (Some(before.msrs.mtrr), Some(false)));
    let lapic = first.lapic.unwrap();
    assert_eq!((lapic.0, lapic.1.data), (before.lapic.0, before.lapic.1.data));
    assert!(
        second.cpu.is_none() && second.xcr0.is_none() && second.ranges.is_some(),
        "a vCPU that is down has no registers"
    );
    assert_eq!(load(&bytes, 1).unwrap_err(), Errno::EINVAL, "a vCPU more than there are");
    for end in 0..bytes.len() {
        assert!(load(&bytes[..end], 2).is_err(), "{end} of {} bytes", bytes.len());
    }
}

#[test]
fn without_memory_nothing_is_saved_or_restored_but_an_error_said() {
    let (vcpus, policy) = ([saved(), saved()], policy());
    let save = || save(&HEADER, &vcpus, &policy, 77);
    assert_eq!(mm::fake::each_failure(save), [Errno::ENOMEM; 3]);
    let bytes = save().unwrap();
    assert_eq!(mm::fake::each_failure(|| record_of(&bytes, CPU_CODE, 1)), [Errno::ENOMEM]);
    let limits = Limits { policy: &policy, vcpus: 2, mxcsr_mask: MASK };
    // Both lists, and of each vCPU what was sent of its FPU: in the record of the CPU and in that of all states.
    assert_eq!(mm::fake::each_failure(|| restore(&bytes, &limits)), [Errno::ENOMEM; 6]);
}

#[test]
fn records_stand_in_the_order_of_their_types_and_one_can_be_had_alone() {
    let bytes = save(&HEADER, &[saved(), saved()], &policy(), 77).unwrap();
    let found: Vec<_> = Records { rest: &bytes }.map(|r| r.unwrap().0).map(|d| (d.typecode, d.instance)).collect();
    assert!(found.is_sorted());
    assert_eq!(found.len(), 1 + 2 * 6);
    let cpu = Cpu::read_from_bytes(&record_of(&bytes, CPU_CODE, 1).unwrap()[8..]).unwrap();
    assert_eq!((cpu.rip, cpu.tsc, cpu.cs_arbytes), (busy().rip, 77, 0xa9b));
    assert_eq!(record_of(&bytes, CPU_CODE, 2), Err(Errno::ENOENT));
    assert_eq!(record_of(&bytes, PIC_CODE, 0), Err(Errno::ENOENT));
    assert_eq!(record_of(&bytes, 21, 0), Err(Errno::EINVAL));
}

#[test]
fn what_libxl_sends_is_the_pvh_entry() {
    let (lapic, _) = (saved().msrs.to_record(PAT_AT_RESET), ());
    assert!(load(&stream(&[(MTRR_CODE, 0, lapic.as_bytes())]), 1).unwrap()[0].cpu.is_none());
    let state = cpu_state(&libxl()).unwrap();
    let pvh = CpuState::pvh(0x100_0000, 0x123_4000);
    assert_eq!((state.rip, state.general, state.cr0, state.rflags), (pvh.rip, pvh.general, pvh.cr0, pvh.rflags));
    for register in
        [SegmentRegister::Cs, SegmentRegister::Ss, SegmentRegister::Ds, SegmentRegister::Es, SegmentRegister::Tr]
    {
        assert_eq!(state.segment(register), pvh.segment(register));
    }
    assert!(state.segment(SegmentRegister::Fs).access.is_unusable());
    let mut old = libxl();
    old.cs_arbytes = 0xc09b;
    assert_eq!(cpu_state(&old).unwrap(), state, "as early versions of Xen wrote it");
}

#[test]
fn the_states_that_vcpus_start_with_can_be() {
    for state in [CpuState::pvh(1, 2), CpuState::sipi(0), CpuState::sipi(0x9a), busy()] {
        let mut settled = state;
        settled.settle();
        assert_eq!(settled, state);
        assert_eq!(state.check(&policy()), Ok(()));
    }
}

#[test]
fn a_state_that_no_cpu_has_is_refused() {
    type Change = fn(&mut CpuState);
    let changes: &[(&str, Change)] = &[
        ("paging without protection", |s| s.cr0 &= !cr0::PE),
        ("a bit of CR0 that is none", |s| s.cr0 |= 1 << 6),
        ("the upper half of CR0", |s| s.cr0 |= 1 << 32),
        ("NW without CD", |s| s.cr0 |= cr0::NW),
        ("VMXE", |s| s.cr4 |= cr4::VMXE),
        ("a bit of CR4 that is none", |s| s.cr4 |= 1 << 15),
        ("long mode without PAE", |s| s.cr4 &= !cr4::PAE),
        ("LMA without LME", |s| s.efer &= !efer::LME),
        ("LME and paging without LMA", |s| s.efer &= !efer::LMA),
        ("SVME", |s| s.efer |= efer::SVME),
        ("a page table beyond memory", |s| s.cr3 |= 1 << 50),
        ("an address that is not canonical", |s| s.rip = 1 << 47),
        ("LSTAR", |s| s.lstar = 1 << 63),
        ("KERNEL_GS_BASE", |s| s.kernel_gs_base = 1 << 50),
        ("SYSENTER_ESP", |s| s.sysenter_esp = 1 << 50),
        ("GS", |s| s.segment_mut(SegmentRegister::Gs).base = 1 << 50),
        ("GDTR", |s| s.gdtr.base = 1 << 50),
        ("TR", |s| s.segment_mut(SegmentRegister::Tr).base = 1 << 50),
        ("no TR", |s| s.segment_mut(SegmentRegister::Tr).access = SegmentAccess::UNUSABLE),
        ("an available TSS", |s| s.segment_mut(SegmentRegister::Tr).access.0 = 0x89),
        ("64-bit and 32-bit code", |s| s.segment_mut(SegmentRegister::Cs).access.0 |= 1 << 14),
        ("code of another level", |s| s.segment_mut(SegmentRegister::Cs).access.0 |= 3 << 5),
        ("code that is data", |s| s.segment_mut(SegmentRegister::Cs).access.0 = 0xa091),
        ("a stack that is code", |s| s.segment_mut(SegmentRegister::Ss).access.0 = 0xc09b),
        ("a stack high up", |s| s.segment_mut(SegmentRegister::Ss).base = 1 << 40),
        ("a limit in bytes that is in pages", |s| s.segment_mut(SegmentRegister::Ss).limit = 0xff_f000),
        ("RFLAGS bit 15", |s| s.rflags |= 1 << 15),
        ("virtual-8086 mode in long mode", |s| s.rflags |= 1 << 17),
        ("half of DR7", |s| s.dr7 |= 1 << 32),
        ("half of DR6", |s| s.dr6 |= 1 << 32),
        ("TSC_AUX", |s| s.tsc_aux = 1 << 32),
        ("FMASK", |s| s.syscall_mask = 1 << 32),
        ("SYSENTER_CS", |s| s.sysenter_cs = 1 << 32),
        ("an interrupt while they are off", |s| {
            s.rflags &= !rflags::IF;
            s.event = Some(Event::Interrupt(0x40));
        }),
        ("a page fault without its code", |s| s.event = Some(Event::Exception { vector: 14, error: None })),
        ("vector 40 as a fault", |s| s.event = Some(Event::Exception { vector: 40, error: None })),
    ];
    for (what, change) in changes {
        let mut state = busy();
        change(&mut state);
        assert!(state.check(&policy()).is_err(), "{what}");
        let record = record::to_record(&state, None, 0);
        assert_eq!(cpu_state(&record), Err(Errno::EINVAL), "{what}");
    }
}

#[test]
fn what_the_policy_lacks_cannot_be_in_a_register() {
    let most = policy();
    let without = |leaf, [a, b, c, d]: [u32; 4]| {
        most.with(&[CpuidLeaf { leaf, subleaf: if leaf == 7 { 0 } else { u32::MAX }, a, b, c, d }], &[], &most).unwrap()
    };
    let state = CpuState { cr4: busy().cr4 | 1 << 20, ..busy() };
    assert_eq!(state.check(&most), Ok(()));
    assert!(state.check(&without(7, [0; 4])).is_err(), "SMEP");
    assert!(busy().check(&without(0x8000_0001, [0; 4])).is_err(), "long mode");
    let none: [MsrEntry; 0] = [];
    assert!(busy().check(&most.with(&[], &none, &most).unwrap()).is_ok());
}

#[test]
fn an_fpu_state_that_would_fault_is_refused() {
    let good = saved();
    let of = |change: fn(&mut Vec<u8>)| {
        let whole = save(&HEADER, core::slice::from_ref(&good), &policy(), 0).unwrap();
        let mut body = record_of(&whole, CPU_XSAVE_CODE, 0).unwrap().split_off(8);
        change(&mut body);
        load(&stream(&[(CPU_XSAVE_CODE, 0, &body)]), 1).map(drop)
    };
    assert_eq!(of(|_| {}), Ok(()));
    assert_eq!(of(|body| body.extend([0; 8])), Ok(()), "room for more states than there are");
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 8] = [
        ("MXCSR", |body| body[24 + 24 + 2] = 1),
        ("states that are not there", |body| body[24 + 512] |= 0x20),
        ("the compacted form", |body| body[24 + 527] = 0x80),
        ("the header's rest", |body| body[24 + 575] = 1),
        ("XCR0 without x87", |body| body[8] = 6),
        ("XCR0 with more than was saved", |body| body[8] = 0xe7),
        ("too short", |body| body.truncate(body.len() - 1)),
        ("something behind the end", |body| body.push(1)),
    ];
    for (what, change) in changes {
        assert_eq!(of(change), Err(Errno::EINVAL), "{what}");
    }
    let mut cpu = libxl();
    cpu.flags = XEN_X86_FPU_INITIALISED;
    cpu.fpu_regs[24..28].copy_from_slice(&0x1_0000u32.to_le_bytes());
    assert_eq!(cpu_state(&cpu), Err(Errno::EINVAL));
}

#[test]
fn devices_and_msrs_that_the_guest_has_not_are_refused() {
    let refused = |typecode, body: &[u8]| load(&stream(&[(typecode, 0, body)]), 1).map(drop);
    assert_eq!(refused(PIC_CODE, Vpic::default().as_bytes()), Err(Errno::ENODEV));
    assert_eq!(refused(21, &[]), Err(Errno::EINVAL));
    assert_eq!(refused(HEADER_CODE, HEADER.as_bytes()), Err(Errno::EINVAL));
    let msr = |index, reserved, val| {
        [Msr { count: 1, pad: 0 }.as_bytes(), OneMsr { index, reserved, val }.as_bytes()].concat()
    };
    assert_eq!(refused(CPU_MSR_CODE, &msr(0x140, 0, 0)), Ok(()));
    assert_eq!(refused(CPU_MSR_CODE, &msr(0x140, 0, 1)), Err(Errno::EINVAL));
    assert_eq!(refused(CPU_MSR_CODE, &msr(0x140, 1, 0)), Err(Errno::EOPNOTSUPP));
    assert_eq!(refused(CPU_MSR_CODE, &msr(0x48, 0, 0)), Err(Errno::ENXIO));
    assert_eq!(refused(LAPIC_CODE, Lapic::default().as_bytes()), Err(Errno::EINVAL), "half of a local APIC");
    let mut ranges = saved().msrs.to_record(2);
    assert_eq!(refused(MTRR_CODE, ranges.as_bytes()), Err(Errno::EINVAL), "a PAT that is none");
    ranges = saved().msrs.to_record(PAT_AT_RESET);
    assert_eq!(refused(MTRR_CODE, ranges.as_bytes()), Ok(()));
    assert_eq!(refused(MTRR_CODE, &ranges.as_bytes()[1..]), Err(Errno::EINVAL));
    let mut wrong = stream(&[]);
    wrong[8] ^= 1;
    assert_eq!(load(&wrong, 1).unwrap_err(), Errno::EINVAL, "the magic");
    assert_eq!(load(&[], 1).unwrap_err(), Errno::ENODATA);
}

proptest! {
    #[test]
    fn whatever_is_sent_is_refused_or_can_be_saved_again(at in 0..1032usize, with in any::<[u8; 8]>(), count in 1..=8usize, at_first in any::<bool>()) {
        let mut record = if at_first { libxl() } else { record::to_record(&busy(), None, 0) };
        for (to, from) in record.as_mut_bytes().iter_mut().skip(at).zip(&with[..count]) {
            *to = *from;
        }
        if let Ok(state) = cpu_state(&record) {
            prop_assert_eq!(state.check(&policy()), Ok(()));
            let again = record::to_record(&state, None, 0);
            prop_assert_eq!(cpu_state(&again), Ok(state));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = load(&bytes, 2);
        let mut whole = stream(&[]);
        whole.truncate(whole.len() - 8);
        whole.append(&mut bytes);
        let _ = load(&whole, 2);
    }
}
