//! The machine's memory map, as firmware tells it, made into whole pages without overlaps.

use alloc::vec::Vec;
use core::ops::Range;

use mm::PAGE_SIZE;
use xen_abi::memory;

/// What a range of physical memory is, in the terms of e820.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RegionKind {
    Ram,
    /// Holds ACPI tables; RAM once these were read.
    AcpiReclaim,
    AcpiNvs,
    /// Of a kind that is not known here, persistent memory among them.
    Other(u32),
    Reserved,
    Unusable,
}

impl RegionKind {
    pub fn from_e820(kind: u32) -> RegionKind {
        match kind {
            memory::E820_RAM => RegionKind::Ram,
            memory::E820_RESERVED => RegionKind::Reserved,
            memory::E820_ACPI => RegionKind::AcpiReclaim,
            memory::E820_NVS => RegionKind::AcpiNvs,
            memory::E820_UNUSABLE => RegionKind::Unusable,
            other => RegionKind::Other(other),
        }
    }

    pub fn to_e820(self) -> u32 {
        match self {
            RegionKind::Ram => memory::E820_RAM,
            RegionKind::AcpiReclaim => memory::E820_ACPI,
            RegionKind::AcpiNvs => memory::E820_NVS,
            RegionKind::Other(other) => other,
            RegionKind::Reserved => memory::E820_RESERVED,
            RegionKind::Unusable => memory::E820_UNUSABLE,
        }
    }
}

/// A range of physical memory, `start..end` in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    pub kind: RegionKind,
}

impl Region {
    pub const fn new(range: Range<u64>, kind: RegionKind) -> Region {
        Region { start: range.start, end: range.end, kind }
    }

    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }
}

/// A memory map of sorted regions that do not overlap; neighbours of one kind are one region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    regions: Vec<Region>,
}

/// No memory for the map itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl Map {
    /// Puts `firmware`'s map in order. Where regions overlap, and in pages that regions share, the most restrictive kind holds: RAM loses
    /// to every other, and what is left of a page of RAM that is not all RAM is reserved. Regions that are not RAM keep their bytes.
    pub fn new(firmware: &[Region]) -> Result<Map, OutOfMemory> {
        let mut edges = Vec::new();
        edges.try_reserve_exact(firmware.len().saturating_mul(2)).map_err(|_| OutOfMemory)?;
        for region in firmware.iter().filter(|r| r.start < r.end) {
            edges.extend([region.start, region.end]);
        }
        edges.sort_unstable();
        edges.dedup();
        let mut bytes = Map::with_room(edges.len())?;
        for pair in edges.windows(2) {
            let &[start, end] = pair else { continue };
            let covering = firmware.iter().filter(|r| r.start <= start && end <= r.end);
            if let Some(kind) = covering.map(|r| r.kind).max() {
                bytes.push(Region { start, end, kind });
            }
        }
        let mut map = Map::with_room(bytes.regions.len().saturating_mul(3))?;
        for region in &bytes.regions {
            if region.kind == RegionKind::Ram {
                let whole = whole_pages(region.range());
                map.push(Region::new(region.start..whole.start, RegionKind::Reserved));
                map.push(Region::new(whole.clone(), RegionKind::Ram));
                map.push(Region::new(whole.end..region.end, RegionKind::Reserved));
            } else {
                map.push(*region);
            }
        }
        Ok(map)
    }

    /// Gives another kind to what is known of `range`.
    pub fn mark(&mut self, range: Range<u64>, kind: RegionKind) -> Result<(), OutOfMemory> {
        let mut marked = Map::with_room(self.regions.len().saturating_add(2))?;
        for region in &self.regions {
            let inside = region.start.max(range.start)..region.end.min(range.end);
            if inside.is_empty() {
                marked.push(*region);
            } else {
                marked.push(Region { end: inside.start, ..*region });
                marked.push(Region::new(inside.clone(), kind));
                marked.push(Region { start: inside.end, ..*region });
            }
        }
        *self = marked;
        Ok(())
    }

    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    pub fn of(&self, kind: RegionKind) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.regions.iter().filter(move |r| r.kind == kind).map(Region::range)
    }

    fn with_room(regions: usize) -> Result<Map, OutOfMemory> {
        let mut map = Map::default();
        map.regions.try_reserve_exact(regions).map_err(|_| OutOfMemory)?;
        Ok(map)
    }

    fn push(&mut self, region: Region) {
        if region.start >= region.end {
            return;
        }
        match self.regions.last_mut() {
            Some(last) if last.end == region.start && last.kind == region.kind => last.end = region.end,
            _ => self.regions.push(region),
        }
    }
}

/// The pages that lie in `range` to their last byte.
pub fn whole_pages(range: Range<u64>) -> Range<u64> {
    let page = PAGE_SIZE as u64;
    let start = range.start.checked_next_multiple_of(page).unwrap_or(range.end);
    let end = range.end & !page.wrapping_sub(1);
    if start < end { start..end } else { range.end..range.end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RegionKind::*;
    use proptest::prelude::*;

    fn map(regions: &[(u64, u64, RegionKind)]) -> Map {
        Map::new(&regions.iter().map(|&(s, e, k)| Region::new(s..e, k)).collect::<Vec<_>>()).unwrap()
    }

    fn listed(map: &Map) -> Vec<(u64, u64, RegionKind)> {
        map.regions().iter().map(|r| (r.start, r.end, r.kind)).collect()
    }

    #[test]
    fn a_page_that_ram_shares_with_other_things_is_reserved() {
        let bios = map(&[(0, 0x9fc00, Ram), (0x9fc00, 0xa0000, Reserved)]);
        assert_eq!(listed(&bios), [(0, 0x9f000, Ram), (0x9f000, 0xa0000, Reserved)]);
        assert_eq!(listed(&map(&[(0x1200, 0x1800, Ram)])), [(0x1200, 0x1800, Reserved)]);
    }

    #[test]
    fn regions_are_sorted_joined_and_the_stricter_kind_wins() {
        let messy = map(&[(0x5000, 0x8000, Ram), (0, 0x3000, Ram), (0x3000, 0x5000, Ram), (0x4000, 0x6000, AcpiNvs)]);
        assert_eq!(listed(&messy), [(0, 0x4000, Ram), (0x4000, 0x6000, AcpiNvs), (0x6000, 0x8000, Ram)]);
        assert_eq!(listed(&map(&[(0, 0x3000, Reserved), (0x1000, 0x2000, Unusable)])).len(), 3);
    }

    #[test]
    fn holes_stay_holes() {
        assert_eq!(listed(&map(&[(0, 0x1000, Ram), (0x3000, 0x4000, Ram)])).len(), 2);
    }

    #[test]
    fn a_marked_range_takes_its_new_kind_but_holes_do_not() {
        let mut ram = map(&[(0, 0x4000, Ram), (0x6000, 0x8000, Ram)]);
        ram.mark(0x3000..0x7000, Unusable).unwrap();
        assert_eq!(
            listed(&ram),
            [(0, 0x3000, Ram), (0x3000, 0x4000, Unusable), (0x6000, 0x7000, Unusable), (0x7000, 0x8000, Ram)]
        );
    }

    proptest! {
        #[test]
        fn every_map_becomes_sorted_and_disjoint(raw in proptest::collection::vec((0u64..64, 0u64..64, 0u32..8), 0..12)) {
            let firmware: Vec<_> = raw.iter().map(|&(s, l, k)| Region::new(s * 0x800..(s + l) * 0x800, RegionKind::from_e820(k))).collect();
            let map = Map::new(&firmware).unwrap();
            prop_assert!(map.regions().windows(2).all(|w| w[0].end <= w[1].start));
            for region in map.of(Ram) {
                prop_assert!(region.start % 0x1000 == 0 && region.end % 0x1000 == 0);
            }
            for byte in (0..128u64 * 0x800).step_by(0x400) {
                let said: Vec<_> = firmware.iter().filter(|r| r.range().contains(&byte)).map(|r| r.kind).collect();
                let is = map.regions().iter().find(|r| r.range().contains(&byte)).map(|r| r.kind);
                prop_assert_eq!(said.is_empty(), is.is_none());
                if is == Some(Ram) {
                    prop_assert!(said.iter().all(|k| *k == Ram));
                }
            }
        }
    }
}
