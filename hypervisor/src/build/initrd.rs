//! The order of several initrds: microcode first.
//!
//! Linux takes early microcode only from an uncompressed cpio archive at the very beginning of its initrd. Debian's GRUB script gives a
//! hypervisor one module for each file, the real initrd first and those with microcode behind it; Dom0 gets one initrd, so they are
//! put in the order in which a bootloader would hand them to Linux itself.

use alloc::vec::Vec;

/// Where microcode lies in an early cpio archive.
const MICROCODE: &[u8] = b"kernel/x86/microcode";

/// The magics of the two kinds of cpio that Linux reads: new ASCII, without and with checksums.
const CPIO: [&[u8]; 2] = [b"070701", b"070702"];

/// How far into an archive microcode is looked for. An early archive holds little else, and a real initrd is not to be searched through.
const SEARCHED: usize = 4096;

/// Each archive begins at a multiple of this, as Linux's reader skips zeroes but expects headers aligned.
pub const ALIGN: usize = 4;

/// Whether `initrd` begins with an uncompressed archive of microcode.
pub fn is_microcode(initrd: &[u8]) -> bool {
    CPIO.iter().any(|magic| initrd.starts_with(magic))
        && initrd.get(..SEARCHED.min(initrd.len())).unwrap_or_default().windows(MICROCODE.len()).any(|w| w == MICROCODE)
}

/// The initrds in the order in which Dom0 is to get them: microcode first, otherwise as given. ENOMEM is `None`.
pub fn arrange<'a>(initrds: &[&'a [u8]]) -> Option<Vec<&'a [u8]>> {
    let mut arranged = Vec::new();
    arranged.try_reserve_exact(initrds.len()).ok()?;
    arranged.extend(initrds.iter().filter(|i| is_microcode(i)));
    arranged.extend(initrds.iter().filter(|i| !is_microcode(i) && !i.is_empty()));
    Some(arranged)
}

/// Where each part begins in the initrd that they make together, and the size of it all.
pub fn offsets<'a>(parts: &'a [&[u8]]) -> (impl Iterator<Item = (u64, &'a [u8])> + 'a, u64) {
    let place = |end: &mut u64, part: &&'a [u8]| {
        let start = end.next_multiple_of(ALIGN as u64);
        *end = start.saturating_add(part.len() as u64);
        Some((start, *part))
    };
    let size = parts.iter().scan(0, place).last().map_or(0, |(start, part)| start.saturating_add(part.len() as u64));
    (parts.iter().scan(0, place), size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of a cpio entry of no content, and its name.
    fn cpio(name: &str) -> Vec<u8> {
        let mut entry = format!("070701{:088}{:08x}{:08x}", 0, name.len() + 1, 0).into_bytes();
        entry.truncate(110);
        entry.extend(name.as_bytes());
        entry.push(0);
        entry
    }

    #[test]
    fn microcode_goes_before_the_real_initrd() {
        let early = [cpio("kernel"), cpio("kernel/x86/microcode/AuthenticAMD.bin")].concat();
        let real = b"\x28\xb5\x2f\xfd compressed, and it mentions kernel/x86/microcode".to_vec();
        assert!(is_microcode(&early) && !is_microcode(&real) && !is_microcode(&cpio("init")));
        assert_eq!(arrange(&[&real, &early]).unwrap(), [&early[..], &real[..]]);
        assert_eq!(arrange(&[&early, &real]).unwrap(), [&early[..], &real[..]]);
    }

    #[test]
    fn otherwise_the_order_is_kept_and_empty_modules_vanish() {
        assert_eq!(arrange(&[b"one", b"", b"two"]).unwrap(), [b"one", b"two"]);
        assert!(arrange(&[]).unwrap().is_empty());
    }

    #[test]
    fn the_parts_follow_each_other_aligned() {
        let parts: [&[u8]; 3] = [b"12345", b"1234", b"1"];
        let (places, size) = offsets(&parts);
        assert_eq!(places.map(|(start, _)| start).collect::<Vec<_>>(), [0, 8, 12]);
        assert_eq!(size, 13);
        assert_eq!(offsets(&[]).1, 0);
    }
}
