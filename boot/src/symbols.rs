//! Names for addresses, for backtraces: a read-only area in the image, filled by `xtask` after linking (xtask/src/symbols.rs).
//!
//! Little-endian:
//! - magic `CORTNSYM` (8 bytes), version (u32), the area's size (u32): written by the compiler;
//! - number of symbols (u32), bytes of names (u32);
//! - the symbols, in ascending order: offset of the code from the image's start (u32), offset of the name in the names (u32);
//! - the names: a length (u8) and as many bytes of UTF-8 each.

/// The area begins with this.
pub const MAGIC: [u8; 8] = *b"CORTNSYM";
/// The version of the format.
pub const VERSION: u32 = 1;
/// Bytes of the area.
pub const SIZE: usize = 128 << 10;
/// Where the number of symbols is, and where the symbols begin.
const COUNTS: usize = 16;
const TABLE: usize = 24;

const fn empty() -> [u8; SIZE] {
    let mut area = [0; SIZE];
    let (magic, version, size) = (MAGIC, VERSION.to_le_bytes(), (SIZE as u32).to_le_bytes());
    let mut index = 0;
    while index < 8 {
        area[index] = magic[index];
        index += 1;
    }
    index = 0;
    while index < 4 {
        area[8 + index] = version[index];
        area[12 + index] = size[index];
        index += 1;
    }
    area
}

#[cfg_attr(target_os = "none", unsafe(link_section = ".symbols"))]
#[used]
static AREA: [u8; SIZE] = empty();

/// The name of the function at an offset from the image's start, and how far into it that is.
pub fn find(offset: u32) -> Option<(&'static str, u32)> {
    find_in(core::hint::black_box(&AREA), offset)
}

fn word(area: &[u8], at: usize) -> Option<u32> {
    area.get(at..at.checked_add(4)?).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
}

fn find_in(area: &[u8], offset: u32) -> Option<(&str, u32)> {
    let count = word(area, COUNTS)? as usize;
    let symbol = |index: usize| word(area, TABLE + index * 8);
    // The last symbol that begins at or before the offset.
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = (low + high) / 2;
        if symbol(middle)? <= offset { low = middle + 1 } else { high = middle }
    }
    let index = low.checked_sub(1)?;
    let name = TABLE + count * 8 + word(area, TABLE + index * 8 + 4)? as usize;
    let len = usize::from(*area.get(name)?);
    let name = core::str::from_utf8(area.get(name + 1..name + 1 + len)?).ok()?;
    Some((name, offset - symbol(index)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(symbols: &[(u32, &str)]) -> Vec<u8> {
        let mut area = empty()[..COUNTS].to_vec();
        let mut names = Vec::new();
        let mut table = Vec::new();
        for (offset, name) in symbols {
            table.extend(offset.to_le_bytes());
            table.extend((names.len() as u32).to_le_bytes());
            names.push(name.len() as u8);
            names.extend(name.bytes());
        }
        area.extend((symbols.len() as u32).to_le_bytes());
        area.extend((names.len() as u32).to_le_bytes());
        area.extend(table);
        area.extend(names);
        area
    }

    #[test]
    fn an_address_belongs_to_the_symbol_before_it() {
        let area = area(&[(0x1000, "one"), (0x1800, "two::three"), (0x2000, "four")]);
        assert_eq!(find_in(&area, 0x1000), Some(("one", 0)));
        assert_eq!(find_in(&area, 0x17ff), Some(("one", 0x7ff)));
        assert_eq!(find_in(&area, 0x1810), Some(("two::three", 0x10)));
        assert_eq!(find_in(&area, 0x9000), Some(("four", 0x7000)));
        assert_eq!(find_in(&area, 0xfff), None);
    }

    #[test]
    fn an_area_that_was_not_filled_knows_nothing() {
        assert_eq!(find(0x1000), None);
        assert_eq!(find_in(&[], 0), None);
    }
}
