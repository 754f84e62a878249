//! The tables of a domain without devices, as a PVH domain has them: a FADT that says there is no fixed hardware, a MADT of its vCPUs
//! without I/O APICs, and a DSDT that names the processors.
//!
//! BOOT: domains that the toolstack makes bring their own.

use alloc::vec::Vec;

use super::fadt::HARDWARE_REDUCED;
use super::made::{self, MadeTables, Oem};
use super::table::{HEADER, Signature};

/// The maker's names that Xen's domains see.
const XEN: &Oem = b"Xen   HVM     \0\0\0\0HVML\0\0\0\0";

/// Of ACPI 5.0, the first with reduced hardware, and of 64-bit AML.
const FADT_REVISION: u8 = 5;
const DSDT_REVISION: u8 = 2;

/// Makes the tables of a domain with so many vCPUs, at most 4096, for the guest-physical address `base`, a multiple of 16. `None` if
/// memory runs out.
pub fn build(vcpus: u32, base: u64) -> Option<MadeTables> {
    let dsdt = dsdt(vcpus)?;
    let mut madt = made::processors(XEN, made::MADT_REVISION, vcpus)?;
    made::finish(&mut madt)?;
    // The DSDT is not in the list, so it goes behind what is. The tables' length does not depend on its address.
    let mut tables = MadeTables::assemble(XEN, base, &[], &[fadt(0)?, madt.clone()])?;
    let at = tables.bytes.len().checked_next_multiple_of(16)?;
    tables = MadeTables::assemble(XEN, base, &[], &[fadt(base.checked_add(at as u64)?)?, madt])?;
    tables.bytes.try_reserve_exact(dsdt.len().checked_add(16)?).ok()?;
    tables.bytes.resize(at, 0);
    tables.bytes.extend_from_slice(&dsdt);
    Some(tables)
}

/// No registers, no interrupt, no firmware to hand over: ACPI 6.5, 4.1.
fn fadt(dsdt: u64) -> Option<Vec<u8>> {
    const LENGTH: usize = 268;
    const DSDT_AT: usize = 40;
    const BOOT_FLAGS_AT: usize = 109;
    const FLAGS_AT: usize = 112;
    const WIDE_DSDT_AT: usize = 140;
    /// IAPC_BOOT_ARCH: neither VGA nor a clock in CMOS, nor a keyboard controller.
    const NO_VGA: u16 = 1 << 2;
    const NO_CMOS_RTC: u16 = 1 << 5;
    /// WBINVD works.
    const WBINVD: u32 = 1 << 0;

    let mut fadt = made::header(XEN, Signature::FADT, FADT_REVISION, LENGTH)?;
    fadt.resize(LENGTH, 0);
    let mut put = |at: usize, bytes: &[u8]| {
        let end = at.checked_add(bytes.len())?;
        fadt.get_mut(at..end)?.copy_from_slice(bytes);
        Some(())
    };
    put(DSDT_AT, &u32::try_from(dsdt).unwrap_or(0).to_le_bytes())?;
    put(BOOT_FLAGS_AT, &(NO_VGA | NO_CMOS_RTC).to_le_bytes())?;
    put(FLAGS_AT, &(WBINVD | HARDWARE_REDUCED).to_le_bytes())?;
    put(WIDE_DSDT_AT, &dsdt.to_le_bytes())?;
    made::finish(&mut fadt)?;
    Some(fadt)
}

/// `Scope (\_SB) { Device (C000) { Name (_HID, "ACPI0007") Name (_UID, 0) } … }`.
fn dsdt(vcpus: u32) -> Option<Vec<u8>> {
    const SCOPE: u8 = 0x10;
    const DEVICE: [u8; 2] = [0x5b, 0x82];
    const NAME: u8 = 0x08;
    const STRING: u8 = 0x0d;
    const WORD: u8 = 0x0b;

    let mut devices = Vec::new();
    devices.extend_from_slice(b"\\_SB_");
    for vcpu in 0..vcpus {
        let mut device = Vec::new();
        device.extend_from_slice(&processor_name(vcpu)?);
        device.push(NAME);
        device.extend_from_slice(b"_HID");
        device.push(STRING);
        device.extend_from_slice(b"ACPI0007\0");
        device.push(NAME);
        device.extend_from_slice(b"_UID");
        device.push(WORD);
        device.extend_from_slice(&u16::try_from(vcpu).ok()?.to_le_bytes());
        devices.extend_from_slice(&DEVICE);
        devices.extend(package(&device)?);
    }
    let mut dsdt = made::header(XEN, Signature::DSDT, DSDT_REVISION, HEADER)?;
    dsdt.push(SCOPE);
    dsdt.extend(package(&devices)?);
    made::finish(&mut dsdt)?;
    Some(dsdt)
}

/// `C` and the vCPU's number, in three hexadecimal digits.
fn processor_name(vcpu: u32) -> Option<[u8; 4]> {
    let digit = |shift: u32| Some(char::from_digit(vcpu >> shift & 0xf, 16)?.to_ascii_uppercase() as u8);
    (vcpu < 1 << 12).then_some(())?;
    Some([b'C', digit(8)?, digit(4)?, digit(0)?])
}

/// `content` behind its length, which counts itself (ACPI 6.5, 20.2.4).
fn package(content: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(content.len().checked_add(4)?).ok()?;
    let with = |extra: usize| content.len().checked_add(extra);
    match with(1)? {
        short @ ..0x40 => bytes.push(short as u8),
        _ => {
            let more = if with(2)? < 1 << 12 { 1 } else { 2 };
            let length = with(more)?.checked_add(1)?;
            (length < 1 << 20).then_some(())?;
            bytes.push((more as u8) << 6 | (length & 0xf) as u8);
            bytes.extend_from_slice((length >> 4).to_le_bytes().get(..more)?);
        }
    }
    bytes.extend_from_slice(content);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::sample::Memory;
    use super::super::{Fadt, Madt, Problems, RootPointer, Table, Tables};
    use super::*;
    use mm::HostPhys;

    const BASE: u64 = 0x8_0000;

    fn rebuilt(vcpus: u32) -> (Memory, Tables) {
        let mut memory = Memory::new();
        let made = build(vcpus, BASE).unwrap();
        assert_eq!(build(vcpus, 0).unwrap().bytes.len(), made.bytes.len());
        memory.place(BASE, &made.bytes);
        let seen = Tables::find(&memory, RootPointer::read(&memory, HostPhys(made.rsdp)).unwrap()).unwrap();
        assert_eq!(seen.problems.iter().count(), 0);
        (memory, seen)
    }

    #[test]
    fn there_is_no_hardware_but_the_processors_and_their_local_apics() {
        for vcpus in [1, 3, 128] {
            let (memory, seen) = rebuilt(vcpus);
            let mut problems = Problems::default();
            let madt = Madt::parse(&seen.read(&memory, Signature::MADT).unwrap(), &mut problems).unwrap();
            assert_eq!(problems.iter().count(), 0);
            assert!(madt.io_apics.is_empty() && madt.overrides.is_empty() && !madt.has_pics);
            let cpus: Vec<_> = madt.cpus.iter().map(|cpu| (cpu.uid, cpu.apic_id, cpu.enabled)).collect();
            assert_eq!(cpus, (0..vcpus).map(|vcpu| (vcpu, 2 * vcpu, true)).collect::<Vec<_>>());
            let fadt = Fadt::parse(&seen.read(&memory, Signature::FADT).unwrap()).unwrap();
            assert!(fadt.hardware_reduced());
            let registers = [fadt.pm1a_event, fadt.pm1a_control, fadt.pm_timer, fadt.reset];
            assert_eq!((registers, fadt.facs, fadt.smi_command), ([None; 4], 0, 0));
            let dsdt = Table::read(&memory, HostPhys(fadt.dsdt)).unwrap();
            assert_eq!(dsdt.signature, Signature::DSDT);
            let names = dsdt.bytes().windows(8).filter(|window| *window == b"ACPI0007").count();
            assert_eq!(names as u32, vcpus);
        }
    }

    #[test]
    fn lengths_of_packages_count_themselves() {
        assert_eq!(package(&[0; 62]).unwrap()[0], 63);
        assert_eq!(package(&[0; 63]).unwrap()[..2], [0x40 | 1, 4]);
        assert_eq!(package(&[0; 4093]).unwrap()[..2], [0x4f, 0xff]);
        assert_eq!(package(&[0; 4094]).unwrap()[..3], [0x81, 0x00, 0x01]);
    }

    #[test]
    fn aml_is_as_the_compiler_would_have_it() {
        let dsdt = dsdt(1).unwrap();
        let device = b"C000\x08_HID\x0dACPI0007\0\x08_UID\x0b\0\0";
        assert_eq!(dsdt[HEADER..HEADER + 2], [0x10, 0x24]);
        assert_eq!(&dsdt[HEADER + 2..HEADER + 7], b"\\_SB_");
        assert_eq!(dsdt[HEADER + 7..HEADER + 10], [0x5b, 0x82, device.len() as u8 + 1]);
        assert_eq!(&dsdt[HEADER + 10..], device);
    }
}
