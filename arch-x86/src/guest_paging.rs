//! The guest's own page tables, walked in software: how a hypercall's argument, or an instruction to be emulated, is found in memory.
//! All modes that x86 has are one walk over a format (SDM Vol. 3, 4.3 to 4.5).

use mm::addr::GuestPhys;

/// What the walk reads and marks; guest-physical addresses, eight or four bytes, aligned.
pub trait TableMemory {
    /// `None` where there is no RAM.
    fn read_u64(&mut self, at: GuestPhys) -> Option<u64>;
    fn read_u32(&mut self, at: GuestPhys) -> Option<u32>;
    /// Sets bits in an entry, atomically, in its low 32 bits.
    fn set_bits(&mut self, at: GuestPhys, bits: u32);
}

/// The registers that say how the guest translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

/// Why a linear address has no translation: what the guest would find in its page-fault error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoTranslation {
    /// Bits of the page-fault error code: present, write, user, reserved, fetch.
    pub error: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Purpose {
    pub write: bool,
    /// The access is user-mode's (CPL 3).
    pub user: bool,
    pub fetch: bool,
}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

mod fault {
    pub const PROTECTION: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const USER: u32 = 4;
    pub const FETCH: u32 = 16;
}

#[cold]
fn refused(purpose: Purpose, protection: bool) -> NoTranslation {
    let mut error = 0;
    if protection {
        error |= fault::PROTECTION;
    }
    if purpose.write {
        error |= fault::WRITE;
    }
    if purpose.user {
        error |= fault::USER;
    }
    if purpose.fetch {
        error |= fault::FETCH;
    }
    NoTranslation { error }
}

/// Translates `linear`. Inlined where it is called, so that what the purpose asks for is known in the walk.
#[inline(always)]
pub fn translate(
    paging: &Paging,
    linear: u64,
    purpose: Purpose,
    memory: &mut impl TableMemory,
) -> Result<GuestPhys, NoTranslation> {
    if paging.efer & EFER_LMA != 0 {
        return long(paging, linear, purpose, memory);
    }
    let linear = linear & 0xffff_ffff;
    if paging.cr0 & CR0_PG == 0 {
        return Ok(GuestPhys(linear));
    }
    if paging.cr4 & CR4_PAE != 0 {
        pae(paging, linear, purpose, memory)
    } else {
        legacy(paging, linear, purpose, memory)
    }
}

/// Four or five levels of 64-bit entries.
#[inline(always)]
fn long(
    paging: &Paging,
    linear: u64,
    purpose: Purpose,
    memory: &mut impl TableMemory,
) -> Result<GuestPhys, NoTranslation> {
    let root = paging.cr3 & ADDRESS;
    if paging.cr4 & CR4_LA57 != 0 {
        return five_levels(paging, linear, purpose, memory);
    }
    if !is_canonical(linear, 48) {
        return Err(refused(purpose, false));
    }
    descend(paging, linear, purpose, root, 4, memory)
}

#[cold]
#[inline(never)]
fn five_levels(
    paging: &Paging,
    linear: u64,
    purpose: Purpose,
    memory: &mut impl TableMemory,
) -> Result<GuestPhys, NoTranslation> {
    if !is_canonical(linear, 57) {
        return Err(refused(purpose, false));
    }
    descend(paging, linear, purpose, paging.cr3 & ADDRESS, 5, memory)
}

#[inline]
const fn is_canonical(linear: u64, bits: u32) -> bool {
    let unused = 64 - bits;
    ((linear as i64) << unused >> unused) as u64 == linear
}

#[cold]
#[inline(never)]
fn pae(
    paging: &Paging,
    linear: u64,
    purpose: Purpose,
    memory: &mut impl TableMemory,
) -> Result<GuestPhys, NoTranslation> {
    let pointer = GuestPhys((paging.cr3 & 0xffff_ffe0) + (linear >> 30) * 8);
    let entry = memory.read_u64(pointer).ok_or_else(|| refused(purpose, false))?;
    if entry & PRESENT == 0 {
        return Err(refused(purpose, false));
    }
    descend(paging, linear, purpose, entry & ADDRESS, 2, memory)
}

/// Walks `levels` tables of 512 entries of 64 bits.
#[inline(always)]
fn descend(
    paging: &Paging,
    linear: u64,
    purpose: Purpose,
    mut table: u64,
    levels: u32,
    memory: &mut impl TableMemory,
) -> Result<GuestPhys, NoTranslation> {
    // Rights narrow on the way down: all of WRITABLE and USER, any NO_EXECUTE.
    let mut rights = WRITABLE | USER;
    let mut no_execute = 0;
    let mut shift = 12 + 9 * (levels - 1);
    loop {
        let at = GuestPhys(table + (linear >> shift & 511) * 8);
        let entry = memory.read_u64(at).ok_or_else(|| refused(purpose, false))?;
        if entry & PRESENT == 0 {
            return Err(refused(purpose, false));
        }
        rights &= entry;
        no_execute |= entry & NO_EXECUTE;
        let leaf = shift == 12 || (entry & LARGE != 0 && shift <= 30);
        if leaf {
            permit(paging, purpose, rights, no_execute)?;
        }
        mark(entry, at, leaf && purpose.write, memory);
        if leaf {
            let within = (1u64 << shift) - 1;
            return Ok(GuestPhys((entry & ADDRESS & !within) | (linear & within)));
        }
        table = entry & ADDRESS;
        shift -= 9;
    }
}

/// Two levels of 32-bit entries; 4 MiB pages with PSE, PSE-36 included.
#[cold]
#[inline(never)]
fn legacy(
    paging: &Paging,
    linear: u64,
    purpose: Purpose,
    memory: &mut impl TableMemory,
) -> Result<GuestPhys, NoTranslation> {
    let at = GuestPhys((paging.cr3 & 0xffff_f000) + (linear >> 22) * 4);
    let directory = u64::from(memory.read_u32(at).ok_or_else(|| refused(purpose, false))?);
    if directory & PRESENT == 0 {
        return Err(refused(purpose, false));
    }
    if directory & LARGE != 0 && paging.cr4 & CR4_PSE != 0 {
        permit(paging, purpose, directory, 0)?;
        mark(directory, at, purpose.write, memory);
        let high = (directory >> 13 & 0xff) << 32;
        return Ok(GuestPhys(high | (directory & 0xffc0_0000) | (linear & 0x003f_ffff)));
    }
    mark(directory, at, false, memory);
    let at = GuestPhys((directory & 0xffff_f000) + (linear >> 12 & 1023) * 4);
    let entry = u64::from(memory.read_u32(at).ok_or_else(|| refused(purpose, false))?);
    if entry & PRESENT == 0 {
        return Err(refused(purpose, false));
    }
    permit(paging, purpose, directory & entry, 0)?;
    mark(entry, at, purpose.write, memory);
    Ok(GuestPhys((entry & 0xffff_f000) | (linear & 0xfff)))
}

#[inline(always)]
fn permit(paging: &Paging, purpose: Purpose, rights: u64, no_execute: u64) -> Result<(), NoTranslation> {
    let write_refused = purpose.write && rights & WRITABLE == 0 && (purpose.user || paging.cr0 & CR0_WP != 0);
    let user_refused = purpose.user && rights & USER == 0;
    let fetch_refused = purpose.fetch && no_execute != 0 && paging.efer & EFER_NXE != 0;
    if write_refused || user_refused || fetch_refused { Err(refused(purpose, true)) } else { Ok(()) }
}

/// As the CPU does: the guest's memory management reads these bits.
#[inline(always)]
fn mark(entry: u64, at: GuestPhys, dirty: bool, memory: &mut impl TableMemory) {
    let wanted = if dirty { ACCESSED | DIRTY } else { ACCESSED };
    if entry & wanted != wanted {
        memory.set_bits(at, wanted as u32);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    struct Fake(BTreeMap<u64, u64>);

    impl TableMemory for Fake {
        fn read_u64(&mut self, at: GuestPhys) -> Option<u64> {
            Some(self.0.get(&at.0).copied().unwrap_or(0))
        }
        fn read_u32(&mut self, at: GuestPhys) -> Option<u32> {
            let word = self.0.get(&(at.0 & !7)).copied().unwrap_or(0);
            Some(if at.0 & 4 != 0 { (word >> 32) as u32 } else { word as u32 })
        }
        fn set_bits(&mut self, at: GuestPhys, bits: u32) {
            *self.0.entry(at.0).or_default() |= u64::from(bits);
        }
    }

    const LONG: Paging = Paging { cr0: CR0_PG | CR0_WP | 1, cr3: 0x1000, cr4: CR4_PAE, efer: EFER_LMA | EFER_NXE };

    fn four_levels(leaf: u64) -> Fake {
        let linear = 0xffff_8000_1234_5000u64;
        let mut fake = Fake::default();
        for (level, table) in [(39, 0x1000u64), (30, 0x2000), (21, 0x3000)] {
            fake.0.insert(table + (linear >> level & 511) * 8, (table + 0x1000) | PRESENT | WRITABLE | USER);
        }
        fake.0.insert(0x4000 + (linear >> 12 & 511) * 8, leaf);
        fake
    }

    #[test]
    fn a_page_is_found_through_four_levels() {
        let mut fake = four_levels(0xabc000 | PRESENT | WRITABLE);
        let at = translate(&LONG, 0xffff_8000_1234_5678, Purpose::default(), &mut fake);
        assert_eq!(at, Ok(GuestPhys(0xabc678)));
    }

    #[test]
    fn a_write_marks_the_page_dirty_and_a_read_only_accessed() {
        let leaf = 0x4000 + 0x145 * 8;
        let mut fake = four_levels(0xabc000 | PRESENT | WRITABLE);
        translate(&LONG, 0xffff_8000_1234_5678, Purpose::default(), &mut fake).unwrap();
        assert_eq!(fake.0[&leaf] & (ACCESSED | DIRTY), ACCESSED);
        translate(&LONG, 0xffff_8000_1234_5678, Purpose { write: true, ..Purpose::default() }, &mut fake).unwrap();
        assert_eq!(fake.0[&leaf] & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    }

    #[test]
    fn a_write_to_a_read_only_page_is_refused_and_leaves_it_clean() {
        let mut fake = four_levels(0xabc000 | PRESENT);
        let refused = translate(&LONG, 0xffff_8000_1234_5678, Purpose { write: true, ..Purpose::default() }, &mut fake);
        assert_eq!(refused, Err(NoTranslation { error: fault::PROTECTION | fault::WRITE }));
        assert_eq!(fake.0[&(0x4000 + 0x145 * 8)] & DIRTY, 0);
    }

    #[test]
    fn an_address_that_is_not_canonical_has_no_translation() {
        let mut fake = four_levels(0xabc000 | PRESENT);
        assert!(translate(&LONG, 0x1234_8000_1234_5678, Purpose::default(), &mut fake).is_err());
    }

    #[test]
    fn without_paging_linear_is_physical() {
        let off = Paging { cr0: 1, cr3: 0, cr4: 0, efer: 0 };
        assert_eq!(translate(&off, 0x1_0000_1234, Purpose::default(), &mut Fake::default()), Ok(GuestPhys(0x1234)));
    }

    #[test]
    fn a_four_megabyte_page_reaches_above_four_gigabytes() {
        let paging = Paging { cr0: CR0_PG | 1, cr3: 0x1000, cr4: CR4_PSE, efer: 0 };
        let mut fake = Fake::default();
        fake.0.insert(0x1000, 0x0080_0000 | 1 << 13 | PRESENT | LARGE | ACCESSED);
        assert_eq!(translate(&paging, 0x1234, Purpose::default(), &mut fake), Ok(GuestPhys(0x1_0080_1234)));
    }
}
