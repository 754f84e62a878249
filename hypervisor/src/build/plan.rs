//! Which memory a domain gets, and what goes where in it. Pure planning; nothing is touched.
//!
//! Any domain but Dom0 has RAM from address 0 on, with the hole below 4 GiB that Xen's PVH domains have.
//!
//! Dom0's memory is mapped one to one, so its memory map is the machine's: RAM that is not Dom0's is UNUSABLE there, never a hole, for a hole
//! attracts BARs. Dom0 gets RAM from the bottom up, to the page as much as it was given: what its DMA can reach, and large pages wherever
//! the machine's own map allows.
//!
//! First [`Share::choose`], which needs no kernel; then [`Share::place`]. What is placed is to be written in this order: the initrd, the
//! kernel, all else. The initrd keeps clear of where its parts lie until then; the rest may overwrite those.

use core::fmt;
use core::ops::Range;

use mm::{PAGE_SIZE, RangeSet};
use xen_abi::Errno;

use super::dom0_mem::{Dom0Mem, Size};
use super::elf::Relocation;
use super::map::{Map, OutOfMemory, Region, RegionKind};

const PAGE: u64 = PAGE_SIZE as u64;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A PVH kernel's first page tables map no more; what it reads then must lie there.
const EARLY: Range<u64> = MIB..GIB;
/// Linux takes the address of its initrd as 32 bits, and ACPI's root table may list 32-bit addresses.
const BELOW_4G: Range<u64> = MIB..4 * GIB;
/// Where a domain without devices has no RAM, as Xen's PVH domains (`HVM_BELOW_4G_MMIO_START` of Xen's `hvm/e820.h`).
const HOLE: Range<u64> = 0xf000_0000..4 * GIB;

/// What Dom0 keeps if nobody says how much it is to have: enough for a kernel and a toolstack.
const SMALL_DOM0: u64 = 512 * MIB;

/// The machine, as far as Dom0's memory depends on it.
#[derive(Clone, Debug)]
pub struct Host<'a> {
    /// Firmware's memory map, as it came.
    pub map: &'a [Region],
    /// What Corten has taken for itself: its image, its tables, its heap.
    pub kept: &'a [Range<u64>],
    /// The page below 1 MiB on which other CPUs start; reserved in Dom0's map.
    pub trampoline: Range<u64>,
    /// Bytes of what is free that Corten cannot do without.
    pub headroom: u64,
}

/// A domain's memory.
#[derive(Clone, Debug)]
pub struct Share {
    /// Its RAM, whole pages, as the domain sees it; for Dom0 these are also the machine's addresses.
    pub ram: RangeSet,
    /// Its memory map.
    pub map: Map,
    /// Bytes of `ram`, and what the user says them by.
    pub given: Given,
    /// Bytes that Dom0 may grow to, if `dom0_mem=` says so.
    pub limit: Option<u64>,
}

/// How much memory a domain was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    pub bytes: u64,
    /// The option that says so.
    pub option: &'static str,
}

/// What a domain starts with, by its sizes.
#[derive(Clone, Debug)]
pub struct Contents<'a> {
    /// As linked.
    pub kernel: Range<u64>,
    pub relocation: Option<Relocation>,
    /// Of all parts together; 0 for none.
    pub initrd: u64,
    /// Where its parts lie now.
    pub initrd_parts: &'a [Range<u64>],
    /// Bytes for the start info and all it points to.
    pub start_info: u64,
    /// Bytes for the ACPI tables that are made for it.
    pub acpi: u64,
    /// What must not be written over before it is built, such as the unpacked kernel.
    pub busy: &'a [Range<u64>],
}

/// Where it all goes, in the domain's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub kernel: Range<u64>,
    pub initrd: Option<Range<u64>>,
    /// It lies there already.
    pub initrd_in_place: bool,
    pub start_info: Range<u64>,
    /// Whole pages, ACPI-reclaimable in the domain's map.
    pub acpi: Range<u64>,
}

/// Why a domain's memory cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    TooMuch { wanted: u64, free: u64 },
    Nothing,
    FixedKernel { start: u64, end: u64, at: u64, is: Option<RegionKind>, given: Given },
    RelocatableKernel { need: u64, relocation: Relocation, given: Given },
    NoRoom { what: &'static str, need: u64, given: Given },
    OutOfMemory,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            PlanError::TooMuch { wanted, free } => {
                write!(f, "dom0_mem={}: the machine has {} free; lower it", Size(wanted), Size(free))
            }
            PlanError::Nothing => f.write_str("dom0_mem=: leaves no memory for Dom0; raise it"),
            PlanError::FixedKernel { start, end, at, is, given: Given { bytes, option } } => {
                write!(f, "kernel: must be loaded at {start:#x}-{end:#x}, but at {at:#x} there is ")?;
                match is {
                    Some(RegionKind::Unusable) => {
                        write!(f, "nothing of the domain's {}; raise {option} or use a relocatable kernel", Size(bytes))
                    }
                    Some(RegionKind::Ram) => {
                        f.write_str("something that is in use until the domain is built; use a relocatable kernel")
                    }
                    Some(kind) => write!(f, "{kind:?} memory; use a relocatable kernel (Linux 6.12 or later)"),
                    None => write!(f, "no memory; raise {option} or use a relocatable kernel (Linux 6.12 or later)"),
                }
            }
            PlanError::RelocatableKernel { need, relocation: Relocation { align, min, max }, given } => write!(
                f,
                "kernel: no room for {} between {min:#x} and {max:#x} at a multiple of {align:#x} in the domain's {}; raise {}",
                Size(need),
                Size(given.bytes),
                given.option
            ),
            PlanError::NoRoom { what, need, given: Given { bytes, option } } => {
                write!(f, "the domain's {} have no room for {what} ({}); raise {option}", Size(bytes), Size(need))
            }
            PlanError::OutOfMemory => f.write_str("no memory to lay out the domain"),
        }
    }
}

impl core::error::Error for PlanError {}

impl From<OutOfMemory> for PlanError {
    fn from(_: OutOfMemory) -> PlanError {
        PlanError::OutOfMemory
    }
}

/// The one error of [`RangeSet`].
impl From<Errno> for PlanError {
    fn from(_: Errno) -> PlanError {
        PlanError::OutOfMemory
    }
}

impl Host<'_> {
    /// What Dom0 could have of the RAM of `map`.
    fn spare(&self, map: &Map) -> Result<RangeSet, PlanError> {
        let mut spare = RangeSet::new();
        for ram in map.of(RegionKind::Ram) {
            spare.insert(ram)?;
        }
        for kept in self.kept.iter().chain([&self.trampoline]) {
            spare.remove(pages_of(kept))?;
        }
        Ok(spare)
    }

    /// Bytes that other domains may take before Dom0 does, and what is then to be asked for Dom0: as much as before. Where the
    /// user does not say how much that is, others may take all but what a small Dom0 needs.
    pub fn beside_dom0(&self, wanted: &Dom0Mem) -> Result<(u64, Dom0Mem), PlanError> {
        let unbound = self.spare(&Map::new(self.map)?)?.count();
        let free = unbound.saturating_sub(self.headroom);
        if !wanted.is_explicit() {
            return Ok((free.saturating_sub(SMALL_DOM0.min(free >> 1)), *wanted));
        }
        let fixed = wanted.fixed(unbound);
        Ok((free.saturating_sub(fixed.start(unbound)), fixed))
    }
}

impl Share {
    /// Gives Dom0 as much RAM as `wanted` says, from the bottom up.
    pub fn choose(host: &Host<'_>, wanted: &Dom0Mem) -> Result<Share, PlanError> {
        let mut map = Map::new(host.map)?;
        let spare = host.spare(&map)?;
        let unbound = spare.count();
        let free = unbound.saturating_sub(host.headroom);
        let asked = wanted.start(unbound);
        // Only an explicit wish can ask for more than there is.
        let size = if wanted.is_explicit() { asked } else { asked.min(free) } & !(PAGE.wrapping_sub(1));
        if size > free {
            return Err(PlanError::TooMuch { wanted: size, free });
        }
        if size == 0 {
            return Err(PlanError::Nothing);
        }

        let mut ram = RangeSet::new();
        let mut missing = size;
        for range in spare.iter() {
            let end = range.end.min(range.start.saturating_add(missing));
            missing = missing.saturating_sub(end.saturating_sub(range.start));
            ram.insert(range.start..end)?;
        }
        let mut others = RangeSet::new();
        for range in map.of(RegionKind::Ram) {
            others.insert(range)?;
        }
        for range in ram.iter() {
            others.remove(range)?;
        }
        for range in others.iter() {
            map.mark(range, RegionKind::Unusable)?;
        }
        if !host.trampoline.is_empty() {
            map.mark(pages_of(&host.trampoline), RegionKind::Reserved)?;
        }
        let given = Given { bytes: size, option: "dom0_mem" };
        Ok(Share { ram, map, given, limit: wanted.limit(unbound) })
    }

    /// Gives another domain than Dom0 `bytes` of RAM, whole pages.
    pub fn of_size(bytes: u64) -> Result<Share, PlanError> {
        let below = bytes.min(HOLE.start);
        let above = bytes.saturating_sub(below);
        let parts = [0..below, HOLE.end..HOLE.end.saturating_add(above)];
        let map = Map::new(&parts.map(|range| Region::new(range, RegionKind::Ram)))?;
        let mut ram = RangeSet::new();
        for range in map.of(RegionKind::Ram) {
            ram.insert(range)?;
        }
        Ok(Share { ram, map, given: Given { bytes, option: "memory" }, limit: None })
    }

    /// Finds a place for everything that the domain starts with, and marks the ACPI tables in its map.
    pub fn place(&mut self, contents: &Contents<'_>) -> Result<Placement, PlanError> {
        let mut room = self.ram.clone();
        for busy in contents.busy {
            room.remove(pages_of(busy))?;
        }
        let kernel = self.place_kernel(contents, &room)?;
        room.remove(pages_of(&kernel))?;

        let lies = match contents.initrd_parts {
            [whole] if contents.initrd != 0 => Some(whole.start..whole.start.saturating_add(contents.initrd)),
            _ => None,
        };
        let stays = lies
            .filter(|i| i.start & PAGE.wrapping_sub(1) == 0 && i.end <= BELOW_4G.end)
            .filter(|i| room.contains_range(pages_of(i)));
        if let Some(initrd) = &stays {
            room.remove(pages_of(initrd))?;
        }
        let no_room = |what, need| PlanError::NoRoom { what, need, given: self.given };

        let acpi = highest(&room, contents.acpi, BELOW_4G).ok_or(no_room("its ACPI tables", contents.acpi))?;
        let acpi = pages_of(&acpi);
        room.remove(acpi.clone())?;
        let start_info = lowest(&room, contents.start_info, PAGE, EARLY)
            .ok_or(no_room("what the kernel starts with", contents.start_info))?;
        room.remove(pages_of(&start_info))?;

        let initrd_in_place = stays.is_some();
        let initrd = match stays {
            Some(initrd) => Some(initrd),
            None if contents.initrd == 0 => None,
            None => {
                for part in contents.initrd_parts {
                    room.remove(pages_of(part))?;
                }
                let found = highest(&room, contents.initrd, BELOW_4G);
                Some(found.ok_or(no_room("its initrd beside the kernel", contents.initrd))?)
            }
        };
        self.map.mark(acpi.clone(), RegionKind::AcpiReclaim)?;
        Ok(Placement { kernel, initrd, initrd_in_place, start_info, acpi })
    }

    /// Where the kernel is linked if it can be there; else, if it can be moved, the lowest place that also leaves the initrd where it is,
    /// or that does not.
    fn place_kernel(&self, contents: &Contents<'_>, room: &RangeSet) -> Result<Range<u64>, PlanError> {
        let linked = contents.kernel.clone();
        let need = linked.end.saturating_sub(linked.start);
        let Some(relocation) = contents.relocation else {
            if room.contains_range(pages_of(&linked)) {
                return Ok(linked);
            }
            let at = first_outside(&linked, room);
            let is = self.map.regions().iter().find(|r| r.range().contains(&at)).map(|r| r.kind);
            return Err(PlanError::FixedKernel { start: linked.start, end: linked.end, at, is, given: self.given });
        };

        let mut clear = room.clone();
        for part in contents.initrd_parts {
            clear.remove(pages_of(part))?;
        }
        let bounds = relocation.min.max(MIB)..relocation.max.saturating_add(1);
        let fits = |room: &RangeSet| {
            let here = linked.start & relocation.align.wrapping_sub(1) == 0
                && bounds.start <= linked.start
                && linked.end <= bounds.end
                && room.contains_range(pages_of(&linked));
            if here { Some(linked.clone()) } else { lowest(room, need, relocation.align.max(PAGE), bounds.clone()) }
        };
        fits(&clear).or_else(|| fits(room)).ok_or(PlanError::RelocatableKernel { need, relocation, given: self.given })
    }
}

/// The pages that `range` touches.
fn pages_of(range: &Range<u64>) -> Range<u64> {
    let mask = PAGE.wrapping_sub(1);
    range.start & !mask..range.end.saturating_add(mask) & !mask
}

/// The first page's address in `range` that is not in `set`.
fn first_outside(range: &Range<u64>, set: &RangeSet) -> u64 {
    set.iter().find(|r| r.contains(&range.start)).map_or(range.start, |r| r.end)
}

/// The lowest `size` bytes within `bounds` that `room` has.
fn lowest(room: &RangeSet, size: u64, align: u64, bounds: Range<u64>) -> Option<Range<u64>> {
    room.iter().find_map(|range| {
        let start = range.start.max(bounds.start).checked_next_multiple_of(align)?;
        let end = start.checked_add(size)?;
        (end <= range.end.min(bounds.end)).then_some(start..end)
    })
}

/// The highest `size` bytes within `bounds` that `room` has, beginning with a page.
fn highest(room: &RangeSet, size: u64, bounds: Range<u64>) -> Option<Range<u64>> {
    room.iter().rev().find_map(|range| {
        let start = range.end.min(bounds.end).checked_sub(size)? & !PAGE.wrapping_sub(1);
        (start >= range.start.max(bounds.start)).then_some(start..start.checked_add(size)?)
    })
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // lists of ranges, some of one
mod tests {
    use super::super::dom0_mem::Amount;
    use super::RegionKind::*;
    use super::*;
    use proptest::prelude::*;

    const TRAMPOLINE: Range<u64> = 0x8000..0x9000;

    /// A PC with `gib` GiB of RAM, 3 of them below 4 GiB.
    fn pc(gib: u64) -> Vec<Region> {
        let mut map = vec![
            Region::new(0..0x9fc00, Ram),
            Region::new(0x9fc00..0xa0000, Reserved),
            Region::new(0xf0000..0x10_0000, Reserved),
            Region::new(MIB..gib.min(3) * GIB - 0x2_0000, Ram),
            Region::new(gib.min(3) * GIB - 0x2_0000..gib.min(3) * GIB, AcpiReclaim),
            Region::new(0xfec0_0000..0xfec0_1000, Reserved),
        ];
        if gib > 3 {
            map.push(Region::new(4 * GIB..(gib + 1) * GIB, Ram));
        }
        map
    }

    const CORTEN: Range<u64> = 0x800_0000..0x900_0000;

    fn choose(gib: u64, wanted: &str) -> Result<Share, PlanError> {
        let mut option = Dom0Mem::default();
        if !wanted.is_empty() {
            option.parse(wanted).unwrap();
        }
        let host = Host { map: &pc(gib), kept: &[CORTEN], trampoline: TRAMPOLINE, headroom: 8 * MIB };
        Share::choose(&host, &option)
    }

    fn linux_6_1() -> Contents<'static> {
        Contents {
            kernel: 0x100_0000..0x4a0_0000,
            relocation: None,
            initrd: 0,
            initrd_parts: &[],
            start_info: 0x1800,
            acpi: 0x300,
            busy: &[],
        }
    }

    fn linux_6_12() -> Contents<'static> {
        let relocation = Some(Relocation { align: 0x20_0000, min: 0x100_0000, max: 0x3fff_ffff });
        Contents { kernel: 0x100_0000..0x420_0000, relocation, ..linux_6_1() }
    }

    #[test]
    fn dom0_gets_to_the_page_what_it_was_given_from_the_bottom_up() {
        let share = choose(8, "512M").unwrap();
        assert_eq!((share.given.bytes, share.ram.count()), (512 * MIB, 512 * MIB));
        let ranges: Vec<_> = share.ram.iter().collect();
        assert_eq!(ranges[..2], [0..0x8000, 0x9000..0x9f000]);
        assert_eq!(ranges[2], MIB..CORTEN.start);
        assert_eq!(ranges[3].start, CORTEN.end);
        assert_eq!(ranges.len(), 4);
    }

    #[test]
    fn ram_that_is_not_dom0s_is_unusable_and_all_else_is_as_the_machine_has_it() {
        let share = choose(8, "512M").unwrap();
        let kind = |at| share.map.regions().iter().find(|r| r.range().contains(&at)).map(|r| r.kind);
        assert_eq!(kind(0), Some(Ram));
        assert_eq!(kind(TRAMPOLINE.start), Some(Reserved));
        assert_eq!(kind(0x9f000), Some(Reserved));
        assert_eq!(kind(0xa0000), None);
        assert_eq!(kind(CORTEN.start), Some(Unusable));
        assert_eq!(kind(2 * GIB), Some(Unusable));
        assert_eq!(kind(3 * GIB - 1), Some(AcpiReclaim));
        assert_eq!(kind(0xfec0_0000), Some(Reserved));
        assert_eq!(kind(6 * GIB), Some(Unusable));
        let ram: u64 = share.map.of(Ram).map(|r| r.end - r.start).sum();
        assert_eq!(ram, share.given.bytes);
    }

    #[test]
    fn without_dom0_mem_a_little_stays_free() {
        let share = choose(8, "").unwrap();
        let all: u64 = Map::new(&pc(8)).unwrap().of(Ram).map(|r| r.end - r.start).sum();
        let kept = CORTEN.end - CORTEN.start + PAGE;
        assert_eq!(share.given.bytes, all - kept - 128 * MIB);
        assert_eq!(share.limit, None);
        assert_eq!(choose(8, "1G,max:2G").unwrap().limit, Some(2 * GIB));
    }

    #[test]
    fn more_than_there_is_is_refused_with_both_figures() {
        let error = choose(8, "64G").unwrap_err();
        assert_eq!(error.to_string(), "dom0_mem=64 GiB: the machine has 7.9 GiB free; lower it");
        assert_eq!(choose(8, "-64G").unwrap_err(), PlanError::Nothing);
        assert!(matches!(choose(8, "100%"), Err(PlanError::TooMuch { .. })));
    }

    #[test]
    fn other_domains_may_take_what_dom0_leaves() {
        let map = pc(8);
        let host = Host { map: &map, kept: &[CORTEN], trampoline: TRAMPOLINE, headroom: 8 * MIB };
        let beside = |text: &str| {
            let mut option = Dom0Mem::default();
            if !text.is_empty() {
                option.parse(text).unwrap();
            }
            host.beside_dom0(&option).unwrap()
        };
        let all = host.spare(&Map::new(&map).unwrap()).unwrap().count() - 8 * MIB;
        assert_eq!(beside("2G").0, all - 2 * GIB);
        assert_eq!(beside("").0, all - SMALL_DOM0);
        assert_eq!(beside("64G").0, 0);
        // Dom0 gets no less because others took theirs first.
        let (left, fixed) = beside("-1G,max:-1G");
        assert_eq!(left, GIB - 8 * MIB);
        assert_eq!((fixed.start(0), fixed.limit(0)), (all + 8 * MIB - GIB, Some(all + 8 * MIB - GIB)));
    }

    #[test]
    fn a_fixed_kernel_goes_where_it_is_linked_or_nowhere() {
        let mut share = choose(4, "512M").unwrap();
        let placed = share.place(&linux_6_1()).unwrap();
        assert_eq!(placed.kernel, 0x100_0000..0x4a0_0000);
        assert_eq!(placed.start_info.start, MIB);
        let error = choose(4, "32M").unwrap().place(&linux_6_1()).unwrap_err();
        assert!(error.to_string().contains("raise dom0_mem"), "{error}");
        let split = Contents { kernel: 0x700_0000..0x810_0000, ..linux_6_1() };
        let error = choose(4, "512M").unwrap().place(&split).unwrap_err();
        assert!(matches!(error, PlanError::FixedKernel { at: 0x800_0000, is: Some(Unusable), .. }));
    }

    #[test]
    fn a_relocatable_kernel_moves_out_of_the_way() {
        let mut share = choose(4, "512M").unwrap();
        let busy = [0x200_0000..0x210_0000];
        let placed = share.place(&Contents { busy: &busy, ..linux_6_12() }).unwrap();
        assert_eq!(placed.kernel, 0x220_0000..0x540_0000);
        let bounds = Some(Relocation { align: 0x20_0000, min: 0x100_0000, max: 0x100_0000 + 0x31f_ffff });
        let tight = Contents { relocation: bounds, ..linux_6_12() };
        assert_eq!(share.place(&tight).unwrap().kernel, 0x100_0000..0x420_0000);
        let error = share.place(&Contents { busy: &busy, ..tight }).unwrap_err();
        assert!(matches!(error, PlanError::RelocatableKernel { .. }));
    }

    #[test]
    fn the_initrd_stays_where_it_is_if_nothing_else_must_be_there() {
        let free = [0x600_0000..0x700_0000];
        let size = 0xff_f123;
        let contents = Contents { initrd: size, initrd_parts: &free, ..linux_6_1() };
        let placed = choose(4, "512M").unwrap().place(&contents).unwrap();
        assert_eq!((placed.initrd, placed.initrd_in_place), (Some(0x600_0000..0x600_0000 + size), true));

        let under_the_kernel = [0x400_0000..0x500_0000];
        let contents = Contents { initrd: size, initrd_parts: &under_the_kernel, ..linux_6_1() };
        let placed = choose(4, "512M").unwrap().place(&contents).unwrap();
        assert!(!placed.initrd_in_place);
        let contents = Contents { initrd: size, initrd_parts: &under_the_kernel, ..linux_6_12() };
        let placed = choose(4, "512M").unwrap().place(&contents).unwrap();
        assert!(placed.initrd_in_place && placed.kernel.start == CORTEN.end, "{placed:x?}");
    }

    #[test]
    fn several_initrds_move_to_a_place_of_their_own() {
        let parts = [0x600_0000..0x700_0000, 0x7f0_0000..0x7f1_0000];
        let contents = Contents { initrd: 0x101_0000, initrd_parts: &parts, ..linux_6_1() };
        let placed = choose(4, "512M").unwrap().place(&contents).unwrap();
        let initrd = placed.initrd.unwrap();
        assert!(!placed.initrd_in_place && initrd.end <= placed.acpi.start && initrd.start > CORTEN.end);
    }

    #[test]
    fn the_acpi_tables_are_marked_in_the_map() {
        let mut share = choose(4, "512M").unwrap();
        let placed = share.place(&linux_6_1()).unwrap();
        assert_eq!(placed.acpi.end, share.ram.iter().last().unwrap().end);
        assert!(share.map.regions().contains(&Region::new(placed.acpi, AcpiReclaim)));
    }

    #[test]
    fn an_initrd_that_does_not_fit_is_named() {
        let parts = [0x600_0000..0x2000_0000];
        let contents = Contents { initrd: 480 * MIB, initrd_parts: &parts, ..linux_6_1() };
        let error = choose(4, "512M").unwrap().place(&contents).unwrap_err();
        assert!(error.to_string().contains("initrd") && error.to_string().contains("480 MiB"), "{error}");
    }

    #[test]
    fn another_domain_has_ram_from_0_on_and_a_hole_below_4_gib() {
        let ranges = |bytes| Share::of_size(bytes).unwrap().ram.iter().collect::<Vec<_>>();
        assert_eq!(ranges(64 * MIB), [0..64 * MIB]);
        assert_eq!(ranges(0xf000_0000), [0..0xf000_0000]);
        assert_eq!(ranges(5 * GIB), [0..0xf000_0000, 4 * GIB..5 * GIB + 0x1000_0000]);
        let mut share = Share::of_size(5 * GIB).unwrap();
        let placed = share.place(&Contents { initrd: 0x123_4567, ..linux_6_12() }).unwrap();
        assert_eq!((placed.kernel.start, placed.acpi.end), (0x100_0000, 0xf000_0000));
        assert_eq!(placed.start_info.start, MIB);
        let initrd = placed.initrd.unwrap();
        assert!(!placed.initrd_in_place && initrd.end <= placed.acpi.start);
        let kinds: Vec<_> = share.map.regions().iter().map(|region| (region.start, region.kind)).collect();
        assert_eq!(kinds, [(0, Ram), (placed.acpi.start, AcpiReclaim), (4 * GIB, Ram)]);
    }

    #[test]
    fn a_domain_that_is_too_small_for_its_kernel_is_told_so_by_its_own_option() {
        let error = Share::of_size(32 * MIB).unwrap().place(&linux_6_12()).unwrap_err().to_string();
        assert!(
            error.contains("kernel: no room for 50 MiB") && error.ends_with("the domain's 32 MiB; raise memory"),
            "{error}"
        );
        let error = Share::of_size(32 * MIB).unwrap().place(&linux_6_1()).unwrap_err().to_string();
        assert!(error.contains("no memory; raise memory or"), "{error}");
    }

    prop_compose! {
        fn page_range()(start in 0u64..0x4_0000, pages in 1u64..0x8000) -> Range<u64> {
            start * PAGE..(start + pages) * PAGE
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_placed_overlaps_or_lies_outside_of_dom0s_ram(
            mem in 16u64..2048,
            kept in proptest::collection::vec(page_range(), 0..4),
            busy in proptest::collection::vec(page_range(), 0..3),
            parts in proptest::collection::vec(page_range(), 0..3),
            relocatable: bool,
        ) {
            let map = pc(4);
            let host = Host { map: &map, kept: &kept, trampoline: TRAMPOLINE, headroom: 0 };
            let option = Dom0Mem { size: Some(Amount::bytes(mem * MIB)), ..Dom0Mem::default() };
            let Ok(mut share) = Share::choose(&host, &option) else { return Ok(()) };
            for range in &kept {
                prop_assert!(!share.ram.overlaps(range.clone()));
            }
            let initrd = parts.iter().map(|p| p.end - p.start).sum();
            let base = if relocatable { linux_6_12() } else { linux_6_1() };
            let contents = Contents { initrd, initrd_parts: &parts, busy: &busy, ..base };
            let Ok(placed) = share.place(&contents) else { return Ok(()) };
            let mut all = vec![placed.kernel.clone(), placed.start_info.clone(), placed.acpi.clone()];
            all.extend(placed.initrd.clone());
            for (i, a) in all.iter().enumerate() {
                prop_assert!(share.ram.contains_range(pages_of(a)));
                let written = i < 3 || !placed.initrd_in_place;
                if written {
                    prop_assert!(busy.iter().all(|b| a.end <= b.start || b.end <= a.start));
                }
                for b in &all[..i] {
                    prop_assert!(a.end <= b.start || b.end <= a.start);
                }
            }
            if let (Some(initrd), false) = (&placed.initrd, placed.initrd_in_place) {
                prop_assert!(parts.iter().all(|p| initrd.end <= p.start || p.end <= initrd.start));
            }
        }
    }
}
