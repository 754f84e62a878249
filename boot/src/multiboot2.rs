//! The boot information of multiboot2, from GRUB under BIOS or UEFI.

use core::fmt;

use mm::HostPhys;
use multiboot2::{BootInformation, BootInformationHeader, FramebufferTag, FramebufferType, LoadError, TagHeader};

use crate::info::{BootInfo, Framebuffer, Module};
use crate::memory::{self, Problem, Region, RegionKind};
use crate::strings::Strings;
use crate::tags::{self, BadTag};

/// Why the boot information is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Useless {
    /// It says that it has so many bytes.
    Size(u32),
    Tag(BadTag),
    Load(LoadError),
}

impl fmt::Display for Useless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "the multiboot2 information says that it has {size} bytes"),
            Self::Tag(bad) => bad.fmt(f),
            Self::Load(error) => write!(f, "the multiboot2 information cannot be read ({error:?})"),
        }
    }
}

/// Reads the boot information at `at`. What is wrong with the memory map is told to `problem`.
///
/// # Safety
/// The information that the loader left at `at` must be mapped there, whole, and nobody may write to it meanwhile.
pub unsafe fn read(at: usize, strings: &mut Strings, problem: impl FnMut(Problem)) -> Result<BootInfo, Useless> {
    // SAFETY: by the caller's promise; it begins with its size.
    let size = unsafe { (at as *const u32).read_unaligned() };
    if !(16..=tags::MAX_TOTAL).contains(&size) {
        return Err(Useless::Size(size));
    }
    // The reader takes the tags at their word.
    // SAFETY: by the caller's promise.
    tags::check(unsafe { core::slice::from_raw_parts(at as *const u8, size as usize) }).map_err(Useless::Tag)?;
    // SAFETY: by the caller's promise.
    let given = unsafe { BootInformation::load(at as *const BootInformationHeader) }.map_err(Useless::Load)?;
    let start = at as u64;
    let mut info = BootInfo { loader: start..start + given.total_size() as u64, ..BootInfo::default() };

    if let Some(name) = given.boot_loader_name_tag().and_then(|tag| tag.name().ok()) {
        info.loader_name = strings.keep(name.as_bytes());
    }
    if let Some(line) = given.command_line_tag().and_then(|tag| tag.cmdline().ok()) {
        info.cmdline = strings.keep(line.as_bytes());
    }
    for module in given.module_tags() {
        let (start, end) = (module.start_address(), module.end_address());
        if end > start {
            let cmdline = strings.keep(module.cmdline().unwrap_or_default().as_bytes());
            let _ = info.modules.try_push(Module { start: HostPhys(start.into()), len: (end - start).into(), cmdline });
        }
    }
    info.efi = given.efi_sdt64_tag().is_some() || given.efi_sdt32_tag().is_some();

    // The tag carries a copy of the root pointer, behind its own header. The newer of the two knows 64-bit tables.
    let address = |tag: *const u8| Some(HostPhys(tag as u64 + size_of::<TagHeader>() as u64));
    info.rsdp = match (given.rsdp_v2_tag(), given.rsdp_v1_tag()) {
        (Some(tag), _) => address(core::ptr::from_ref(tag).cast()),
        (None, Some(tag)) => address(core::ptr::from_ref(tag).cast()),
        (None, None) => None,
    };
    info.framebuffer = given.framebuffer_tag().and_then(Result::ok).and_then(framebuffer);

    let basic = given.memory_map_tag().into_iter().flat_map(|tag| tag.memory_areas()).map(|area| {
        let start = area.start_address();
        Region { start, end: start.saturating_add(area.size()), kind: RegionKind::from_e820(area.typ().into()) }
    });
    let efi = given.efi_memory_map_tag().into_iter().flat_map(|tag| tag.memory_areas()).map(|area| Region {
        start: area.phys_start,
        end: area.phys_start.saturating_add(area.page_count.saturating_mul(4096)),
        kind: RegionKind::from_efi(area.ty.0),
    });
    // GRUB makes the basic map from UEFI's; a loader that does not leaves only the other.
    let has_basic = basic.clone().any(|region| region.kind == RegionKind::Ram);
    info.memory_map = if has_basic { memory::normalise(basic, problem) } else { memory::normalise(efi, problem) };
    Ok(info)
}

fn framebuffer(tag: &FramebufferTag) -> Option<Framebuffer> {
    let Ok(FramebufferType::RGB { red, green, blue }) = tag.buffer_type() else { return None };
    let channels = [&red, &green, &blue].map(|field| (field.position, field.size));
    Some(Framebuffer {
        at: HostPhys(tag.address()),
        pitch: tag.pitch(),
        width: tag.width(),
        height: tag.height(),
        bits_per_pixel: tag.bpp(),
        channels,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A boot information made of tags `(type, content)`.
    fn boot_information(tags: &[(u32, &[u8])]) -> Vec<u64> {
        let mut bytes = vec![0; 8];
        for (kind, content) in tags.iter().chain([&(0u32, &[][..])]) {
            bytes.extend(kind.to_le_bytes());
            bytes.extend((8 + content.len() as u32).to_le_bytes());
            bytes.extend(*content);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let size = bytes.len() as u32;
        bytes[..4].copy_from_slice(&size.to_le_bytes());
        bytes.chunks(8).map(|chunk| u64::from_le_bytes(chunk.try_into().expect("whole words"))).collect()
    }

    fn strings() -> Strings {
        Strings::new(Box::leak(Box::new([0; 1024])))
    }

    fn parse(information: &[u64]) -> (BootInfo, Vec<String>) {
        let mut problems = Vec::new();
        // SAFETY: the vector holds the whole information.
        let info = unsafe {
            read(information.as_ptr() as usize, &mut strings(), |problem| problems.push(problem.to_string()))
        };
        (info.expect("well-formed"), problems)
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn what_grub_says_is_taken_over() {
        let map =
            words(&[24, 0, 0, 0, 0x9fc00, 0, 1, 0, 0x100000, 0, 0x7fee0000, 0, 1, 0, 0x7ffe0000, 0, 0x20000, 0, 3, 0]);
        let information = boot_information(&[
            (1, b"com1=115200 noreboot\0"),
            (2, b"GRUB 2.06\0"),
            (3, &[words(&[0x1000000, 0x1400000]), b"console=hvc0 root=/dev/sda1\0".to_vec()].concat()),
            (3, &[words(&[0x2000000, 0x2000001]), b"\0".to_vec()].concat()),
            (6, &map),
        ]);
        let (info, problems) = parse(&information);
        assert_eq!(problems, [""; 0]);
        assert_eq!((info.loader_name, info.cmdline), ("GRUB 2.06", "com1=115200 noreboot"));
        assert_eq!(
            info.modules.as_slice(),
            [
                Module { start: HostPhys(0x1000000), len: 0x400000, cmdline: "console=hvc0 root=/dev/sda1" },
                Module { start: HostPhys(0x2000000), len: 1, cmdline: "" }
            ]
        );
        assert_eq!(
            info.memory_map.as_slice(),
            [
                Region { start: 0, end: 0x9fc00, kind: RegionKind::Ram },
                Region { start: 0x100000, end: 0x7ffe0000, kind: RegionKind::Ram },
                Region { start: 0x7ffe0000, end: 0x80000000, kind: RegionKind::Acpi },
            ]
        );
        assert_eq!((info.efi, info.rsdp, info.framebuffer), (false, None, None));
        assert_eq!(info.loader.end - info.loader.start, information.len() as u64 * 8);
    }

    #[test]
    fn the_newer_copy_of_the_root_pointer_is_preferred() {
        let pointer = b"RSD PTR .BOCHS \x02....................";
        let information = boot_information(&[(14, &pointer[..20]), (15, &[&pointer[..], &[0]].concat())]);
        let at = parse(&information).0.rsdp.expect("a root pointer").0;
        let offset = at - information.as_ptr() as u64;
        assert_eq!(offset, 8 + 32 + 8);
        assert_eq!(information[offset as usize / 8].to_le_bytes(), *b"RSD PTR ");
    }

    #[test]
    fn the_efi_memory_map_serves_where_there_is_no_other() {
        let mut map = words(&[40, 1]);
        for (kind, start, pages) in [(7u32, 0u32, 16u32), (3, 0x10000, 16), (9, 0x20000, 1), (0, 0x21000, 1)] {
            map.extend(words(&[kind, 0, start, 0, 0, 0, pages, 0, 0, 0]));
        }
        let (info, _) = parse(&boot_information(&[(12, &[0; 8]), (17, &map)]));
        assert!(info.efi);
        assert_eq!(
            info.memory_map.as_slice(),
            [
                Region { start: 0, end: 0x20000, kind: RegionKind::Ram },
                Region { start: 0x20000, end: 0x21000, kind: RegionKind::Acpi },
                Region { start: 0x21000, end: 0x22000, kind: RegionKind::Reserved },
            ]
        );
    }

    #[test]
    fn a_framebuffer_is_taken_over_only_with_packed_pixels() {
        let mut tag = words(&[0xfd000000, 0, 4096, 1024, 768]);
        tag.extend([32, 1, 0, 0, 16, 8, 8, 8, 0, 8]);
        let framebuffer = parse(&boot_information(&[(8, &tag)])).0.framebuffer.expect("RGB");
        assert_eq!((framebuffer.at, framebuffer.width, framebuffer.height), (HostPhys(0xfd000000), 1024, 768));
        assert_eq!(framebuffer.channels, [(16, 8), (8, 8), (0, 8)]);

        let mut text = words(&[0xb8000, 0, 160, 80, 25]);
        text.extend([16, 2, 0, 0]);
        assert_eq!(parse(&boot_information(&[(8, &text)])).0.framebuffer, None);
    }

    /// All tags that are read, with sensible contents.
    fn everything() -> Vec<u64> {
        let map = words(&[24, 0, 0, 0, 0x9fc00, 0, 1, 0, 0x100000, 0, 0x7fee0000, 0, 1, 0]);
        let mut efi = words(&[40, 1]);
        efi.extend(words(&[7, 0, 0, 0, 0, 0, 16, 0, 0, 0]));
        let mut screen = words(&[0xfd000000, 0, 4096, 1024, 768]);
        screen.extend([32, 1, 0, 0, 16, 8, 8, 8, 0, 8]);
        boot_information(&[
            (1, b"com1=115200\0"),
            (2, b"GRUB\0"),
            (3, &[words(&[0x1000000, 0x1400000]), b"console=hvc0\0".to_vec()].concat()),
            (6, &map),
            (8, &screen),
            (12, &[0; 8]),
            (14, &[0; 20]),
            (15, &[0; 36]),
            (17, &efi),
        ])
    }

    #[test]
    fn broken_tags_are_told_and_never_a_panic() {
        let whole = everything();
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = |limit: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize % limit
        };
        for round in 0..50_000 {
            let mut bytes: Vec<u8> = whole.iter().flat_map(|word| word.to_le_bytes()).collect();
            for _ in 0..=next(3) {
                let at = 4 + next(bytes.len() - 4);
                bytes[at] = [0, 1, 7, 8, 0x7f, 0xff, next(256) as u8][next(7)];
            }
            let information: Vec<u64> =
                bytes.chunks(8).map(|chunk| u64::from_le_bytes(chunk.try_into().expect("whole words"))).collect();
            let read = std::panic::catch_unwind(|| {
                // SAFETY: the total size, which alone says how far to read, was left as it is.
                unsafe { read(information.as_ptr() as usize, &mut strings(), |_| {}) }.is_ok()
            });
            assert!(read.is_ok(), "round {round}: {bytes:x?}");
        }
    }
}
