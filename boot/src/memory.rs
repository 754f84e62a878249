//! The memory map: from what firmware says to sorted regions without overlaps, and which RAM of it is free for Corten.

use core::fmt;
use core::ops::Range;

use arrayvec::ArrayVec;
use mm::{HostPhys, MemoryType, Mfn, PAGE_SIZE};

use crate::info::MAX_REGIONS;

/// What a region is, in ascending order of precedence: where two overlap, the later one holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RegionKind {
    Ram,
    /// ACPI tables, which may be reclaimed when they have been read.
    Acpi,
    /// What firmware needs kept, also over sleep.
    Nvs,
    Reserved,
    /// Memory with errors.
    Unusable,
}

impl RegionKind {
    /// The kind of an e820 type (ACPI 6.5, table 15.2). Types that are not known are left alone.
    pub fn from_e820(number: u32) -> Self {
        match number {
            1 => Self::Ram,
            3 => Self::Acpi,
            4 => Self::Nvs,
            5 => Self::Unusable,
            _ => Self::Reserved,
        }
    }

    /// The e820 type.
    pub fn to_e820(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
            Self::Acpi => 3,
            Self::Nvs => 4,
            Self::Unusable => 5,
        }
    }

    /// The kind of a UEFI memory type once boot services are over (UEFI 2.10, table 7.10).
    pub fn from_efi(number: u32) -> Self {
        match number {
            // Loader code and data, boot services code and data, conventional memory.
            1..=4 | 7 => Self::Ram,
            8 => Self::Unusable,
            9 => Self::Acpi,
            10 => Self::Nvs,
            _ => Self::Reserved,
        }
    }
}

impl fmt::Display for RegionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ram => "RAM",
            Self::Acpi => "ACPI tables",
            Self::Nvs => "ACPI NVS",
            Self::Reserved => "reserved",
            Self::Unusable => "unusable",
        })
    }
}

/// A piece of the physical address space: bytes `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    pub kind: RegionKind,
}

impl Region {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#014x}..{:#014x} {}", self.start, self.end, self.kind)
    }
}

/// A region that the map could not take over as it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Firmware says two things of one piece; what it is taken as.
    Overlap(Region, Region, RegionKind),
    /// Ends before it begins, or beyond the physical address space.
    Absurd(Region),
    /// There is no room for so many regions; this one is left out.
    TooMany(Region),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap(a, b, kind) => write!(f, "memory map: {a} overlaps {b}; taken as {kind}"),
            Self::Absurd(region) => write!(f, "memory map: {region} makes no sense; left out"),
            Self::TooMany(region) => write!(f, "memory map: too many regions; {region} is left out"),
        }
    }
}

/// The end of what x86-64 can address physically.
const ADDRESS_LIMIT: u64 = 1 << 52;

/// Puts regions in order: sorted, without overlaps, neighbours of one kind merged.
pub fn normalise(
    given: impl IntoIterator<Item = Region>,
    mut problem: impl FnMut(Problem),
) -> ArrayVec<Region, MAX_REGIONS> {
    let mut raw = ArrayVec::<Region, MAX_REGIONS>::new();
    for region in given {
        if region.start == region.end {
            continue;
        }
        if region.start > region.end || region.end > ADDRESS_LIMIT {
            problem(Problem::Absurd(region));
            continue;
        }
        // UEFI gives runs of descriptors of one kind: joined at once, so that they take one place.
        let touches = |r: &Region| r.kind == region.kind && (r.end == region.start || r.start == region.end);
        if let Some(neighbour) = raw.iter_mut().find(|r| touches(r)) {
            neighbour.start = neighbour.start.min(region.start);
            neighbour.end = neighbour.end.max(region.end);
        } else if raw.try_push(region).is_err() {
            problem(Problem::TooMany(region));
        }
    }
    raw.sort_unstable_by_key(|region| (region.start, region.end));

    for (index, a) in raw.iter().enumerate() {
        for b in raw.iter().skip(index + 1).take_while(|b| b.start < a.end) {
            if a.kind != b.kind {
                problem(Problem::Overlap(*a, *b, a.kind.max(b.kind)));
            }
        }
    }

    // From border to border nothing changes: each such piece is of the strongest kind that covers it.
    let mut map = ArrayVec::<Region, MAX_REGIONS>::new();
    let mut at = 0;
    while let Some(next) = raw.iter().flat_map(|r| [r.start, r.end]).filter(|&border| border > at).min() {
        let covering = raw.iter().filter(|r| r.start <= at && at < r.end).map(|r| r.kind).max();
        if let Some(kind) = covering {
            match map.last_mut() {
                Some(last) if last.end == at && last.kind == kind => last.end = next,
                _ => {
                    let piece = Region { start: at, end: next, kind };
                    if map.try_push(piece).is_err() {
                        problem(Problem::TooMany(piece));
                    }
                }
            }
        }
        at = next;
    }
    map
}

/// RAM that nobody has yet, by whole frames. Allocations at boot come from its top and are for good; what is left goes to the
/// frame allocator.
#[derive(Clone, Debug, Default)]
pub struct FreeMemory {
    /// Bytes, page-aligned, sorted and disjoint.
    ranges: ArrayVec<Range<u64>, MAX_REGIONS>,
    /// What was taken, merged where adjacent.
    taken: ArrayVec<Range<u64>, 8>,
}

/// 32-bit addresses end here; what Corten takes stays below where it can, but for the frame table.
const BELOW_4G: u64 = 1 << 32;

impl FreeMemory {
    /// The RAM of a map, but for the low 1 MiB (firmware's and the AP trampoline's) and the ranges `used`.
    pub fn new(map: &[Region], used: impl IntoIterator<Item = Range<u64>>) -> Self {
        const PAGE: u64 = PAGE_SIZE as u64;
        let mut ranges = ArrayVec::new();
        for region in map.iter().filter(|region| region.kind == RegionKind::Ram) {
            let (start, end) = (region.start.next_multiple_of(PAGE).max(1 << 20), region.end & !(PAGE - 1));
            if start < end {
                let _ = ranges.try_push(start..end);
            }
        }
        let mut free = Self { ranges, taken: ArrayVec::new() };
        for range in used {
            free.exclude(range.start & !(PAGE - 1)..range.end.saturating_add(PAGE - 1) & !(PAGE - 1));
        }
        free
    }

    fn exclude(&mut self, used: Range<u64>) {
        if used.is_empty() {
            return;
        }
        let mut index = 0;
        while let Some(range) = self.ranges.get_mut(index) {
            let (before, after) = (range.start..range.end.min(used.start), range.start.max(used.end)..range.end);
            match (before.is_empty(), after.is_empty()) {
                (true, true) => {
                    self.ranges.remove(index);
                    continue;
                }
                (false, true) => *range = before,
                (true, false) => *range = after,
                (false, false) => {
                    *range = after;
                    // Without room for two pieces the lower one is given up.
                    let _ = self.ranges.try_insert(index, before);
                    index += 1;
                }
            }
            index += 1;
        }
    }

    /// Takes `frames` frames aligned to a power of two of them, as high below 4 GiB as they fit, else anywhere. They hold
    /// what they held: nothing is cleared.
    pub fn take(&mut self, frames: u64, align: u64) -> Option<Mfn> {
        self.take_below(BELOW_4G, frames, align).or_else(|| self.take_highest(frames, align))
    }

    /// As [`take`](Self::take), as high as they fit, which is for what is used by the direct map alone.
    pub fn take_highest(&mut self, frames: u64, align: u64) -> Option<Mfn> {
        self.take_below(u64::MAX, frames, align)
    }

    fn take_below(&mut self, limit: u64, frames: u64, align: u64) -> Option<Mfn> {
        let bytes = frames.checked_mul(PAGE_SIZE as u64)?;
        let align = align.checked_mul(PAGE_SIZE as u64)?;
        let at = self.ranges.iter().rev().find_map(|range| {
            let start = range.end.min(limit).checked_sub(bytes)? & !(align - 1);
            (start >= range.start).then_some(start)
        })?;
        self.exclude(at..at + bytes);
        match self.taken.iter_mut().find(|t| t.start == at + bytes || t.end == at) {
            Some(neighbour) => {
                neighbour.start = neighbour.start.min(at);
                neighbour.end = neighbour.end.max(at + bytes);
            }
            // Only a report: leaving a piece out of it takes nothing back.
            None => {
                let _ = self.taken.try_push(at..at + bytes);
            }
        }
        Some(HostPhys(at).mfn())
    }

    /// What is free, as ranges of frames in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<Mfn>> + '_ {
        self.ranges.iter().map(|range| HostPhys(range.start).mfn()..HostPhys(range.end).mfn())
    }

    /// What was taken.
    pub fn taken(&self) -> &ArrayVec<Range<u64>, 8> {
        &self.taken
    }

    /// The bytes that are free.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

/// What the direct map shows, as runs of whole pages in ascending order with the memory type of each: RAM, the firmware's tables
/// and its low memory, as well as what is reserved below 4 GiB, which may hold tables on old machines and devices on others. The
/// image is left out: nobody has business with it here.
pub fn direct_map(map: &[Region], image: Range<u64>) -> impl Iterator<Item = (Range<u64>, MemoryType)> + '_ {
    const PAGE: u64 = PAGE_SIZE as u64;
    const LOW: u64 = 1 << 20;
    // Low memory is of one kind but for the screen's. Old BIOSes leave tables in it that no map mentions.
    let low = [(0..0xa_0000, MemoryType::WriteBack), (0xc_0000..LOW, MemoryType::WriteBack)];
    let mut done = LOW;
    let mut regions = map.iter().peekable();
    let runs = core::iter::from_fn(move || {
        loop {
            let region = regions.next()?;
            let Some(memory) = shown_as(region) else { continue };
            // A page that two regions share goes to the first.
            let start = (region.start & !(PAGE - 1)).max(done);
            let mut end = region.end;
            while let Some(next) = regions.next_if(|next| next.start == end && shown_as(next) == Some(memory)) {
                end = next.end;
            }
            end = end.next_multiple_of(PAGE);
            if start < end {
                done = end;
                return Some((start..end, memory));
            }
        }
    });
    low.into_iter().chain(runs).flat_map(move |(run, memory)| {
        let before = run.start..run.end.min(image.start.max(run.start));
        let after = run.start.max(image.end.min(run.end))..run.end;
        // The image lies within one run or in none.
        let pieces = if image.start < run.end && run.start < image.end { [before, after] } else { [run, 0..0] };
        pieces.into_iter().filter(|piece| !piece.is_empty()).map(move |piece| (piece, memory))
    })
}

/// The memory type that the direct map shows a region with, if it does.
fn shown_as(region: &Region) -> Option<MemoryType> {
    match region.kind {
        RegionKind::Ram | RegionKind::Acpi | RegionKind::Nvs => Some(MemoryType::WriteBack),
        RegionKind::Reserved if region.end <= BELOW_4G => Some(MemoryType::Uncacheable),
        RegionKind::Reserved | RegionKind::Unusable => None,
    }
}

/// The end of RAM: one more than the highest address that is any.
pub fn end_of_ram(map: &[Region]) -> u64 {
    map.iter().filter(|region| region.kind == RegionKind::Ram).map(|region| region.end).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, end: u64, kind: RegionKind) -> Region {
        Region { start, end, kind }
    }

    fn ordered(given: &[Region]) -> (Vec<Region>, Vec<String>) {
        let mut problems = Vec::new();
        let map = normalise(given.iter().copied(), |problem| problems.push(problem.to_string()));
        (map.to_vec(), problems)
    }

    #[test]
    fn a_tidy_map_stays_as_it_is() {
        let given = [
            region(0, 0x9fc00, RegionKind::Ram),
            region(0x9fc00, 0xa0000, RegionKind::Reserved),
            region(0xf0000, 0x100000, RegionKind::Reserved),
            region(0x100000, 0x7ffe0000, RegionKind::Ram),
            region(0x7ffe0000, 0x80000000, RegionKind::Acpi),
        ];
        assert_eq!(ordered(&given), (given.to_vec(), vec![]));
    }

    #[test]
    fn regions_are_sorted_and_neighbours_of_one_kind_merged() {
        let (map, problems) = ordered(&[
            region(0x3000, 0x4000, RegionKind::Ram),
            region(0x1000, 0x2000, RegionKind::Ram),
            region(0x2000, 0x3000, RegionKind::Ram),
            region(0x5000, 0x5000, RegionKind::Nvs),
        ]);
        assert_eq!(map, [region(0x1000, 0x4000, RegionKind::Ram)]);
        assert_eq!(problems, [""; 0]);
    }

    #[test]
    fn where_regions_overlap_the_stronger_kind_holds_and_it_is_said() {
        let (map, problems) =
            ordered(&[region(0, 0x100000, RegionKind::Ram), region(0x80000, 0x180000, RegionKind::Reserved)]);
        assert_eq!(map, [region(0, 0x80000, RegionKind::Ram), region(0x80000, 0x180000, RegionKind::Reserved)]);
        assert_eq!(
            problems,
            [
                "memory map: 0x000000000000..0x000000100000 RAM overlaps 0x000000080000..0x000000180000 reserved; taken as reserved"
            ]
        );
    }

    #[test]
    fn a_hole_punched_into_ram_splits_it() {
        let (map, problems) =
            ordered(&[region(0, 0x9000, RegionKind::Ram), region(0x3000, 0x4000, RegionKind::Unusable)]);
        assert_eq!(
            map,
            [
                region(0, 0x3000, RegionKind::Ram),
                region(0x3000, 0x4000, RegionKind::Unusable),
                region(0x4000, 0x9000, RegionKind::Ram)
            ]
        );
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn absurd_regions_are_left_out() {
        let (map, problems) =
            ordered(&[region(0x5000, 0x1000, RegionKind::Ram), region(0, u64::MAX, RegionKind::Reserved)]);
        assert_eq!(map, []);
        assert_eq!(problems.len(), 2);
    }

    #[test]
    fn the_strongest_kind_holds_at_every_address() {
        // Against the plain definition, on many small maps.
        use RegionKind::*;
        let kinds = [Ram, Acpi, Nvs, Reserved, Unusable];
        let mut seed = 1u64;
        let mut random = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..500 {
            let given: Vec<Region> = (0..6)
                .map(|_| {
                    let start = random(24);
                    region(start, start + random(8), kinds[random(5) as usize])
                })
                .collect();
            let (map, _) = ordered(&given);
            for at in 0..40 {
                let want = given.iter().filter(|r| (r.start..r.end).contains(&at)).map(|r| r.kind).max();
                let got: Vec<_> = map.iter().filter(|r| (r.start..r.end).contains(&at)).map(|r| r.kind).collect();
                assert_eq!(got, want.into_iter().collect::<Vec<_>>(), "{given:?} at {at}");
            }
            assert!(map.windows(2).all(|w| w[0].end < w[1].start || w[0].kind != w[1].kind), "{map:?}");
        }
    }

    fn machine() -> FreeMemory {
        let map = [
            region(0, 0x9f000, RegionKind::Ram),
            region(0x100000, 0x8000_0000, RegionKind::Ram),
            region(0x1_0000_0000, 0x1_8000_0000, RegionKind::Ram),
        ];
        FreeMemory::new(&map, [0x7fe0_0000..0x7ff5_1234, 0x200_0010..0x300_0000])
    }

    #[test]
    fn free_memory_leaves_out_low_memory_and_what_is_used() {
        let free: Vec<_> = machine().ranges().map(|r| r.start.0..r.end.0).collect();
        assert_eq!(free, [0x100..0x2000, 0x3000..0x7fe00, 0x7ff52..0x80000, 0x100000..0x180000]);
    }

    #[test]
    fn allocations_come_from_the_top_of_memory_below_4_gib() {
        let mut free = machine();
        assert_eq!(free.take(1, 1), Some(Mfn(0x7ffff)));
        assert_eq!(free.take(2, 2), Some(Mfn(0x7fffc)));
        assert_eq!(free.take(0x1000, 1), Some(Mfn(0x7ee00)));
        assert_eq!(free.take(0x7_ffff, 1), Some(Mfn(0x100001)), "too large for what is below");
        assert_eq!(free.take(0x8_0000, 1), None);
        assert_eq!(free.take_highest(1, 1), Some(Mfn(0x100000)));
        assert_eq!(free.take_highest(1, 1), Some(Mfn(0x7fffe)), "nothing is left above");
        let free: Vec<_> = free.ranges().map(|r| r.start.0..r.end.0).collect();
        assert_eq!(free, [0x100..0x2000, 0x3000..0x7ee00, 0x7ff52..0x7fffc]);
    }

    #[test]
    fn the_direct_map_shows_ram_and_tables_but_not_the_image() {
        use MemoryType::{Uncacheable, WriteBack};
        let map = [
            region(0, 0x9fc00, RegionKind::Ram),
            region(0x9fc00, 0xa0000, RegionKind::Reserved),
            region(0xf0000, 0x100000, RegionKind::Reserved),
            region(0x100000, 0x7ffe_0000, RegionKind::Ram),
            region(0x7ffe_0000, 0x7fff_0800, RegionKind::Acpi),
            region(0x7fff_0800, 0x8000_0000, RegionKind::Reserved),
            region(0xb000_0000, 0xc000_0000, RegionKind::Reserved),
            region(0xd000_0000, 0xd000_1000, RegionKind::Unusable),
            region(0x1_0000_0000, 0x1_8000_0000, RegionKind::Ram),
            region(0xfd_0000_0000, 0x100_0000_0000, RegionKind::Reserved),
        ];
        let runs: Vec<_> = direct_map(&map, 0x200_0000..0x210_0000).collect();
        assert_eq!(
            runs,
            [
                (0..0xa0000, WriteBack),
                (0xc0000..0x100000, WriteBack),
                (0x100000..0x200_0000, WriteBack),
                (0x210_0000..0x7fff_1000, WriteBack),
                (0x7fff_1000..0x8000_0000, Uncacheable),
                (0xb000_0000..0xc000_0000, Uncacheable),
                (0x1_0000_0000..0x1_8000_0000, WriteBack),
            ]
        );
        assert_eq!(end_of_ram(&map), 0x1_8000_0000);
    }

    #[test]
    fn taken_ranges_are_reported_and_disjoint_from_free_ones() {
        let mut free = machine();
        let before = free.bytes();
        for _ in 0..10 {
            free.take(3, 1).expect("memory");
        }
        assert_eq!(free.taken().first(), Some(&(0x7ffe_2000..0x8000_0000)));
        assert_eq!(free.taken().len(), 1);
        assert_eq!(before - free.bytes(), 30 * 4096);
    }
}
