//! Firmware for the tests.

use alloc::vec::Vec;

use mm::HostPhys;

use super::table::{CHECKSUM_AT, LENGTH_AT, seal};
use super::{BadAddress, PhysRead};

/// The first MiB of a machine.
pub struct Memory {
    bytes: Vec<u8>,
}

impl Memory {
    pub fn new() -> Memory {
        Memory { bytes: vec![0; 1 << 20] }
    }

    /// Puts `bytes` to `at`, and returns `at`.
    pub fn place(&mut self, at: u64, bytes: &[u8]) -> u64 {
        self.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        at
    }

    /// The bytes from `at` on.
    pub fn bytes(&self, at: usize, len: usize) -> &[u8] {
        &self.bytes[at..at + len]
    }

    /// Makes the checksum of the table at `at` good again, if its length is possible.
    pub fn reseal(&mut self, at: usize) {
        let length = u32::from_le_bytes(self.bytes[at + LENGTH_AT..at + LENGTH_AT + 4].try_into().unwrap()) as usize;
        if let Some(table) = self.bytes.get_mut(at..at.saturating_add(length)) {
            seal(table, CHECKSUM_AT);
        }
    }
}

impl PhysRead for Memory {
    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BadAddress> {
        let start = usize::try_from(at.0).map_err(|_| BadAddress(at))?;
        let end = start.checked_add(into.len()).ok_or(BadAddress(at))?;
        into.copy_from_slice(self.bytes.get(start..end).ok_or(BadAddress(at))?);
        Ok(())
    }
}

/// A sealed table of revision 3.
pub fn table(signature: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend((36 + content.len() as u32).to_le_bytes());
    bytes.extend([3, 0]);
    bytes.extend(b"OEMID OEMTABLE");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(b"CRTR");
    bytes.extend(2u32.to_le_bytes());
    bytes.extend(content);
    seal(&mut bytes, CHECKSUM_AT);
    bytes
}

pub fn rsdp_v1(rsdt: u32) -> Vec<u8> {
    let mut bytes = b"RSD PTR \0OEMID \0".to_vec();
    bytes.extend(rsdt.to_le_bytes());
    seal(&mut bytes, 8);
    bytes
}

pub fn rsdp_v2(rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut bytes = b"RSD PTR \0OEMID \x02".to_vec();
    bytes.extend(rsdt.to_le_bytes());
    seal(&mut bytes, 8);
    bytes.extend(36u32.to_le_bytes());
    bytes.extend(xsdt.to_le_bytes());
    bytes.extend([0; 4]);
    seal(&mut bytes, 32);
    bytes
}
