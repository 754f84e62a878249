//! What the tables that are made for domains have in common: the root pointer, the XSDT, headers, and the processors in a MADT.
//!
//! BOOT: domains that the toolstack makes bring their own.

use alloc::vec::Vec;

use super::madt::{CPU_ENABLED, LOCAL_APIC, LOCAL_X2APIC, STRUCTURES};
use super::table::{CHECKSUM_AT, HEADER, LENGTH_AT, OEM, REVISION_AT, Signature, seal};
use crate::machine::APIC_IDS_A_VCPU;

/// Revisions of what is made here: ACPI 2.0's root pointer, the only XSDT there is, and the MADT of ACPI 6.1.
const RSDP_REVISION: u8 = 2;
const XSDT_REVISION: u8 = 1;
pub(super) const MADT_REVISION: u8 = 4;

const RSDP_LENGTH: usize = 36;
const RSDP_V1_LENGTH: usize = 20;
/// The root pointer's first checksum; the second covers all of it.
const RSDP_CHECKSUM_AT: usize = 8;
const RSDP_EXTENDED_CHECKSUM_AT: usize = 32;
/// Tables begin at multiples of it.
const ALIGN: usize = 16;

/// Where every local APIC is.
const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;

/// Who made a table, as its header says: OEM's id, table id and revision, creator's id and revision.
pub(super) type Oem = [u8; HEADER - OEM.start];

/// Tables for one place in a domain's memory.
#[derive(Clone, Debug)]
pub struct MadeTables {
    /// To be written to the base address that they were made for.
    pub bytes: Vec<u8>,
    /// The root pointer's address.
    pub rsdp: u64,
}

impl MadeTables {
    /// Puts a root pointer, an XSDT and `tables` to the guest-physical address `base`, a multiple of 16. The XSDT lists what is at the
    /// addresses `elsewhere`, then `tables`. `None` if memory runs out.
    pub(super) fn assemble(oem: &Oem, base: u64, elsewhere: &[u64], tables: &[Vec<u8>]) -> Option<MadeTables> {
        let listed = elsewhere.len().checked_add(tables.len())?;
        let xsdt_at = RSDP_LENGTH.checked_next_multiple_of(ALIGN)?;
        let xsdt_length = HEADER.checked_add(listed.checked_mul(size_of::<u64>())?)?;
        let mut xsdt = header(oem, Signature::XSDT, XSDT_REVISION, xsdt_length)?;
        xsdt.extend(elsewhere.iter().flat_map(|at| at.to_le_bytes()));
        let mut places = Vec::new();
        places.try_reserve_exact(tables.len()).ok()?;
        let mut end = xsdt_at.checked_add(xsdt_length)?;
        for table in tables {
            let at = end.checked_next_multiple_of(ALIGN)?;
            xsdt.extend(base.checked_add(at as u64)?.to_le_bytes());
            places.push(at);
            end = at.checked_add(table.len())?;
        }
        finish(&mut xsdt)?;

        let mut bytes = Vec::new();
        bytes.try_reserve_exact(end).ok()?;
        bytes.extend_from_slice(&root_pointer(oem, base.checked_add(xsdt_at as u64)?));
        bytes.resize(xsdt_at, 0);
        bytes.extend_from_slice(&xsdt);
        for (at, table) in places.into_iter().zip(tables) {
            bytes.resize(at, 0);
            bytes.extend_from_slice(table);
        }
        Some(MadeTables { bytes, rsdp: base })
    }
}

/// A table's header and room for `length` bytes in all.
pub(super) fn header(oem: &Oem, signature: Signature, revision: u8, length: usize) -> Option<Vec<u8>> {
    let mut table = Vec::new();
    table.try_reserve_exact(length).ok()?;
    table.extend_from_slice(&signature.0);
    debug_assert_eq!(table.len(), LENGTH_AT);
    table.extend_from_slice(&[0; 4]);
    debug_assert_eq!(table.len(), REVISION_AT);
    table.extend_from_slice(&[revision, 0]);
    table.extend_from_slice(oem);
    Some(table)
}

/// Puts the length and the checksum into a table that is complete.
pub(super) fn finish(table: &mut [u8]) -> Option<()> {
    let length = u32::try_from(table.len()).ok()?.to_le_bytes();
    table.get_mut(LENGTH_AT..REVISION_AT)?.copy_from_slice(&length);
    seal(table, CHECKSUM_AT);
    Some(())
}

fn root_pointer(oem: &Oem, xsdt: u64) -> Vec<u8> {
    let mut rsdp = Vec::with_capacity(RSDP_LENGTH);
    rsdp.extend_from_slice(b"RSD PTR \0");
    rsdp.extend_from_slice(oem.first_chunk::<6>().unwrap_or(&[0; 6]));
    rsdp.push(RSDP_REVISION);
    rsdp.extend_from_slice(&0u32.to_le_bytes()); // no RSDT
    rsdp.extend_from_slice(&(RSDP_LENGTH as u32).to_le_bytes());
    rsdp.extend_from_slice(&xsdt.to_le_bytes());
    rsdp.extend_from_slice(&[0; 4]);
    seal(rsdp.get_mut(..RSDP_V1_LENGTH).unwrap_or_default(), RSDP_CHECKSUM_AT);
    seal(&mut rsdp, RSDP_EXTENDED_CHECKSUM_AT);
    rsdp
}

/// The beginning of a MADT: no flags, so no PICs, and the local APIC of each vCPU. To be [finished](finish).
pub(super) fn processors(oem: &Oem, revision: u8, vcpus: u32) -> Option<Vec<u8>> {
    const LOCAL_APIC_LENGTH: u8 = 8;
    const LOCAL_X2APIC_LENGTH: u8 = 16;
    let room = (vcpus as usize).checked_mul(LOCAL_X2APIC_LENGTH.into())?.checked_add(STRUCTURES)?;
    let mut madt = header(oem, Signature::MADT, revision, room)?;
    madt.extend_from_slice(&LOCAL_APIC_ADDRESS.to_le_bytes());
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
    Some(madt)
}
