//! Dom0's tables: a root pointer, an XSDT that lists what Dom0 may know of, and a MADT of its vCPUs. All others are firmware's own,
//! where they are.
//!
//! Dom0 learns nothing of what Corten owns: the HPET, the IOMMUs, the console's UART, the machine's own processors and nodes.

use alloc::vec::Vec;
use core::ops::Range;

use mm::HostPhys;

use super::madt::{CPU_ENABLED, IO_APIC, LOCAL_APIC, LOCAL_X2APIC, Madt, NMI_SOURCE, OVERRIDE, STRUCTURES};
use super::root::{TableEntry, Tables};
use super::table::{CHECKSUM_AT, HEADER, LENGTH_AT, OEM, REVISION_AT, Signature, Table, seal};

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

/// Revisions of what is made here: ACPI 2.0's root pointer, the only XSDT there is, and the MADT of ACPI 6.1.
const RSDP_REVISION: u8 = 2;
const XSDT_REVISION: u8 = 1;
const MADT_REVISION: u8 = 4;

const RSDP_LENGTH: usize = 36;
const RSDP_V1_LENGTH: usize = 20;
/// The root pointer's first checksum; the second covers all of it.
const RSDP_CHECKSUM_AT: usize = 8;
const RSDP_EXTENDED_CHECKSUM_AT: usize = 32;
/// Tables begin at multiples of it.
const ALIGN: usize = 16;

/// Where every local APIC is.
const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
/// Guests' APIC ids are even, as Xen has them: as if each vCPU were the first thread of a core.
const APIC_IDS_A_VCPU: u32 = 2;

/// The tables made for Dom0, for one place in its memory.
#[derive(Clone, Debug)]
pub struct Dom0Tables {
    /// To be written to the base address that they were made for.
    pub bytes: Vec<u8>,
    /// The root pointer's address.
    pub rsdp: u64,
}

/// The tables of the machine that Dom0 is to see as they are; it must be able to read them.
pub fn kept(host: &Tables) -> impl Iterator<Item = &TableEntry> {
    host.list.iter().filter(|table| KEPT.contains(&table.signature))
}

/// The memory that the kept tables lie in.
pub fn kept_memory(host: &Tables) -> impl Iterator<Item = Range<HostPhys>> + '_ {
    kept(host).map(|table| table.at..HostPhys(table.at.0.saturating_add(table.length.into())))
}

/// Bytes that [`build`] makes.
pub fn size(host: &Tables, madt: &Madt, vcpus: u32) -> Option<usize> {
    build(host, madt, vcpus, 0).map(|tables| tables.bytes.len())
}

/// Makes Dom0's tables for the guest-physical address `base`, a multiple of 16: for `vcpus` vCPUs, the machine's IO-APICs, and its interrupt
/// overrides. `None` if memory runs out.
pub fn build(host: &Tables, madt: &Madt, vcpus: u32, base: u64) -> Option<Dom0Tables> {
    let mut bytes = Vec::new();
    let xsdt_at = RSDP_LENGTH.checked_next_multiple_of(ALIGN)?;
    let listed = kept(host).count().checked_add(1)?;
    let xsdt_length = HEADER.checked_add(listed.checked_mul(size_of::<u64>())?)?;
    let madt_at = xsdt_at.checked_add(xsdt_length)?.checked_next_multiple_of(ALIGN)?;
    let address = |offset: usize| base.checked_add(offset as u64);

    let madt = dom0_madt(&host.root, madt, vcpus)?;
    bytes.try_reserve_exact(madt_at.checked_add(madt.len())?).ok()?;

    bytes.extend_from_slice(&root_pointer(&host.root, address(xsdt_at)?));
    bytes.resize(xsdt_at, 0);
    let mut xsdt = header(&host.root, Signature::XSDT, XSDT_REVISION, xsdt_length)?;
    // Linux reads the FADT first wherever it stands; the order is the machine's, with the MADT at the end.
    let tables = kept(host).map(|table| table.at.0).chain([address(madt_at)?]);
    xsdt.extend(tables.flat_map(u64::to_le_bytes));
    seal(&mut xsdt, CHECKSUM_AT);
    bytes.extend_from_slice(&xsdt);
    bytes.resize(madt_at, 0);
    bytes.extend_from_slice(&madt);
    Some(Dom0Tables { bytes, rsdp: base })
}

/// A table's header and room for `length` bytes in all. The names of the machine's maker are kept: quirks are looked up by them.
fn header(root: &Table, signature: Signature, revision: u8, length: usize) -> Option<Vec<u8>> {
    let mut table = Vec::new();
    table.try_reserve_exact(length).ok()?;
    table.extend_from_slice(&signature.0);
    debug_assert_eq!(table.len(), LENGTH_AT);
    table.extend_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
    debug_assert_eq!(table.len(), REVISION_AT);
    table.extend_from_slice(&[revision, 0]);
    table.extend_from_slice(root.bytes().get(OEM)?);
    Some(table)
}

fn root_pointer(root: &Table, xsdt: u64) -> Vec<u8> {
    let mut rsdp = Vec::with_capacity(RSDP_LENGTH);
    rsdp.extend_from_slice(b"RSD PTR \0");
    rsdp.extend_from_slice(&root.get::<6>(OEM.start).unwrap_or_default());
    rsdp.push(RSDP_REVISION);
    rsdp.extend_from_slice(&0u32.to_le_bytes()); // no RSDT
    rsdp.extend_from_slice(&(RSDP_LENGTH as u32).to_le_bytes());
    rsdp.extend_from_slice(&xsdt.to_le_bytes());
    rsdp.extend_from_slice(&[0; 4]);
    seal(rsdp.get_mut(..RSDP_V1_LENGTH).unwrap_or_default(), RSDP_CHECKSUM_AT);
    seal(&mut rsdp, RSDP_EXTENDED_CHECKSUM_AT);
    rsdp
}

fn dom0_madt(root: &Table, host: &Madt, vcpus: u32) -> Option<Vec<u8>> {
    const LOCAL_APIC_LENGTH: u8 = 8;
    const LOCAL_X2APIC_LENGTH: u8 = 16;
    const IO_APIC_LENGTH: u8 = 12;
    const OVERRIDE_LENGTH: u8 = 10;
    const NMI_SOURCE_LENGTH: u8 = 8;
    const ISA: u8 = 0;

    let room = (vcpus as usize)
        .checked_mul(LOCAL_X2APIC_LENGTH.into())?
        .checked_add(host.io_apics.len().checked_mul(IO_APIC_LENGTH.into())?)?
        .checked_add(host.overrides.len().checked_mul(OVERRIDE_LENGTH.into())?)?
        .checked_add(host.nmi_sources.len().checked_mul(NMI_SOURCE_LENGTH.into())?)?
        .checked_add(STRUCTURES)?;
    let mut madt = header(root, Signature::MADT, host.revision.clamp(1, MADT_REVISION), room)?;
    madt.extend_from_slice(&LOCAL_APIC_ADDRESS.to_le_bytes());
    // No flags: Dom0 has no PICs, though the machine has.
    madt.extend_from_slice(&0u32.to_le_bytes());
    for vcpu in 0..vcpus {
        let apic_id = vcpu.checked_mul(APIC_IDS_A_VCPU)?;
        match (u8::try_from(vcpu), u8::try_from(apic_id)) {
            (Ok(uid), Ok(apic_id)) => {
                madt.extend_from_slice(&[LOCAL_APIC, LOCAL_APIC_LENGTH, uid, apic_id]);
                madt.extend_from_slice(&CPU_ENABLED.to_le_bytes());
            }
            _ => {
                madt.extend_from_slice(&[LOCAL_X2APIC, LOCAL_X2APIC_LENGTH, 0, 0]);
                madt.extend_from_slice(&apic_id.to_le_bytes());
                madt.extend_from_slice(&CPU_ENABLED.to_le_bytes());
                madt.extend_from_slice(&vcpu.to_le_bytes());
            }
        }
    }
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
    let length = u32::try_from(madt.len()).ok()?.to_le_bytes();
    madt.get_mut(LENGTH_AT..REVISION_AT)?.copy_from_slice(&length);
    seal(&mut madt, CHECKSUM_AT);
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
        assert_eq!(size(&tables, &madt, vcpus), Some(made.bytes.len()));
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
        assert_eq!(seen.read(&memory, Signature::MADT).unwrap().revision(), MADT_REVISION);
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
