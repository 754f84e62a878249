//! A kernel as an ELF image: what is loaded where, and what its Xen notes say of how to start it.
//!
//! Only what starting a PVH kernel needs is read: program headers and notes. Section headers are never looked at, so a stripped kernel
//! is as good as any.

use core::fmt;
use core::ops::Range;

use arrayvec::ArrayVec;
use elf::abi::{EI_NIDENT, EM_386, EM_X86_64, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::note::{Note, NoteIterator};
use elf::parse::ParseError;
use elf::segment::{ProgramHeader, SegmentTable};
use xen_abi::elfnote;

/// How many loadable segments a kernel may have: Linux has 4 or 5.
pub const MAX_SEGMENTS: usize = 16;

const SIZE_OF_PHDR32: u16 = 32;
const SIZE_OF_PHDR64: u16 = 56;

/// A piece of the kernel: `data` goes to `address`, and is followed by zeroes up to `size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Guest-physical, as linked.
    pub address: u64,
    pub data: &'a [u8],
    /// Never less than `data` has.
    pub size: u64,
}

/// XEN_ELFNOTE_PHYS32_RELOC: the kernel runs at any multiple of `align` that keeps it within `min..=max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    pub align: u64,
    /// The lowest address that the kernel may begin at.
    pub min: u64,
    /// The highest address that the kernel may occupy.
    pub max: u64,
}

/// A kernel that can be started as PVH.
#[derive(Clone, Debug)]
pub struct Kernel<'a> {
    pub segments: ArrayVec<Segment<'a>, MAX_SEGMENTS>,
    /// The 32-bit entry point, guest-physical, as linked.
    pub entry: u32,
    /// `None`: the kernel must sit where it is linked.
    pub relocation: Option<Relocation>,
    /// What the kernel calls itself ("linux", "2.6"); for the log.
    pub guest_os: Option<&'a str>,
    pub guest_version: Option<&'a str>,
}

/// Why an image is not a PVH kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    NotElf,
    BigEndian,
    /// The ELF or program headers do not lie within the file.
    HeadersTruncated {
        have: u64,
    },
    HeaderSize {
        size: u16,
    },
    Machine(u16),
    NoSegments,
    TooManySegments(usize),
    SegmentTruncated {
        index: usize,
        offset: u64,
        size: u64,
        have: u64,
    },
    /// More bytes in the file than in memory, or an end beyond what can be addressed.
    SegmentSize {
        index: usize,
        file: u64,
        memory: u64,
        address: u64,
    },
    SegmentsOverlap {
        address: u64,
    },
    NoEntry,
    EntryOutside {
        entry: u64,
    },
    Relocation(Relocation),
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ElfError::NotElf => f.write_str("kernel: neither an ELF image nor a bzImage"),
            ElfError::BigEndian => f.write_str("kernel: a big-endian ELF image, not one for x86"),
            ElfError::HeadersTruncated { have } => {
                write!(f, "kernel: truncated: the image has {have} bytes, fewer than its ELF headers need")
            }
            ElfError::HeaderSize { size } => write!(f, "kernel: program headers of {size} bytes are not those of ELF"),
            ElfError::Machine(machine) => {
                write!(f, "kernel: built for ELF machine {machine}; it must be x86-64 (62) or i386 (3)")
            }
            ElfError::NoSegments => f.write_str("kernel: the ELF image has nothing to load"),
            ElfError::TooManySegments(n) => {
                write!(f, "kernel: {n} segments to load; at most {MAX_SEGMENTS} are supported")
            }
            ElfError::SegmentTruncated { index, offset, size, have } => write!(
                f,
                "kernel: truncated: segment {index} is {size} bytes at offset {offset}, the image has {have} bytes"
            ),
            ElfError::SegmentSize { index, file, memory, address } => write!(
                f,
                "kernel: segment {index} is broken: {file} bytes in the file, {memory} in memory, at {address:#x}"
            ),
            ElfError::SegmentsOverlap { address } => write!(f, "kernel: two segments overlap at {address:#x}"),
            ElfError::NoEntry => f.write_str(
                "kernel: not a PVH kernel (no PHYS32_ENTRY note); it needs CONFIG_PVH, for Dom0 CONFIG_XEN_PVH",
            ),
            ElfError::EntryOutside { entry } => {
                write!(f, "kernel: the PVH entry {entry:#x} lies in none of its segments below 4 GiB")
            }
            ElfError::Relocation(Relocation { align, min, max }) => {
                write!(f, "kernel: broken PHYS32_RELOC note: align {align:#x}, min {min:#x}, max {max:#x}")
            }
        }
    }
}

impl core::error::Error for ElfError {}

/// Whether `image` begins as ELF does.
pub fn is_elf(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

impl<'a> Kernel<'a> {
    /// Reads the headers and notes of `image`, an uncompressed ELF kernel; its segments borrow from it.
    pub fn parse(image: &'a [u8]) -> Result<Kernel<'a>, ElfError> {
        let have = image.len() as u64;
        let truncated = ElfError::HeadersTruncated { have };
        if !is_elf(image) {
            return Err(ElfError::NotElf);
        }
        // The crate takes it for granted that all of the identification is there.
        let ident = image.get(..EI_NIDENT).ok_or(truncated)?;
        let ident = parse_ident::<LittleEndian>(ident).map_err(|e| match e {
            ParseError::UnsupportedElfEndianness(_) => ElfError::BigEndian,
            _ => ElfError::NotElf,
        })?;
        let rest_of_header = match ident.1 {
            Class::ELF32 => image.get(EI_NIDENT..52),
            Class::ELF64 => image.get(EI_NIDENT..64),
        };
        let header = FileHeader::parse_tail(ident, rest_of_header.ok_or(truncated)?).map_err(|_| truncated)?;
        if !matches!(header.e_machine, EM_X86_64 | EM_386) {
            return Err(ElfError::Machine(header.e_machine));
        }

        let mut kernel =
            Kernel { segments: ArrayVec::new(), entry: 0, relocation: None, guest_os: None, guest_version: None };
        let mut entry = None;
        for (index, segment) in program_headers(image, &header)?.iter().enumerate() {
            match segment.p_type {
                PT_LOAD if segment.p_memsz != 0 => {
                    let loaded = load(image, index, &segment)?;
                    let count = header.e_phnum.into();
                    kernel.segments.try_push(loaded).map_err(|_| ElfError::TooManySegments(count))?;
                }
                PT_NOTE => {
                    let notes = file_bytes(image, index, &segment)?;
                    let align = if segment.p_align == 8 { 8 } else { 4 };
                    kernel.read_notes(notes, align, &mut entry)?;
                }
                _ => {}
            }
        }
        kernel.check(entry)
    }

    /// The guest-physical memory between the first and the last byte of the kernel, as linked.
    pub fn extent(&self) -> Range<u64> {
        let start = self.segments.iter().map(|s| s.address).min().unwrap_or(0);
        let end = self.segments.iter().map(Segment::end).max().unwrap_or(0);
        start..end
    }

    fn read_notes(&mut self, notes: &'a [u8], align: usize, entry: &mut Option<u64>) -> Result<(), ElfError> {
        // The header of a note is three 32-bit words on Linux, whatever the class of the file.
        for note in NoteIterator::new(LittleEndian, Class::ELF32, align, notes) {
            let Note::Unknown(note) = note else { continue };
            if note.name_str().ok() != Some("Xen") {
                continue;
            }
            match u32::try_from(note.n_type).unwrap_or(u32::MAX) {
                elfnote::XEN_ELFNOTE_PHYS32_ENTRY => *entry = number(note.desc),
                elfnote::XEN_ELFNOTE_PHYS32_RELOC => self.relocation = Some(relocation(note.desc)?),
                elfnote::XEN_ELFNOTE_GUEST_OS => self.guest_os = text(note.desc),
                elfnote::XEN_ELFNOTE_GUEST_VERSION => self.guest_version = text(note.desc),
                _ => {}
            }
        }
        Ok(())
    }

    fn check(mut self, entry: Option<u64>) -> Result<Kernel<'a>, ElfError> {
        if self.segments.is_empty() {
            return Err(ElfError::NoSegments);
        }
        let entry = entry.ok_or(ElfError::NoEntry)?;
        let inside = self.segments.iter().any(|s| (s.address..s.end()).contains(&entry));
        self.entry = u32::try_from(entry).ok().filter(|_| inside).ok_or(ElfError::EntryOutside { entry })?;
        self.segments.sort_unstable_by_key(|s| s.address);
        for pair in self.segments.windows(2) {
            if let [first, second] = pair
                && second.address < first.end()
            {
                return Err(ElfError::SegmentsOverlap { address: second.address });
            }
        }
        Ok(self)
    }
}

impl Segment<'_> {
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.size)
    }
}

fn program_headers<'a>(
    image: &'a [u8],
    header: &FileHeader<LittleEndian>,
) -> Result<SegmentTable<'a, LittleEndian>, ElfError> {
    if header.e_phoff == 0 || header.e_phnum == 0 {
        return Err(ElfError::NoSegments);
    }
    let size = match header.class {
        Class::ELF32 => SIZE_OF_PHDR32,
        Class::ELF64 => SIZE_OF_PHDR64,
    };
    if header.e_phentsize != size {
        return Err(ElfError::HeaderSize { size: header.e_phentsize });
    }
    let bytes = u64::from(size).saturating_mul(header.e_phnum.into());
    let table = slice(image, header.e_phoff, bytes).ok_or(ElfError::HeadersTruncated { have: image.len() as u64 })?;
    Ok(SegmentTable::new(LittleEndian, header.class, table))
}

fn load<'a>(image: &'a [u8], index: usize, segment: &ProgramHeader) -> Result<Segment<'a>, ElfError> {
    let (file, memory, address) = (segment.p_filesz, segment.p_memsz, segment.p_paddr);
    if file > memory || address.checked_add(memory).is_none() {
        return Err(ElfError::SegmentSize { index, file, memory, address });
    }
    Ok(Segment { address, data: file_bytes(image, index, segment)?, size: memory })
}

fn file_bytes<'a>(image: &'a [u8], index: usize, segment: &ProgramHeader) -> Result<&'a [u8], ElfError> {
    slice(image, segment.p_offset, segment.p_filesz).ok_or(ElfError::SegmentTruncated {
        index,
        offset: segment.p_offset,
        size: segment.p_filesz,
        have: image.len() as u64,
    })
}

fn slice(image: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let end = offset.checked_add(size)?;
    image.get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)
}

/// A note's number has the width of the kernel's pointers.
fn number(desc: &[u8]) -> Option<u64> {
    match desc.len() {
        4 => desc.try_into().ok().map(u32::from_le_bytes).map(u64::from),
        8 => desc.try_into().ok().map(u64::from_le_bytes),
        _ => None,
    }
}

fn text(desc: &[u8]) -> Option<&str> {
    core::str::from_utf8(desc).ok().map(|s| s.trim_end_matches('\0'))
}

/// The note is three 32-bit words: alignment, lowest start, highest address. Linux gives all three; the later may be left out.
fn relocation(desc: &[u8]) -> Result<Relocation, ElfError> {
    let mut words = desc.as_chunks::<4>().0.iter().map(|w| u64::from(u32::from_le_bytes(*w)));
    let reloc = Relocation {
        align: words.next().unwrap_or(0),
        min: words.next().unwrap_or(0),
        max: words.next().unwrap_or(u32::MAX.into()),
    };
    if !reloc.align.is_power_of_two() || reloc.min > reloc.max {
        return Err(ElfError::Relocation(reloc));
    }
    Ok(reloc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::sample::{Elf, elf64};
    use proptest::prelude::*;

    #[test]
    fn a_kernel_is_its_segments_and_its_entry() {
        let image = elf64().load(0x100_0000, b"text", 0x2000).load(0x120_0000, b"data", 4).entry(0x100_0002).build();
        let kernel = Kernel::parse(&image).unwrap();
        assert_eq!(kernel.entry, 0x100_0002);
        assert_eq!(kernel.extent(), 0x100_0000..0x120_0004);
        assert_eq!(kernel.segments[0], Segment { address: 0x100_0000, data: b"text", size: 0x2000 });
        assert_eq!(kernel.relocation, None);
    }

    #[test]
    fn a_32_bit_kernel_is_read_the_same_way() {
        let image = Elf { class64: false, ..elf64() }.load(0x10_0000, b"text", 4).entry(0x10_0000).build();
        let kernel = Kernel::parse(&image).unwrap();
        assert_eq!((kernel.entry, kernel.extent()), (0x10_0000, 0x10_0000..0x10_0004));
    }

    #[test]
    fn a_relocatable_kernel_says_between_which_bounds() {
        let image =
            elf64().load(0x100_0000, b"text", 4).entry(0x100_0000).reloc(0x20_0000, 0x100_0000, 0x3fff_ffff).build();
        let expected = Relocation { align: 0x20_0000, min: 0x100_0000, max: 0x3fff_ffff };
        assert_eq!(Kernel::parse(&image).unwrap().relocation, Some(expected));
        let broken = elf64().load(0x100_0000, b"text", 4).entry(0x100_0000).reloc(3, 0, 1).build();
        assert!(matches!(Kernel::parse(&broken), Err(ElfError::Relocation(_))));
    }

    #[test]
    fn a_kernel_without_the_pvh_note_is_told_what_it_lacks() {
        let image = elf64().load(0x100_0000, b"text", 4).build();
        let error = Kernel::parse(&image).unwrap_err();
        assert_eq!(error, ElfError::NoEntry);
        assert!(error.to_string().contains("CONFIG_PVH"));
    }

    #[test]
    fn a_truncated_kernel_names_the_segment_and_the_sizes() {
        let image = elf64().load(0x100_0000, b"text", 4).load(0x200_0000, &[7; 100], 100).entry(0x100_0000).build();
        let short = &image[..image.len() - 50];
        assert!(matches!(Kernel::parse(short), Err(ElfError::SegmentTruncated { index: 2, size: 100, .. })));
        assert!(matches!(Kernel::parse(&image[..70]), Err(ElfError::HeadersTruncated { have: 70 })));
        assert!(matches!(Kernel::parse(&image[..20]), Err(ElfError::HeadersTruncated { have: 20 })));
        assert!(matches!(Kernel::parse(&image[..4]), Err(ElfError::HeadersTruncated { have: 4 })));
    }

    #[test]
    fn what_is_not_a_kernel_for_this_machine_is_refused() {
        assert_eq!(Kernel::parse(b"MZ").unwrap_err(), ElfError::NotElf);
        assert_eq!(Kernel::parse(&elf64().entry(0).build()).unwrap_err(), ElfError::NoSegments);
        let arm = Elf { machine: 183, ..elf64() }.load(0x100_0000, b"text", 4).build();
        assert_eq!(Kernel::parse(&arm).unwrap_err(), ElfError::Machine(183));
        let astray = elf64().load(0x100_0000, b"text", 4).entry(0x200_0000).build();
        assert_eq!(Kernel::parse(&astray).unwrap_err(), ElfError::EntryOutside { entry: 0x200_0000 });
        let overlap = elf64().load(0x1000, b"text", 0x2000).load(0x2000, b"data", 4).entry(0x1000).build();
        assert_eq!(Kernel::parse(&overlap).unwrap_err(), ElfError::SegmentsOverlap { address: 0x2000 });
        let wide = elf64().load(u64::MAX - 1, b"text", 4).entry(0x1000).build();
        assert!(matches!(Kernel::parse(&wide).unwrap_err(), ElfError::SegmentSize { index: 1, .. }));
    }

    proptest! {
        #[test]
        fn no_bytes_can_panic_the_parser(
            at in 0usize..400,
            junk in proptest::collection::vec(any::<u8>(), 0..32),
            cut in 0usize..500,
        ) {
            let mut image =
                elf64().load(0x100_0000, b"text", 4).entry(0x100_0000).reloc(0x20_0000, 0, 0x3fff_ffff).build();
            for (place, byte) in image.iter_mut().skip(at).zip(junk) {
                *place = byte;
            }
            image.truncate(cut);
            let _ = Kernel::parse(&image);
        }
    }
}
