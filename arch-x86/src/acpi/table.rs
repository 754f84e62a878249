//! One table: a header of 36 bytes, and content whose length and checksum the header holds (ACPI 6.5, 5.2.6).

use alloc::vec::Vec;
use core::fmt;

use mm::HostPhys;

use super::{PhysRead, Problem};

/// The four letters that a table is known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature(pub [u8; 4]);

impl Signature {
    pub const RSDT: Signature = Signature(*b"RSDT");
    pub const XSDT: Signature = Signature(*b"XSDT");
    pub const MADT: Signature = Signature(*b"APIC");
    pub const FADT: Signature = Signature(*b"FACP");
    pub const MCFG: Signature = Signature(*b"MCFG");
    pub const SSDT: Signature = Signature(*b"SSDT");
    pub const HPET: Signature = Signature(*b"HPET");
    pub const DMAR: Signature = Signature(*b"DMAR");
    pub const IVRS: Signature = Signature(*b"IVRS");
    pub const DSDT: Signature = Signature(*b"DSDT");
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{}", byte.escape_ascii()))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

pub(super) const HEADER: usize = 36;
pub(super) const LENGTH_AT: usize = 4;
pub(super) const REVISION_AT: usize = 8;
pub(super) const CHECKSUM_AT: usize = 9;
pub(super) const OEM: core::ops::Range<usize> = 10..HEADER;

/// Longer than any table is; what says so is broken.
const MAX_LENGTH: u32 = 16 << 20;

/// A table that was read whole, its checksum found good.
#[derive(Clone, Debug)]
pub struct Table {
    pub signature: Signature,
    pub at: HostPhys,
    bytes: Vec<u8>,
}

impl Table {
    /// Reads the table at `at`.
    pub fn read(memory: &impl PhysRead, at: HostPhys) -> Result<Table, Problem> {
        let (signature, length) = header(memory, at)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length as usize).map_err(|_| Problem::OutOfMemory { table: signature })?;
        bytes.resize(length as usize, 0);
        memory.read(at, &mut bytes).map_err(|_| Problem::Unreadable { table: signature, at })?;
        match sum(&bytes) {
            0 => Ok(Table { signature, at, bytes }),
            sum => Err(Problem::Checksum { table: signature, at, sum }),
        }
    }

    pub fn revision(&self) -> u8 {
        self.get(REVISION_AT).map_or(0, u8::from_le_bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes at `offset`, for `from_le_bytes`; `None` if the table ends before.
    pub(super) fn get<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        field(&self.bytes, offset)
    }
}

pub(super) fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// The signature and the length of the table at `at`, the latter a possible one.
pub(super) fn header(memory: &impl PhysRead, at: HostPhys) -> Result<(Signature, u32), Problem> {
    let mut head = [0; 8];
    let unknown = Signature(*b"????");
    memory.read(at, &mut head).map_err(|_| Problem::Unreadable { table: unknown, at })?;
    let signature = Signature(field(&head, 0).unwrap_or_default());
    let length = field(&head, LENGTH_AT).map_or(0, u32::from_le_bytes);
    if (length as usize) < HEADER || length > MAX_LENGTH {
        return Err(Problem::Length { table: signature, at, length });
    }
    Ok((signature, length))
}

/// Checks the table at `at` without keeping it.
pub(super) fn check(memory: &impl PhysRead, at: HostPhys) -> Result<(Signature, u32), Problem> {
    let (signature, length) = header(memory, at)?;
    let mut chunk = [0; 256];
    let (mut done, mut total) = (0u32, 0u8);
    while done < length {
        let now = length.saturating_sub(done).min(chunk.len() as u32);
        let part = chunk.get_mut(..now as usize).unwrap_or_default();
        let unreadable = Problem::Unreadable { table: signature, at };
        memory.read(at.checked_add(done.into()).ok_or(unreadable)?, part).map_err(|_| unreadable)?;
        total = total.wrapping_add(sum(part));
        done = done.saturating_add(now);
    }
    match total {
        0 => Ok((signature, length)),
        sum => Err(Problem::Checksum { table: signature, at, sum }),
    }
}

pub(super) fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Sets the byte at `at` so that `bytes` sum up to 0.
pub(super) fn seal(bytes: &mut [u8], at: usize) {
    if let Some(checksum) = bytes.get_mut(at) {
        *checksum = 0;
    }
    let missing = 0u8.wrapping_sub(sum(bytes));
    if let Some(checksum) = bytes.get_mut(at) {
        *checksum = missing;
    }
}
