//! A CPU that keeps every part that is called clean: a setter that forgets its bit is seen to have no effect.

use super::*;

fn empty() -> Box<Vmcb> {
    // SAFETY: any bits are a valid VMCB.
    unsafe { Box::<Vmcb>::new_zeroed().assume_init() }
}

/// Every part that a clean bit covers, as words.
fn parts(vmcb: &Vmcb) -> Vec<(u32, Vec<u64>)> {
    let (c, s) = (&vmcb.control, &vmcb.save);
    let words = |segments: &[&SavedSegment]| {
        let fields = |s: &&SavedSegment| [u64::from(s.selector), u64::from(s.attributes), u64::from(s.limit), s.base];
        segments.iter().flat_map(fields).collect::<Vec<u64>>()
    };
    let mut segments = words(&[&s.es, &s.cs, &s.ss, &s.ds]);
    segments.push(u64::from(s.cpl));
    vec![
        (clean::INTERCEPTS, c.intercepts.iter().map(|word| u64::from(*word)).chain([c.tsc_offset]).collect()),
        (clean::PERMISSION_MAPS, vec![c.iopm, c.msrpm]),
        (clean::ASID, vec![u64::from(c.asid)]),
        (clean::VIRTUAL_INTERRUPT, vec![c.virtual_interrupt]),
        (clean::NESTED_PAGING, vec![c.nested_paging, c.nested_cr3, s.pat]),
        (clean::CONTROL_REGISTERS, vec![s.cr0, s.cr3, s.cr4, s.efer]),
        (clean::DEBUG_REGISTERS, vec![s.dr6, s.dr7]),
        (clean::DESCRIPTOR_TABLES, words(&[&s.gdtr, &s.idtr])),
        (clean::SEGMENTS, segments),
        (clean::CR2, vec![s.cr2]),
    ]
}

/// Runs a VMCB as a CPU does that keeps all it may.
struct KeepingCpu {
    kept: Vec<(u32, Vec<u64>)>,
}

impl KeepingCpu {
    /// Has run the VMCB once.
    fn after(vmcb: &mut Vmcb) -> KeepingCpu {
        let cpu = KeepingCpu { kept: parts(vmcb) };
        vmcb.note_run();
        cpu
    }

    /// The guest would run with what the VMCB says.
    fn agrees_with(&self, vmcb: &Vmcb) -> bool {
        let seen = parts(vmcb);
        seen.iter().zip(&self.kept).all(|((bit, now), (_, kept))| vmcb.control.clean & bit == 0 || now == kept)
    }
}

fn segment(base: u64) -> Segment {
    Segment { selector: 8, base, limit: 0xfffff, access: SegmentAccess(0xa09b) }
}

#[test]
fn no_setter_leaves_a_stale_part_behind() {
    for (name, set) in Vmcb::SETTERS {
        let mut vmcb = empty();
        let cpu = KeepingCpu::after(&mut vmcb);
        set(&mut vmcb);
        assert!(cpu.agrees_with(&vmcb), "{name}");
    }
    type Setter = (&'static str, fn(&mut Vmcb));
    let others: [Setter; 6] = [
        ("set_up", |vmcb| vmcb.set_up(HostPhys(0x1000), HostPhys(0x2000), HostPhys(0x3000))),
        ("set_intercept", |vmcb| vmcb.set_intercept(intercept::HLT, true)),
        ("set_waiting_interrupt", |vmcb| vmcb.set_waiting_interrupt(true)),
        ("set_base", |vmcb| vmcb.set_base(SegmentRegister::Fs, 5)),
        ("set_descriptor_tables", |vmcb| {
            vmcb.set_descriptor_tables(TableRegister { base: 5, limit: 6 }, TableRegister::default())
        }),
        ("forget", Vmcb::forget),
    ];
    for (name, set) in others {
        let mut vmcb = empty();
        let cpu = KeepingCpu::after(&mut vmcb);
        set(&mut vmcb);
        assert!(cpu.agrees_with(&vmcb), "{name}");
    }
    for register in SegmentRegister::ALL {
        let mut vmcb = empty();
        let cpu = KeepingCpu::after(&mut vmcb);
        vmcb.set_segment(register, segment(0x1234));
        assert!(cpu.agrees_with(&vmcb), "{register:?}");
    }
}

#[test]
fn the_keeping_cpu_sees_a_forgotten_bit() {
    let mut vmcb = empty();
    let cpu = KeepingCpu::after(&mut vmcb);
    vmcb.save.cr3 = 0x1000;
    assert!(!cpu.agrees_with(&vmcb));
}

#[test]
fn what_is_set_to_what_it_was_stays_clean() {
    let mut vmcb = empty();
    vmcb.set_intercept(intercept::HLT, true);
    vmcb.note_run();
    vmcb.set_intercept(intercept::HLT, true);
    vmcb.set_rip(5);
    assert_eq!(vmcb.control.clean, clean::ALL);
}

#[test]
fn a_segment_comes_back_as_it_was_set() {
    let mut vmcb = empty();
    for register in SegmentRegister::ALL {
        vmcb.set_segment(register, segment(register as u64));
        assert_eq!(vmcb.segment(register), segment(register as u64));
    }
    assert!(vmcb.code_is_long());
    let user = Segment { access: SegmentAccess(0xc0f3), ..segment(0) };
    vmcb.set_segment(SegmentRegister::Ss, user);
    assert_eq!(vmcb.privilege(), 3);
    vmcb.set_segment(SegmentRegister::Ldtr, Segment { access: SegmentAccess::UNUSABLE, ..Segment::default() });
    assert!(vmcb.segment(SegmentRegister::Ldtr).access.is_unusable());
}

#[test]
fn a_waiting_interrupt_goes_with_its_intercept() {
    let mut vmcb = empty();
    vmcb.set_waiting_interrupt(true);
    assert!(vmcb.intercepts(intercept::VIRTUAL_INTERRUPT));
    assert_eq!(vmcb.control.virtual_interrupt, 0x11f_0100);
    vmcb.set_waiting_interrupt(false);
    assert!(!vmcb.intercepts(intercept::VIRTUAL_INTERRUPT));
    assert_eq!(vmcb.control.virtual_interrupt, 0x100_0000, "interrupts of the host stay masked by the host's own flag");
}
