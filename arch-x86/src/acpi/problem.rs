//! What can be wrong with firmware's tables.

use core::fmt;

use arrayvec::ArrayVec;
use mm::HostPhys;

use super::table::Signature;

/// One thing that is wrong. Written, it is a whole line for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    NoRoot,
    /// The root pointer neither checks out as version 2 nor as version 1.
    RootChecksum {
        at: HostPhys,
    },
    RootTable {
        at: HostPhys,
    },
    Unreadable {
        table: Signature,
        at: HostPhys,
    },
    Length {
        table: Signature,
        at: HostPhys,
        length: u32,
    },
    /// The bytes sum up to `sum`, not to 0.
    Checksum {
        table: Signature,
        at: HostPhys,
        sum: u8,
    },
    /// A structure within the table runs over its end, or has no length.
    Structure {
        table: Signature,
        offset: usize,
    },
    TooManyTables,
    OutOfMemory {
        table: Signature,
    },
    Missing {
        table: Signature,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ACPI: ")?;
        match *self {
            Problem::NoRoot => {
                f.write_str("no root pointer (RSDP) found; Corten needs ACPI, enable it in the firmware's setup")
            }
            Problem::RootChecksum { at } => write!(f, "the root pointer (RSDP) at {at} has a bad checksum; ignored"),
            Problem::RootTable { at } => {
                write!(f, "the root pointer (RSDP) at {at} names no root table that can be read")
            }
            Problem::Unreadable { table, at } => write!(f, "table {table} at {at} lies outside of memory; ignored"),
            Problem::Length { table, at, length } => {
                write!(f, "table {table} at {at} has an impossible length ({length} bytes); ignored")
            }
            Problem::Checksum { table, at, sum } => {
                write!(f, "table {table} at {at} has a bad checksum ({sum:#04x}); ignored")
            }
            Problem::Structure { table, offset } => {
                write!(f, "table {table} is broken at offset {offset:#x}; the rest of it is ignored")
            }
            Problem::TooManyTables => {
                f.write_str("the root table lists more tables than Corten reads; the last are ignored")
            }
            Problem::OutOfMemory { table } => write!(f, "no memory to read table {table}"),
            Problem::Missing { table } => write!(f, "there is no usable table {table}"),
        }
    }
}

impl core::error::Error for Problem {}

/// The problems met so far; beyond the first few they add nothing and are dropped.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    list: ArrayVec<Problem, 16>,
}

impl Problems {
    pub fn add(&mut self, problem: Problem) {
        let _ = self.list.try_push(problem);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }
}
