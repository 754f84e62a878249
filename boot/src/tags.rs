//! The tags of a multiboot2 boot information, looked at before anybody believes them: their sizes, and what is counted inside them
//! (Multiboot2 specification 2.0, 3.6).

use core::fmt;

/// What is wrong, and with which tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTag {
    pub kind: u32,
    pub size: u32,
    pub why: &'static str,
}

impl fmt::Display for BadTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "multiboot2 tag {} ({}) of {} bytes {}", self.kind, name(self.kind), self.size, self.why)
    }
}

/// More than any boot loader leaves.
pub const MAX_TOTAL: u32 = 16 << 20;

const HEADER: usize = 8;

const END: u32 = 0;
const COMMAND_LINE: u32 = 1;
const LOADER_NAME: u32 = 2;
const MODULE: u32 = 3;
const MEMORY_MAP: u32 = 6;
const FRAMEBUFFER: u32 = 8;
const EFI_32: u32 = 11;
const EFI_64: u32 = 12;
const RSDP_1: u32 = 14;
const RSDP_2: u32 = 15;
const EFI_MEMORY_MAP: u32 = 17;
const EFI_RUNNING: u32 = 18;

fn name(kind: u32) -> &'static str {
    match kind {
        END => "end",
        COMMAND_LINE => "command line",
        LOADER_NAME => "loader's name",
        MODULE => "module",
        MEMORY_MAP => "memory map",
        FRAMEBUFFER => "framebuffer",
        EFI_32 | EFI_64 => "EFI system table",
        RSDP_1 | RSDP_2 => "ACPI root pointer",
        EFI_MEMORY_MAP => "EFI memory map",
        EFI_RUNNING => "EFI boot services run on",
        _ => "not used here",
    }
}

/// Checks a whole boot information, its own header included.
pub fn check(information: &[u8]) -> Result<(), BadTag> {
    let mut at = HEADER;
    loop {
        let bad = |kind, size, why| Err(BadTag { kind, size, why });
        let rest = information.get(at..).unwrap_or_default();
        let (Some(kind), Some(size)) = (word(rest, 0), word(rest, 4)) else {
            return bad(END, 0, "is missing");
        };
        let Some(tag) = rest.get(..size as usize).filter(|tag| tag.len() >= HEADER) else {
            return bad(kind, size, "does not fit the boot information");
        };
        if let Err(why) = check_one(kind, tag) {
            return bad(kind, size, why);
        }
        at = (at + tag.len()).next_multiple_of(8);
        if kind == END {
            return match size as usize == HEADER && at == information.len() {
                true => Ok(()),
                false => bad(kind, size, "is not at the end"),
            };
        }
    }
}

fn check_one(kind: u32, tag: &[u8]) -> Result<(), &'static str> {
    let at_least = |size: usize| if tag.len() >= size { Ok(()) } else { Err("is too short") };
    // But for padding, which some count in.
    let exactly = |size: usize| match tag.len().next_multiple_of(8) == size.next_multiple_of(8) {
        true if tag.len() >= size => Ok(()),
        _ => Err("has not the size that it always has"),
    };
    let text = |from: usize| {
        let has_end = tag.get(from..).is_some_and(|text| text.contains(&0));
        if has_end { Ok(()) } else { Err("has a text without an end") }
    };
    match kind {
        COMMAND_LINE | LOADER_NAME => text(HEADER),
        MODULE => {
            at_least(16)?;
            if word(tag, 12) < word(tag, 8) {
                return Err("ends before it begins");
            }
            text(16)
        }
        MEMORY_MAP => entries(tag, word(tag, 8), |size| size == 24),
        EFI_MEMORY_MAP => {
            entries(tag, word(tag, 8), |size| size >= 40 && size % 8 == 0)?;
            if word(tag, 12) == Some(1) { Ok(()) } else { Err("is of a version that nobody knows") }
        }
        FRAMEBUFFER => {
            at_least(32)?;
            match tag.get(29) {
                Some(0) => at_least(36 + 3 * word(tag, 32).unwrap_or(u32::MAX >> 4).min(1 << 16) as usize),
                Some(1) => at_least(38),
                _ => Ok(()),
            }
        }
        EFI_RUNNING => exactly(HEADER),
        EFI_32 => exactly(12),
        EFI_64 => exactly(16),
        RSDP_1 => exactly(28),
        RSDP_2 => exactly(44),
        _ => Ok(()),
    }
}

/// A list of entries behind two words, the first of which is the size of one.
fn entries(tag: &[u8], size: Option<u32>, known: impl Fn(usize) -> bool) -> Result<(), &'static str> {
    let all = tag.len().checked_sub(16).ok_or("is too short")?;
    match size.map(|size| size as usize) {
        Some(size) if known(size) && all.is_multiple_of(size) => Ok(()),
        _ => Err("has entries of a size that makes no sense"),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn information(tags: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        for (kind, content) in tags {
            bytes.extend(kind.to_le_bytes());
            bytes.extend((8 + content.len() as u32).to_le_bytes());
            bytes.extend(*content);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }

    fn said(tags: &[(u32, &[u8])]) -> String {
        check(&information(tags)).unwrap_err().to_string()
    }

    #[test]
    fn what_a_boot_loader_leaves_passes() {
        let map = [&24u32.to_le_bytes()[..], &[0; 4], &[0; 48]].concat();
        assert_eq!(check(&information(&[(1, b"com1\0"), (6, &map), (99, b"x"), (0, b"")])), Ok(()));
    }

    #[test]
    fn a_broken_tag_is_named() {
        assert_eq!(
            said(&[(1, b"com1"), (0, b"")]),
            "multiboot2 tag 1 (command line) of 12 bytes has a text without an end"
        );
        assert!(said(&[(6, &[7; 24]), (0, b"")]).contains("memory map) of 32 bytes has entries of a size"));
        assert!(said(&[(3, &[9; 8]), (0, b"")]).contains("module"));
        assert!(said(&[(15, &[0; 20]), (0, b"")]).contains("ACPI root pointer) of 28 bytes has not the size"));
        assert!(said(&[(1, b"com1\0")]).contains("tag 0 (end) of 0 bytes is missing"));
        assert!(said(&[(0, b"more")]).contains("is not at the end"));
    }

    #[test]
    fn a_tag_that_reaches_beyond_the_end_is_named() {
        let mut bytes = information(&[(2, b"GRUB\0"), (0, b"")]);
        bytes[12] = 200;
        assert!(check(&bytes).unwrap_err().to_string().contains("loader's name) of 200 bytes does not fit"));
        bytes[12] = 3;
        assert!(check(&bytes).is_err());
    }
}
