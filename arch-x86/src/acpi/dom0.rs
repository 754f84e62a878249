//! Dom0's tables: a root pointer, an XSDT that lists what Dom0 may know of, and a MADT of its vCPUs. All others are firmware's own,
//! where they are.
//!
//! Dom0 learns nothing of what Corten owns: the HPET, the IOMMUs, the console's UART, the machine's own processors and nodes.

use alloc::vec::Vec;
use core::ops::Range;

use mm::HostPhys;

use super::made::{self, MadeTables, Oem};
use super::madt::{IO_APIC, Madt, NMI_SOURCE, OVERRIDE};
use super::root::{TableEntry, Tables};
use super::table::{OEM, Signature};

/// The tables that Dom0 sees as they are: devices' and firmware's business, not the processors' or the memory's.
const KEPT: [Signature; 10] = [
    Signature::FADT, // and through it DSDT and FACS
    Signature::SSDT,
    Signature(*b"PSDT"),
    Signature(*b"SBST"),
    Signature::MCFG,
    Signature(*b"SLIC"),
    Signature(*b"MSDM"),
    Signature(*b"WDAT"),
    Signature(*b"FPDT"),
    Signature(*b"TPM2"),
];

/// The tables of the machine that Dom0 is to see as they are; it must be able to read them.
pub fn kept(host: &Tables) -> impl Iterator<Item = &TableEntry> {
    host.list.iter().filter(|table| KEPT.contains(&table.signature))
}

/// The memory that the kept tables lie in.
pub fn kept_memory(host: &Tables) -> impl Iterator<Item = Range<HostPhys>> + '_ {
    kept(host).map(|table| table.at..HostPhys(table.at.0.saturating_add(table.length.into())))
}

/// Makes Dom0's tables for the guest-physical address `base`, a multiple of 16: for `vcpus` vCPUs, the machine's IO-APICs, and its interrupt
/// overrides. `None` if memory runs out.
pub fn build(host: &Tables, madt: &Madt, vcpus: u32, base: u64) -> Option<MadeTables> {
    // The names of the machine's maker are kept: quirks are looked up by them.
    let oem = host.root.get(OEM.start).unwrap_or_default();
    let madt = dom0_madt(&oem, madt, vcpus)?;
    // Linux reads the FADT first wherever it stands; the order is the machine's, with the MADT at the end.
    let kept: Vec<u64> = kept(host).map(|table| table.at.0).collect();
    MadeTables::assemble(&oem, base, &kept, &[madt])
}

fn dom0_madt(oem: &Oem, host: &Madt, vcpus: u32) -> Option<Vec<u8>> {
    const IO_APIC_LENGTH: u8 = 12;
    const OVERRIDE_LENGTH: u8 = 10;
    const NMI_SOURCE_LENGTH: u8 = 8;
    const ISA: u8 = 0;

    // No flags: Dom0 has no PICs, though the machine has.
    let mut madt = made::processors(oem, host.revision.clamp(1, made::MADT_REVISION), vcpus)?;
    let more = (host.io_apics.len().checked_mul(IO_APIC_LENGTH.into())?)
        .checked_add(host.overrides.len().checked_mul(OVERRIDE_LENGTH.into())?)?
        .checked_add(host.nmi_sources.len().checked_mul(NMI_SOURCE_LENGTH.into())?)?;
    madt.try_reserve_exact(more).ok()?;
    for io_apic in &host.io_apics {
        madt.extend_from_slice(&[IO_APIC, IO_APIC_LENGTH, io_apic.id, 0]);
        madt.extend_from_slice(&io_apic.address.to_le_bytes());
        madt.extend_from_slice(&io_apic.gsi_base.to_le_bytes());
    }
    for change in &host.overrides {
        madt.extend_from_slice(&[OVERRIDE, OVERRIDE_LENGTH, ISA, change.irq]);
        madt.extend_from_slice(&change.gsi.to_le_bytes());
        madt.extend_from_slice(&change.flags.to_le_bytes());
    }
    for source in &host.nmi_sources {
        madt.extend_from_slice(&[NMI_SOURCE, NMI_SOURCE_LENGTH]);
        madt.extend_from_slice(&source.flags.to_le_bytes());
        madt.extend_from_slice(&source.gsi.to_le_bytes());
    }
    made::finish(&mut madt)?;
    Some(madt)
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Memory, table};
    use super::super::{InterruptOverride, IoApic, NmiSource, Problems, RootPointer};
    use super::*;
    use alloc::string::{String, ToString};

    const BASE: u64 = 0x8_0000;

    /// A machine with one of each table, and what Dom0 gets of it.
    fn machine() -> (Memory, Tables, Madt) {
        let mut memory = Memory::new();
        let mut list = Vec::new();
        let signatures = [
            b"FACP", b"APIC", b"HPET", b"SSDT", b"DMAR", b"SSDT", b"IVRS", b"MCFG", b"SRAT", b"SPCR", b"TPM2", b"XXXX",
        ];
        for (i, signature) in signatures.iter().enumerate() {
            let content = if *signature == b"APIC" { &[0; 8][..] } else { &[0; 20] };
            list.push(memory.place(0x2000 + 0x100 * i as u64, &table(signature, content)));
        }
        let content: Vec<u8> = list.iter().flat_map(|at| at.to_le_bytes()).collect();
        let xsdt = memory.place(0x1000, &table(b"XSDT", &content));
        let tables = Tables::find(&memory, RootPointer { xsdt, rsdt: 0 }).unwrap();
        let madt = Madt {
            local_apic_address: 0xfee0_0000,
            has_pics: true,
            revision: 5,
            io_apics: vec![IoApic { id: 1, address: 0xfec0_0000, gsi_base: 0 }],
            overrides: vec![
                InterruptOverride { irq: 0, gsi: 2, flags: 0 },
                InterruptOverride { irq: 9, gsi: 9, flags: 0xd },
            ],
            nmi_sources: vec![NmiSource { gsi: 17, flags: 5 }],
            ..Madt::default()
        };
        (memory, tables, madt)
    }

    fn rebuilt(vcpus: u32) -> (Memory, Tables, Madt) {
        let (mut memory, tables, madt) = machine();
        let made = build(&tables, &madt, vcpus, BASE).unwrap();
        assert_eq!(build(&tables, &madt, vcpus, 0).unwrap().bytes.len(), made.bytes.len());
        memory.place(BASE, &made.bytes);
        let seen = Tables::find(&memory, RootPointer::read(&memory, HostPhys(made.rsdp)).unwrap()).unwrap();
        let mut problems = Problems::default();
        let madt = Madt::parse(&seen.read(&memory, Signature::MADT).unwrap(), &mut problems).unwrap();
        assert_eq!(seen.problems.iter().chain(problems.iter()).count(), 0);
        (memory, seen, madt)
    }

    #[test]
    fn dom0_sees_the_tables_that_are_its_business_where_they_are() {
        let (_, host, _) = machine();
        let (memory, seen, _) = rebuilt(2);
        let names: Vec<String> = seen.list.iter().map(|t| t.signature.to_string()).collect();
        assert_eq!(names, ["FACP", "SSDT", "SSDT", "MCFG", "TPM2", "APIC"]);
        assert!(seen.list.iter().filter(|t| t.signature != Signature::MADT).all(|t| host.list.contains(t)));
        assert_eq!(seen.root.signature, Signature::XSDT);
        assert_eq!(seen.root.bytes()[OEM], host.root.bytes()[OEM]);
        assert_eq!(seen.read(&memory, Signature::MADT).unwrap().revision(), made::MADT_REVISION);
    }

    #[test]
    fn dom0s_madt_has_its_vcpus_and_the_machines_interrupts() {
        let (_, _, host) = machine();
        let (_, _, madt) = rebuilt(3);
        let cpus: Vec<_> = madt.cpus.iter().map(|c| (c.uid, c.apic_id, c.enabled)).collect();
        assert_eq!(cpus, [(0, 0, true), (1, 2, true), (2, 4, true)]);
        assert_eq!(madt.io_apics, host.io_apics);
        assert_eq!(madt.overrides, host.overrides);
        assert_eq!(madt.nmi_sources, host.nmi_sources);
        assert!(!madt.has_pics && madt.local_apic_address == 0xfee0_0000);
    }

    #[test]
    fn vcpus_beyond_the_reach_of_an_8_bit_apic_id_have_x2apic_entries() {
        let (_, _, madt) = rebuilt(300);
        assert_eq!(madt.cpus.len(), 300);
        assert!(madt.cpus.iter().enumerate().all(|(i, c)| c.uid == i as u32 && c.apic_id == 2 * i as u32));
    }
}
